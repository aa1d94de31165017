// Asks one question and prints the answer while it is being written.
using System;
using System.IO;
using Guanaco;

static class Hello {
  static int Main(string[] args) {
    try {
      using (Model model = Model.Load(args.Length > 0 ? args[0] : "examples/models/tiny-guanaco"))
      using (var session = new Session(model))
      using (var chat = new Chat("guanaco"))
      using (var output = new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true }) {  // UTF-8 in any locale
        chat.Add(Role.User, "What colour is the sky?");
        using (Generation reply = session.Generate(chat.Render(), new Options { Seed = 7, Stops = chat.Stops }))
          foreach (string text in reply.Texts()) output.Write(text);
        output.Write("\n");
      }
      return 0;
    } catch (Exception error) {
      Console.Error.WriteLine("hello: " + error.Message);
      return 1;
    }
  }
}
