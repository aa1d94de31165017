// Guanaco and other LLaMA checkpoints from C#: objects over <guanaco/c.h>, which says more of each function.
//
//  - Each object is a SafeHandle: `using` or Dispose() frees it, the finalizer what was forgotten; in any order, and twice is
//    harmless. Using one that was disposed is an ObjectDisposedException.
//  - A failure is a GuanacoException, and the object is as before the call. What was cancelled is an
//    OperationCanceledException.
//  - Model, Inspection and Tokenizer are immutable and may be used by many threads at once; anything else by one thread at
//    a time, but any. Generation.Cancel() is the exception.
//  - While a Generation lives, nothing but it may change its Session: dispose it when the reply is over.
//  - Callbacks must not compute with a model, nor wait for a thread that does with theirs.
using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;
using Size = System.UIntPtr;

namespace Guanaco {

/// <summary>What failed, with one line that says what was expected and what was found.</summary>
public sealed class GuanacoException : Exception {
  internal GuanacoException(Status status, string message) : base(message) { Status = status; }
  public Status Status { get; }
}

public static unsafe class Library {
  /// <summary>"0.1.0".</summary>
  public static string Version { get { Handle.CheckAbi(); return Marshal.PtrToStringAnsi((IntPtr)Native.guanaco_version()); } }

  /// <summary>"malformed".</summary>
  public static string Name(Status status) {
    Handle.CheckAbi();
    return Marshal.PtrToStringAnsi((IntPtr)Native.guanaco_status_name(status));
  }
}

/// <summary>Settings by name; null, as all are at first, is the library's default. Those of other purposes are ignored.</summary>
public sealed class Options {
  internal readonly Dictionary<Option, object> Values = new Dictionary<Option, object>();

  // Of loading.
  public Device? Device { get => Get<Device>(Option.Device); set => Set(Option.Device, value); }
  public int? CudaDevice { get => Get<int>(Option.CudaDevice); set => Set(Option.CudaDevice, value); }
  public int? Threads { get => Get<int>(Option.Threads); set => Set(Option.Threads, value); }
  public int? Rows { get => Get<int>(Option.Rows); set => Set(Option.Rows, value); }
  public ZeroPoints? ZeroPoints { get => Get<ZeroPoints>(Option.ZeroPoints); set => Set(Option.ZeroPoints, value); }
  public Action<Severity, string> Log { get; set; }
  // Of a session.
  public int? Context { get => Get<int>(Option.Context); set => Set(Option.Context, value); }
  // Of a sampler, or of a generation without one.
  public long? Seed { get => Get<long>(Option.Seed); set => Set(Option.Seed, value); }
  public double? Temperature { get => Get<double>(Option.Temperature); set => Set(Option.Temperature, value); }
  public int? TopK { get => Get<int>(Option.TopK); set => Set(Option.TopK, value); }
  public double? TopP { get => Get<double>(Option.TopP); set => Set(Option.TopP, value); }
  public double? MinP { get => Get<double>(Option.MinP); set => Set(Option.MinP, value); }
  public double? RepetitionPenalty { get => Get<double>(Option.RepetitionPenalty); set => Set(Option.RepetitionPenalty, value); }
  public double? FrequencyPenalty { get => Get<double>(Option.FrequencyPenalty); set => Set(Option.FrequencyPenalty, value); }
  public double? PresencePenalty { get => Get<double>(Option.PresencePenalty); set => Set(Option.PresencePenalty, value); }
  public int? PenaltyWindow { get => Get<int>(Option.PenaltyWindow); set => Set(Option.PenaltyWindow, value); }
  // Of a generation; all but the first two also of a stream.
  public int? MaxTokens { get => Get<int>(Option.MaxTokens); set => Set(Option.MaxTokens, value); }
  public bool? StopAtEndOfText { get => Get<bool>(Option.StopAtEndOfText); set => Set(Option.StopAtEndOfText, value); }
  public bool? DropLeadingSpace { get => Get<bool>(Option.DropLeadingSpace); set => Set(Option.DropLeadingSpace, value); }
  public bool? TrimBeforeStop { get => Get<bool>(Option.TrimBeforeStop); set => Set(Option.TrimBeforeStop, value); }
  public IEnumerable<string> Stops { get; set; }
  /// <summary>Is told what is done so far and in all, on the calling thread: of loading, feeding and a generation's prompt.
  /// What it throws ends the call and arrives at the caller; so does what Log throws.</summary>
  public Action<long, long> Progress { get; set; }

