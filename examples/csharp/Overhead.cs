// What the binding itself costs: the time of Next() alone, once Step() has computed the token.
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using Guanaco;

static class Overhead {
  static int Main(string[] args) {
    try {
      var times = new List<long>();
      var options = new Options { Context = 600, StopAtEndOfText = false, MaxTokens = 400, Temperature = 0 };
      using (Model model = Model.Load(args.Length > 0 ? args[0] : "examples/models/tiny-guanaco"))
      using (var session = new Session(model, options))
      using (Generation reply = session.Generate("Once upon a time", options))
        for (;;) {
          Generation.Step(reply);
          long start = Stopwatch.GetTimestamp();
          bool more = reply.Next(out Piece piece);
          long took = Stopwatch.GetTimestamp() - start;
          if (!more) break;
          times.Add(took);
        }
      times.Sort();
      double median = 1e6 * times[times.Count / 2] / Stopwatch.Frequency;
      Console.WriteLine("C#: {0} us a token", median.ToString("F2", CultureInfo.InvariantCulture));
      return 0;
    } catch (Exception error) {
      Console.Error.WriteLine("overhead: " + error.Message);
      return 1;
    }
  }
}
