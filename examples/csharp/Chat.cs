// A conversation on the console: chat [MODEL]. Ctrl-C stops a reply; at the prompt it ends the program, as Ctrl-D does.
// (Mono hears of Ctrl-C only if standard input is a terminal that TERM does not call dumb; else it ends the program.)
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text;
using System.Threading;
using Guanaco;

sealed class Conversation : IDisposable {
  const int Room = 512;  // tokens kept free for a reply

  readonly Session session;
  readonly Tokenizer tokenizer;
  readonly Chat chat = new Chat("guanaco");
  readonly List<KeyValuePair<Role, string>> messages = new List<KeyValuePair<Role, string>>();

  public Conversation(Model model) {
    session = new Session(model);
    tokenizer = model.Tokenizer();
  }

  public void Dispose() {
    session.Dispose();
    tokenizer.Dispose();
    chat.Dispose();
  }

  /// Writes the reply while it is made. One that was cancelled stays in the conversation as far as it came, so that the next
  /// question can refer to it; if it never began, the question is forgotten too.
  public void Ask(string question, TextWriter output, CancellationToken token) {
    Remember(Role.User, question);
    int[] prompt = Prompt();
    int known = session.Reuse(prompt);  // earlier turns are not computed again
    var options = new Options { MaxTokens = Room, Seed = messages.Count, Stops = chat.Stops };
    var reply = new StringBuilder();
    try {
      using (Generation generation = session.Generate(prompt.Skip(known).ToArray(), options))
        foreach (string text in generation.Texts(token)) {
          output.Write(text);
          reply.Append(text);
        }
    } finally {
      if (reply.Length > 0) Remember(Role.Assistant, reply.ToString());
      else messages.RemoveAt(messages.Count - 1);
      output.Write("\n");
    }
  }

  void Remember(Role role, string text) => messages.Add(new KeyValuePair<Role, string>(role, text));

  /// The whole conversation, less its oldest turns if a reply would not fit behind it.
  int[] Prompt() {
    for (;;) {
      chat.Clear();
      foreach (var message in messages) chat.Add(message.Key, message.Value);
      int[] prompt = tokenizer.Encode(chat.Render());
      if (prompt.Length + Room <= session.Context || messages.Count == 1) return prompt;
      messages.RemoveRange(0, 2);  // what was asked and what was answered
    }
  }
}

static class Program {
  static CancellationTokenSource reply;  // of the reply that is being written; null at the prompt

  static int Main(string[] args) {
    try {
      Console.CancelKeyPress += (_, press) => {
        press.Cancel = true;
        CancellationTokenSource current = Volatile.Read(ref reply);
        if (current == null) Environment.Exit(130);
        current.Cancel();
      };
      bool terminal = !Console.IsInputRedirected;
      // A terminal's lines are edited by Console, which Mono needs for what is typed to show; other input is UTF-8 in any locale.
      using (TextReader input = terminal ? Console.In : new StreamReader(Console.OpenStandardInput()))
      using (var output = new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true })
      using (Model model = Model.Load(args.Length > 0 ? args[0] : "examples/models/tiny-guanaco"))
      using (var conversation = new Conversation(model))
        for (;;) {
          if (terminal) Console.Error.Write("> ");
          string line = input.ReadLine();
          if (line == null) break;
          if (line.Trim().Length == 0) continue;
          var source = new CancellationTokenSource();
          Volatile.Write(ref reply, source);
          try {
            conversation.Ask(line, output, source.Token);
          } catch (OperationCanceledException) {  // Ctrl-C; the next prompt shows it
          } finally {
            Volatile.Write(ref reply, null);
          }
        }
      return 0;
    } catch (Exception error) {
      Console.Error.WriteLine("chat: " + error.Message);
      return 1;
    }
  }
}
