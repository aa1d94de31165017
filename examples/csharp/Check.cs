// A tour of the wrapper, and of what happens when something goes wrong. Every language has this program: all print the same.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Threading;
using Guanaco;

static class Check {
  const string Prompt = "### Human: What are the benefits of regular exercise? ### Assistant:";
  static StreamWriter output;

  static void Show(FormattableString line) => output.Write(line.ToString(CultureInfo.InvariantCulture) + "\n");
  static string Row<T>(IEnumerable<T> values) => string.Join(" ", values);

  /// What the headers of the files tell before anything is loaded.
  static void Files(string path) {
    using (var found = new Inspection(path))
      Show($"inspect: {found.Number(Info.Layers)} layers, {found.Texts(Text.Format).Single()}");
    var need = Model.Estimate(path, new Options { Context = 64 });
    Show($"estimate: {need[Memory.Weights]} bytes of weights, {need[Memory.Session]} of a session");
  }

  static int[] Texts(Tokenizer tokenizer) {
    int[] prompt = tokenizer.Encode(Prompt);
    Show($"encode: {Row(prompt)}");
    Show($"decode: {tokenizer.Decode(prompt)}");
    int[] bad = tokenizer.Encode(new string('\ufffd', 6));  // what bytes count as that are no UTF-8
    Show($"bad bytes: {Row(bad)}");
    Show($"half a character: [{tokenizer.Decode(new[] { bad[bad.Length - 3], bad[bad.Length - 2] })}]");
    using (var stream = new TextStream(new Options { Stops = new[] { "###" } })) {
      var parts = new[] { "The \xffsky\xc3", "\xbc #", "## Human" }.Select(part => part.Select(c => (byte)c).ToArray());
      Show($"stream: {Row(parts.Select(part => $"[{stream.Push(part)}]"))} [{stream.Finish()}] stop {stream.Stop}");
    }
    using (var chat = new Chat("guanaco")) {
      chat.Add(Role.User, "What colour is the sky?");
      Show($"chat: {chat.Render()}");
      Show($"stops: {Row(chat.Stops.Select(stop => $"[{stop}]"))}");
    }
    return prompt;
  }

  /// Sessions by hand: feeding, scoring, going back, choosing.
  static void Tokens(Session session, Session other, int[] prompt) {
    using (var greedy = new Sampler(new Options { Temperature = 0 })) {
      Func<Session, int> likeliest = of => greedy.Sample(of.Logits());
      int[] rest = prompt.Skip(4).ToArray();
      var surprises = session.Score(prompt).Skip(1).Select(score => (-score).ToString("F3", CultureInfo.InvariantCulture));
      Show($"surprise: {Row(surprises)}");
      Show($"next: {likeliest(session)}");
      session.Rewind(9);
      Show($"rewind: {session.Position} of {session.Context} holds {Row(session.Tokens())}");
      Show($"reuse: {session.Reuse(prompt.Take(4).Concat(prompt).ToArray())}");
      session.Feed(rest);
      Show($"feed: {session.Position} then {likeliest(session)}");
      session.Rewind(4);
      Session.Feed(new[] { session, other }, new[] { rest, prompt });
      Show($"feed many: {session.Position} then {likeliest(session)} {other.Position} then {likeliest(other)}");

      using (var seeded = new Sampler(new Options { Seed = 7, Temperature = 1 })) {
        Show($"sampler: {Row(Enumerable.Range(0, 8).Select(_ => seeded.Sample(session.Logits())))}");
        using (Sampler copy = seeded.Copy())
          Show($"its copy: {seeded.Sample(session.Logits())} {copy.Sample(session.Logits())}");
      }
      using (var penal = new Sampler(new Options { Temperature = 0, RepetitionPenalty = 100 })) {
        penal.Accept(likeliest(session));
        Show($"accept: {penal.Sample(session.Logits())}");
      }
    }
  }