  T? Get<T>(Option option) where T : struct => Values.TryGetValue(option, out object value) ? (T?)value : null;

  void Set(Option option, object value) {
    if (value == null) Values.Remove(option);
    else Values[option] = value;
  }
}

/// <summary>Weights: a folder as Hugging Face has it, or one .safetensors file with its neighbours.</summary>
public sealed unsafe class Model : Handle {
  Model() {}

  public static Model Load(string path, Options options = null, CancellationToken token = default(CancellationToken)) {
    byte[] bytes = Utf8(path);
    var model = new Model();
    Try(options, token, (bag, error) => Native.guanaco_model_load(bytes, (Size)bytes.Length, bag, out model.handle, error));
    return model;
  }

  /// <summary>The bytes that loading and one session will use, from the headers of the files alone.</summary>
  public static IReadOnlyDictionary<Memory, long> Estimate(string path, Options options = null) {
    byte[] bytes = Utf8(path);
    var uses = (Memory[])Enum.GetValues(typeof(Memory));
    var sizes = new ulong[uses.Length];
    Try(options, CancellationToken.None, (bag, error) => Native.guanaco_estimate(
        bytes, (Size)bytes.Length, bag, sizes, (Size)sizes.Length, error));
    return uses.ToDictionary(use => use, use => (long)sizes[(int)use]);
  }

  public long Number(Info info) {
    long value = 0;
    Try(error => Native.guanaco_model_info(this, info, out value, error));
    return value;
  }

  public IReadOnlyList<string> Texts(Text kind) => ListOf(
      (index, text, length, error) => Native.guanaco_model_text(this, kind, index, text, length, error));

  /// <summary>A new object for the one in the folder. Throws NotFound if there is none; token ids work without.</summary>
  public Tokenizer Tokenizer() => new Tokenizer(this);

  protected override bool ReleaseHandle() { Native.guanaco_model_free(handle); return true; }
}

/// <summary>What loading would find, from the headers of the files alone.</summary>
public sealed unsafe class Inspection : Handle {
  public Inspection(string path, Options options = null) {
    byte[] bytes = Utf8(path);
    Try(options, CancellationToken.None, (bag, error) => Native.guanaco_inspect(
        bytes, (Size)bytes.Length, bag, out handle, error));
  }

  public long Number(Info info) {
    long value = 0;
    Try(error => Native.guanaco_inspection_info(this, info, out value, error));
    return value;
  }

  public IReadOnlyList<string> Texts(Text kind) => ListOf(
      (index, text, length, error) => Native.guanaco_inspection_text(this, kind, index, text, length, error));

  protected override bool ReleaseHandle() { Native.guanaco_inspection_free(handle); return true; }
}

public sealed unsafe class Tokenizer : Handle {
  /// <summary>Reads a tokenizer.model.</summary>
  public Tokenizer(string file) {
    byte[] bytes = Utf8(file);
    Try(error => Native.guanaco_tokenizer_load(bytes, (Size)bytes.Length, out handle, error));
  }

  internal Tokenizer(Model model) { Try(error => Native.guanaco_model_tokenizer(model, out handle, error)); }

  /// <summary>Pieces there are.</summary>
  public int Count => Native.guanaco_tokenizer_size(this);
  /// <summary>The token that begins every sequence; -1: none.</summary>
  public int Bos => Native.guanaco_tokenizer_bos(this);
  /// <summary>The token that ends a text; -1: none.</summary>
  public int Eos => Native.guanaco_tokenizer_eos(this);

  /// <summary>The tokens of a text that begins a sequence, with or without Bos in front.</summary>
  public int[] Encode(string text, bool begin = true) {
    byte[] bytes = Utf8(text);
    return ArrayOf<int>(bytes.Length + 2, (tokens, capacity, needed, error) => Native.guanaco_tokenizer_encode(
        this, bytes, (Size)bytes.Length, begin ? 1 : 0, tokens, capacity, needed, error));
  }

  /// <summary>The tokens of a text that goes on where other text ended.</summary>
  public int[] EncodeContinuation(string text) {
    byte[] bytes = Utf8(text);
    return ArrayOf<int>(bytes.Length + 2, (tokens, capacity, needed, error) => Native.guanaco_tokenizer_encode_continuation(
        this, bytes, (Size)bytes.Length, tokens, capacity, needed, error));
  }

  public string Decode(int[] tokens) => Encoding.UTF8.GetString(ArrayOf<byte>(
      8 * tokens.Length, (text, capacity, needed, error) => Native.guanaco_tokenizer_decode(
          this, tokens, (Size)tokens.Length, text, capacity, needed, error)));

  /// <summary>The bytes of one token, possibly none or part of a character.</summary>
  public byte[] Piece(int token) {
    byte* bytes;
    Size length;
    Error error;
    Check(Native.guanaco_tokenizer_piece(this, token, &bytes, &length, &error), &error);
    var piece = new byte[(int)length];
    if (piece.Length > 0) Marshal.Copy((IntPtr)bytes, piece, 0, piece.Length);
    GC.KeepAlive(this);  // the bytes were its own
    return piece;
  }

  protected override bool ReleaseHandle() { Native.guanaco_tokenizer_free(handle); return true; }
}

/// <summary>A conversation, and the published shape in which it becomes one prompt.</summary>
public sealed unsafe class Chat : Handle {
  public Chat(string name) {
    byte[] bytes = Utf8(name);
    Try(error => Native.guanaco_chat_new(bytes, (Size)bytes.Length, out handle, error));
  }

  /// <summary>Of all shapes there are.</summary>
  public static IReadOnlyList<string> Names() {
    CheckAbi();
    return ListOf((index, text, length, error) => Native.guanaco_chat_name(index, text, length));
  }

  /// <summary>Texts that end the assistant's turn; for Options.Stops.</summary>
  public IReadOnlyList<string> Stops => ListOf(
      (index, text, length, error) => Native.guanaco_chat_stop(this, index, text, length, error));

  public void Add(Role role, string message) {
    byte[] bytes = Utf8(message);
    Try(error => Native.guanaco_chat_add(this, role, bytes, (Size)bytes.Length, error));
  }

  public void Clear() => Try(error => Native.guanaco_chat_clear(this, error));

  /// <summary>The prompt, up to where the assistant is to speak.</summary>
  public string Render() => TextOf((text, length, error) => Native.guanaco_chat_render(this, text, length, error));

  protected override bool ReleaseHandle() { Native.guanaco_chat_free(handle); return true; }
}

/// <summary>Bytes of tokens to text that can be shown at once.</summary>
public sealed unsafe class TextStream : Handle {
  public TextStream(Options options = null) {
    Try(options, CancellationToken.None, (bag, error) => Native.guanaco_stream_new(bag, out handle, error));
  }

  /// <summary>Which of Options.Stops was found; -1: none.</summary>
  public long Stop => Native.guanaco_stream_stop(this);

  /// <summary>The text that these bytes release, possibly none.</summary>
  public string Push(byte[] bytes) => TextOf(
      (text, length, error) => Native.guanaco_stream_push(this, bytes, (Size)bytes.Length, text, length, error));

  /// <summary>What was held back.</summary>
  public string Finish() => TextOf((text, length, error) => Native.guanaco_stream_finish(this, text, length, error));

  protected override bool ReleaseHandle() { Native.guanaco_stream_free(handle); return true; }
}

/// <summary>The choices of one sequence.</summary>
public sealed unsafe class Sampler : Handle {
  internal static readonly Sampler None = new Sampler();  // becomes NULL; P/Invoke takes no null for a SafeHandle