  static void Replies(Session session, Session other, int[] prompt) {
    session.Rewind(0);
    other.Rewind(0);
    using (Generation reply = session.Generate(prompt, new Options { Temperature = 0, MaxTokens = 8 })) {
      var pieces = new List<Piece>();
      while (reply.Next(out Piece next)) pieces.Add(next);
      Show($"reply: {Row(pieces.Select(piece => piece.Token))} finish {(int)reply.Finish}");
      Show($"its text: {string.Concat(pieces.Select(piece => piece.Text))}, {pieces.Sum(piece => (double)piece.Logprob):F3}");
    }
    session.Rewind(0);
    using (var sampler = new Sampler(new Options { Seed = 1 }))
    using (Generation one = session.Generate(Prompt, new Options { Seed = 1 }), two = other.Generate(Prompt, null, sampler)) {
      Generation.Step(one, two);
      one.Next(out Piece first);
      two.Next(out Piece second);
      Show($"step: [{first.Text}] [{second.Text}] {one.Tokens} {two.Tokens}");
    }
  }

  static void Failures(string path, Session session, Session other, int[] prompt) {
    session.Rewind(0);
    foreach (Action call in new Action[] { () => Model.Load("no/such/folder"), () => session.Feed(new int[80]),
                                           () => new Sampler(new Options { TopP = 2 }) })
      try {
        call();
      } catch (GuanacoException error) {
        Show($"error: {(int)error.Status} {error.Message}");
      }

    var thrower = new Options { Progress = (done, total) => throw new InvalidOperationException("enough") };
    try {
      session.Feed(prompt, thrower);
    } catch (InvalidOperationException error) {
      Show($"thrown by progress: {error.Message}, position {session.Position}");
    }
    thrower = new Options { Log = (severity, line) => throw new InvalidOperationException("enough") };
    try {
      Model.Load(path, thrower);
    } catch (InvalidOperationException error) {
      Show($"thrown by log: {error.Message}, position {session.Position}");
    }
    var source = new CancellationTokenSource();
    try {
      session.Feed(prompt, new Options { Progress = (done, total) => source.Cancel() }, source.Token);
    } catch (OperationCanceledException) {
      Show($"given up: status {(int)Status.Cancelled}, position {session.Position}");
    }

    Generation reply = null;
    Action<long, long> cancel = (done, total) => {  // in the prompt; by another thread, as this one is inside the call
      var canceller = new Thread(() => reply.Cancel());
      canceller.Start();
      canceller.Join();
    };
    using (reply = session.Generate(prompt, new Options { Progress = cancel }))
      try {
        reply.Next(out Piece _);
      } catch (OperationCanceledException) {
        Show($"cancelled: [] finish {(int)reply.Finish}");
      }

    Forget(session, prompt);
    for (int tries = 0; tries < 1000; ++tries)
      try {
        session.Rewind(0);
        break;
      } catch (GuanacoException) {  // the reply still lives
        GC.Collect();
        GC.WaitForPendingFinalizers();
      }
    Show($"forgotten: position {session.Position}");
    other.Dispose();
    try {
      other.Rewind(0);
    } catch (ObjectDisposedException) {
      Show($"closed: refused");
    }
  }

  // Starts a reply, of which no stack frame knows afterwards: not even a conservative collector keeps it.
  static void Forget(Session session, int[] prompt) {
    var thread = new Thread(() => session.Generate(prompt).Next(out Piece _));
    thread.Start();
    thread.Join();
  }

  static int Main(string[] args) {
    string path = args.Length > 0 ? args[0] : "examples/models/tiny-guanaco";
    using (output = new StreamWriter(Console.OpenStandardOutput())) {  // UTF-8 in any locale
      Show($"version: {Library.Version}");
      Files(path);
      int[] prompt;
      Session session, other;
      using (Model model = Model.Load(path))
      using (Tokenizer tokenizer = model.Tokenizer()) {
        prompt = Texts(tokenizer);
        session = new Session(model, new Options { Context = 64 });
        other = new Session(model, new Options { Context = 64 });
      }
      Show($"model closed, sessions go on");
      Tokens(session, other, prompt);
      Replies(session, other, prompt);
      Failures(path, session, other, prompt);
      session.Dispose();
    }
    return 0;
  }
}