  Sampler() {}

  public Sampler(Options options) {
    Try(options, CancellationToken.None, (bag, error) => Native.guanaco_sampler_new(bag, out handle, error));
  }

  public Sampler Copy() {
    var copy = new Sampler();
    Try(error => Native.guanaco_sampler_copy(this, out copy.handle, error));
    return copy;
  }

  public int Sample(float[] logits) {
    int token = -1;
    Try(error => Native.guanaco_sampler_sample(this, logits, (Size)logits.Length, out token, error));
    return token;
  }

  /// <summary>Counts tokens that were not chosen here as seen, for the penalties.</summary>
  public void Accept(params int[] tokens) =>
      Try(error => Native.guanaco_sampler_accept(this, tokens, (Size)tokens.Length, error));

  protected override bool ReleaseHandle() { Native.guanaco_sampler_free(handle); return true; }
}

/// <summary>The tokens so far and their cache.</summary>
public sealed unsafe class Session : Handle {
  public Session(Model model, Options options = null) {
    Try(options, CancellationToken.None, (bag, error) => Native.guanaco_session_new(model, bag, out handle, error));
  }

  public long Position => Native.guanaco_session_position(this);
  /// <summary>Tokens there is room for.</summary>
  public long Context => Native.guanaco_session_context(this);

  public void Feed(int[] tokens, Options options = null, CancellationToken token = default(CancellationToken)) =>
      Try(options, token, (bag, error) => Native.guanaco_session_feed(this, tokens, (Size)tokens.Length, bag, error));

  /// <summary>Feeds many sessions of one model together, reading the weights once for all; all or nothing.</summary>
  public static void Feed(IReadOnlyList<Session> sessions, IReadOnlyList<int[]> tokens, Options options = null,
                          CancellationToken token = default(CancellationToken)) {
    if (sessions.Count != tokens.Count) throw new ArgumentException($"{sessions.Count} sessions, tokens for {tokens.Count}");
    GCHandle[] pins = tokens.Select(list => GCHandle.Alloc(list, GCHandleType.Pinned)).ToArray();
    try {
      IntPtr[] starts = pins.Select(pin => pin.AddrOfPinnedObject()).ToArray();
      Size[] counts = tokens.Select(list => (Size)list.Length).ToArray();
      Lend(sessions, addresses => Try(options, token, (bag, error) => Native.guanaco_session_feed_many(
          addresses, starts, counts, (Size)addresses.Length, bag, error)));
    } finally {
      foreach (GCHandle pin in pins) pin.Free();
    }
  }

  /// <summary>Feeds, and gives the natural log-probability of each token after all before it.</summary>
  public float[] Score(int[] tokens, Options options = null, CancellationToken token = default(CancellationToken)) {
    var logprobs = new float[tokens.Length];
    Try(options, token, (bag, error) => Native.guanaco_session_score(
        this, tokens, (Size)tokens.Length, logprobs, bag, error));
    return logprobs;
  }

  /// <summary>The scores of the next token, as natural logs up to a constant; a copy, empty if there are none.</summary>
  public float[] Logits() {
    IntPtr logits = Native.guanaco_session_logits(this, out Size count);
    var copy = new float[(int)count];
    if (copy.Length > 0) Marshal.Copy(logits, copy, 0, copy.Length);
    GC.KeepAlive(this);
    return copy;
  }

  /// <summary>All that the cache holds; a copy.</summary>
  public int[] Tokens() {
    IntPtr tokens = Native.guanaco_session_tokens(this, out Size count);
    var copy = new int[(int)count];
    if (copy.Length > 0) Marshal.Copy(tokens, copy, 0, copy.Length);
    GC.KeepAlive(this);
    return copy;
  }

  /// <summary>Forgets all tokens from a position on.</summary>
  public void Rewind(long position) => Try(error => Native.guanaco_session_rewind(this, position, error));

  /// <summary>Rewinds to the longest common beginning with a prompt: as many tokens of it need not be fed again.</summary>
  public int Reuse(int[] prompt) {
    Size known = Size.Zero;
    Try(error => Native.guanaco_session_reuse(this, prompt, (Size)prompt.Length, out known, error));
    return (int)known;
  }

  /// <summary>Starts a reply; does no device work yet. The sampler is copied; without one the options say how to choose.
  /// The prompt begins a sequence if the session is empty, else it goes on.</summary>
  public Generation Generate(string prompt, Options options = null, Sampler sampler = null) =>
      new Generation(this, sampler ?? Sampler.None, Utf8(prompt), options);

  /// <summary>The same, of tokens.</summary>
  public Generation Generate(int[] prompt, Options options = null, Sampler sampler = null) =>
      new Generation(this, sampler ?? Sampler.None, prompt, options);

  protected override bool ReleaseHandle() { Native.guanaco_session_free(handle); return true; }
}

/// <summary>One token of a reply.</summary>
public struct Piece {
  /// <summary>Whole characters that it releases, possibly none.</summary>
  public string Text;
  /// <summary>-1 in the last piece if that only releases text that was held back.</summary>
  public int Token;
  /// <summary>Natural log, before temperature and penalties.</summary>
  public float Logprob;
}

/// <summary>A reply, one token at a time.</summary>
public sealed unsafe class Generation : Handle {
  readonly Bag callbacks;  // the prompt's; Next() feeds it

  internal Generation(Session session, Sampler sampler, byte[] prompt, Options options) {
    callbacks = Try(options, CancellationToken.None, (bag, error) => Native.guanaco_generate(
        session, sampler, prompt, (Size)prompt.Length, bag, out handle, error));
  }

  internal Generation(Session session, Sampler sampler, int[] prompt, Options options) {
    callbacks = Try(options, CancellationToken.None, (bag, error) => Native.guanaco_generate_tokens(
        session, sampler, prompt, (Size)prompt.Length, bag, out handle, error));
  }

  /// <summary>Why it ended; None while it goes on.</summary>
  public Finish Finish => Native.guanaco_generation_finish(this);
  /// <summary>Of the reply so far.</summary>
  public long Tokens => Native.guanaco_generation_tokens(this);

  /// <summary>The next token, computed now unless Step() did; false at the end.</summary>
  public bool Next(out Piece piece) {
    byte* text;
    Size length;
    Error error;
    Status status = Native.guanaco_generation_next(this, &text, &length, out piece.Token, out piece.Logprob, &error);
    piece.Text = Utf16(text, length);
    GC.KeepAlive(this);  // the text was its own
    return Check(status, &error, callbacks) == Status.Ok;
  }

  /// <summary>The texts of the tokens from here to the end, each computed when it is asked for. The token cancels the reply;
  /// what was handed out stays good.</summary>
  public IEnumerable<string> Texts(CancellationToken token = default(CancellationToken)) {
    using (token.Register(Cancel))
      while (Next(out Piece piece, token))
        if (piece.Text.Length > 0) yield return piece.Text;
  }

  // An exception that names the token is how callers know that it was theirs.
  bool Next(out Piece piece, CancellationToken token) {
    try {
      return Next(out piece);
    } catch (OperationCanceledException) when (token.IsCancellationRequested) {
      throw new OperationCanceledException(token);
    }
  }

  /// <summary>One pass for many generations of one model; the Next() that follows hands out what it made.</summary>
  public static void Step(params Generation[] generations) => Lend(generations, addresses =>
      Try(error => Native.guanaco_generation_step(addresses, (Size)addresses.Length, error)));

  /// <summary>Ends the reply, in the middle of a long prompt too. From any thread, at any time.</summary>
  public void Cancel() {
    try {
      Native.guanaco_generation_cancel(this);
    } catch (ObjectDisposedException) {  // a cancellation that comes late
    }
  }

  protected override bool ReleaseHandle() { Native.guanaco_generation_free(handle); return true; }
}

}
