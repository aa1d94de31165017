// <guanaco/c.h> in C#: its numbers, its functions, and what calling them takes; Guanaco.cs has the objects. C# 7, for .NET 8
// and Mono.
using System;
using System.Collections.Generic;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;
using Size = System.UIntPtr;  // size_t; nuint is C# 9

namespace Guanaco {

/// <summary>0 is success, what is positive an outcome, what is negative a failure.</summary>
public enum Status {
  Ok = 0, End = 1, Cancelled = 2,
  InvalidArgument = -1, NotFound = -2, Malformed = -3, Unsupported = -4, OutOfMemory = -5, ContextFull = -6, Device = -7,
  Internal = -8, BufferTooSmall = -9
}

/// <summary>Settings by number; class Options has them by name.</summary>
public enum Option {
  Device = 100, CudaDevice = 101, Threads = 102, Rows = 103, ZeroPoints = 104,
  Context = 200,
  Seed = 300, Temperature = 301, TopK = 302, TopP = 303, MinP = 304, RepetitionPenalty = 305, FrequencyPenalty = 306,
  PresencePenalty = 307, PenaltyWindow = 308,
  MaxTokens = 400, DropLeadingSpace = 401, StopAtEndOfText = 402, TrimBeforeStop = 403
}

public enum Device { Automatic = 0, Cpu = 1, Cuda = 2 }
public enum ZeroPoints { Automatic = 0, V1 = 1, V2 = 2 }
public enum Severity { Debug = 0, Info = 1, Warning = 2 }
public enum Role { System = 0, User = 1, Assistant = 2 }

/// <summary>Why a generation ended.</summary>
public enum Finish { None = 0, EndOfText = 1, StopText = 2, MaxTokens = 3, ContextFull = 4, Cancelled = 5 }

/// <summary>Numbers of a model.</summary>
public enum Info {
  Layers = 1, Heads = 2, KvHeads = 3, HeadDim = 4, Hidden = 5, Ffn = 6, Vocab = 7, Context = 8, Bits = 9, GroupSize = 10,
  ActOrder = 11, Parameters = 12, FileBytes = 13, WeightBytes = 14, BytesPerToken = 15, KvBytesPerToken = 16, Threads = 17,
  HasTokenizer = 18
}

/// <summary>Texts of a model: one of Device and of Format, any number of the others.</summary>
public enum Text { Device = 1, Format = 2, Decision = 3, Warning = 4, Ignored = 5 }

/// <summary>What memory is used for.</summary>
public enum Memory { Weights = 0, Scratch = 1, Session = 2, Loading = 3, Host = 4, Device = 5 }

[UnmanagedFunctionPointer(CallingConvention.Cdecl)]
internal delegate int ProgressFn(ulong done, ulong total, IntPtr userData);

[UnmanagedFunctionPointer(CallingConvention.Cdecl)]
internal unsafe delegate void LogFn(Severity severity, byte* line, Size length, IntPtr userData);

/// <summary>Written on failure only; on the caller's stack.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Error {
  internal Status Status;
  internal fixed byte Message[508];
}

// Objects are passed as SafeHandle: one that is closed becomes an ObjectDisposedException, and none is freed during a call.
internal static unsafe class Native {
  internal const int Abi = 1;

  // With its version, as the linker would write it: "guanaco" would find libguanaco.so only, which is in the development package.
  const string Library = "libguanaco.so.1";

  [DllImport(Library)] public static extern int guanaco_abi();
  [DllImport(Library)] public static extern byte* guanaco_version();
  [DllImport(Library)] public static extern byte* guanaco_status_name(Status status);

  [DllImport(Library)] public static extern IntPtr guanaco_options_new();
  [DllImport(Library)] public static extern void guanaco_options_free(IntPtr options);
  [DllImport(Library)] public static extern Status guanaco_options_set_int(Bag options, Option option, long value,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_options_set_float(Bag options, Option option, double value,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_options_add_stop(Bag options, byte[] text, Size length,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_options_on_progress(Bag options, ProgressFn fn, IntPtr userData,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_options_on_log(Bag options, LogFn fn, IntPtr userData, Error* error);

  [DllImport(Library)] public static extern Status guanaco_model_load(byte[] path, Size length, Bag options, out IntPtr model,
      Error* error);
  [DllImport(Library)] public static extern void guanaco_model_free(IntPtr model);
  [DllImport(Library)] public static extern Status guanaco_model_info(Model model, Info info, out long value, Error* error);
  [DllImport(Library)] public static extern Status guanaco_model_text(Model model, Text kind, Size index, byte** text,
      Size* length, Error* error);
  [DllImport(Library)] public static extern Status guanaco_model_tokenizer(Model model, out IntPtr tokenizer, Error* error);

  [DllImport(Library)] public static extern Status guanaco_inspect(byte[] path, Size length, Bag options,
      out IntPtr inspection, Error* error);
  [DllImport(Library)] public static extern void guanaco_inspection_free(IntPtr inspection);
  [DllImport(Library)] public static extern Status guanaco_inspection_info(Inspection inspection, Info info, out long value,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_inspection_text(Inspection inspection, Text kind, Size index,
      byte** text, Size* length, Error* error);
  [DllImport(Library)] public static extern Status guanaco_estimate(byte[] path, Size length, Bag options, ulong[] bytes,
      Size count, Error* error);

  [DllImport(Library)] public static extern Status guanaco_tokenizer_load(byte[] file, Size length, out IntPtr tokenizer,
      Error* error);
  [DllImport(Library)] public static extern void guanaco_tokenizer_free(IntPtr tokenizer);
  [DllImport(Library)] public static extern int guanaco_tokenizer_size(Tokenizer tokenizer);
  [DllImport(Library)] public static extern int guanaco_tokenizer_bos(Tokenizer tokenizer);
  [DllImport(Library)] public static extern int guanaco_tokenizer_eos(Tokenizer tokenizer);
  [DllImport(Library)] public static extern Status guanaco_tokenizer_encode(Tokenizer tokenizer, byte[] text, Size length,
      int begin, [Out] int[] tokens, Size capacity, Size* needed, Error* error);
  [DllImport(Library)] public static extern Status guanaco_tokenizer_encode_continuation(Tokenizer tokenizer, byte[] text,
      Size length, [Out] int[] tokens, Size capacity, Size* needed, Error* error);
  [DllImport(Library)] public static extern Status guanaco_tokenizer_decode(Tokenizer tokenizer, int[] tokens, Size count,
      [Out] byte[] text, Size capacity, Size* needed, Error* error);
  [DllImport(Library)] public static extern Status guanaco_tokenizer_piece(Tokenizer tokenizer, int token, byte** bytes,
      Size* length, Error* error);

  [DllImport(Library)] public static extern Status guanaco_chat_name(Size index, byte** text, Size* length);
  [DllImport(Library)] public static extern Status guanaco_chat_new(byte[] name, Size length, out IntPtr chat, Error* error);
  [DllImport(Library)] public static extern void guanaco_chat_free(IntPtr chat);
  [DllImport(Library)] public static extern Status guanaco_chat_add(Chat chat, Role role, byte[] text, Size length,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_chat_clear(Chat chat, Error* error);
  [DllImport(Library)] public static extern Status guanaco_chat_render(Chat chat, byte** text, Size* length, Error* error);
  [DllImport(Library)] public static extern Status guanaco_chat_stop(Chat chat, Size index, byte** text, Size* length,
      Error* error);

  [DllImport(Library)] public static extern Status guanaco_stream_new(Bag options, out IntPtr stream, Error* error);
  [DllImport(Library)] public static extern void guanaco_stream_free(IntPtr stream);
  [DllImport(Library)] public static extern Status guanaco_stream_push(TextStream stream, byte[] bytes, Size count,
      byte** text, Size* length, Error* error);
  [DllImport(Library)] public static extern Status guanaco_stream_finish(TextStream stream, byte** text, Size* length,
      Error* error);
  [DllImport(Library)] public static extern long guanaco_stream_stop(TextStream stream);

  [DllImport(Library)] public static extern Status guanaco_sampler_new(Bag options, out IntPtr sampler, Error* error);
  [DllImport(Library)] public static extern Status guanaco_sampler_copy(Sampler sampler, out IntPtr copy, Error* error);
  [DllImport(Library)] public static extern void guanaco_sampler_free(IntPtr sampler);
  [DllImport(Library)] public static extern Status guanaco_sampler_sample(Sampler sampler, float[] logits, Size count,
      out int token, Error* error);
  [DllImport(Library)] public static extern Status guanaco_sampler_accept(Sampler sampler, int[] tokens, Size count,
      Error* error);

  [DllImport(Library)] public static extern Status guanaco_session_new(Model model, Bag options, out IntPtr session,
      Error* error);
  [DllImport(Library)] public static extern void guanaco_session_free(IntPtr session);
  [DllImport(Library)] public static extern Status guanaco_session_feed(Session session, int[] tokens, Size count, Bag options,
      Error* error);
  [DllImport(Library)] public static extern Status guanaco_session_feed_many(IntPtr[] sessions, IntPtr[] tokens, Size[] counts,
      Size count, Bag options, Error* error);
  [DllImport(Library)] public static extern Status guanaco_session_score(Session session, int[] tokens, Size count,
      [Out] float[] logprobs, Bag options, Error* error);
  [DllImport(Library)] public static extern IntPtr guanaco_session_logits(Session session, out Size count);
  [DllImport(Library)] public static extern IntPtr guanaco_session_tokens(Session session, out Size count);
  [DllImport(Library)] public static extern long guanaco_session_position(Session session);
  [DllImport(Library)] public static extern long guanaco_session_context(Session session);
  [DllImport(Library)] public static extern Status guanaco_session_rewind(Session session, long position, Error* error);
  [DllImport(Library)] public static extern Status guanaco_session_reuse(Session session, int[] tokens, Size count,
      out Size known, Error* error);

  [DllImport(Library)] public static extern Status guanaco_generate(Session session, Sampler sampler, byte[] prompt,
      Size length, Bag options, out IntPtr generation, Error* error);
  [DllImport(Library)] public static extern Status guanaco_generate_tokens(Session session, Sampler sampler, int[] tokens,
      Size count, Bag options, out IntPtr generation, Error* error);
  [DllImport(Library)] public static extern void guanaco_generation_free(IntPtr generation);
  [DllImport(Library)] public static extern Status guanaco_generation_next(Generation generation, byte** text,
      Size* length, out int token, out float logprob, Error* error);
  [DllImport(Library)] public static extern Status guanaco_generation_step(IntPtr[] generations, Size count, Error* error);
  [DllImport(Library)] public static extern Finish guanaco_generation_finish(Generation generation);
  [DllImport(Library)] public static extern long guanaco_generation_tokens(Generation generation);
  [DllImport(Library)] public static extern void guanaco_generation_cancel(Generation generation);
}

/// <summary>An object of the library. The top of Guanaco.cs says what is true of all.</summary>
public abstract unsafe class Handle : SafeHandle {
  static bool matches;

  internal Handle() : base(IntPtr.Zero, true) { CheckAbi(); }

  public override bool IsInvalid => handle == IntPtr.Zero;

  // Comes before any other call. Not a static constructor, whose exceptions arrive wrapped in another.
  internal static void CheckAbi() {
    if (matches) return;
    int abi = Native.guanaco_abi();
    if (abi != Native.Abi)
      throw new GuanacoException(Status.Unsupported, $"needs ABI {Native.Abi} of libguanaco, but the one found has ABI {abi}");
    matches = true;
  }

  // The shapes of call there are. What a lambda uses, this object too, is not finalized before the call is over.

  internal delegate Status Call(Error* error);
  internal delegate Status CallWithOptions(Bag options, Error* error);
  internal delegate Status TextCall(byte** text, Size* length, Error* error);
  internal delegate Status ItemCall(Size index, byte** text, Size* length, Error* error);
  internal delegate Status ArrayCall<T>(T[] array, Size capacity, Size* needed, Error* error);

  internal static Status Check(Status status, Error* error, Bag options = null) {
    options?.Rethrow();
    if (status == Status.Cancelled) throw new OperationCanceledException(options?.Token ?? CancellationToken.None);
    if (status < 0) throw new GuanacoException(status, Marshal.PtrToStringAnsi((IntPtr)error->Message));  // UTF-8 on Unix
    return status;
  }

  internal static void Try(Call call) {
    Error error;
    Check(call(&error), &error);
  }

  // The options, which are freed but still the target of the callbacks.
  internal static Bag Try(Options options, CancellationToken token, CallWithOptions call) {
    Error error;
    using (var bag = new Bag(options ?? new Options(), token)) {
      Check(call(bag, &error), &error, bag);
      return bag;
    }
  }

  internal static string TextOf(TextCall call) {
    byte* text;
    Size length;
    Error error;
    Check(call(&text, &length, &error), &error);
    string copy = Utf16(text, length);
    GC.KeepAlive(call);
    return copy;
  }

  internal static IReadOnlyList<string> ListOf(ItemCall call) {
    var list = new List<string>();
    byte* text;
    Size length;
    Error error;
    while (Check(call((Size)list.Count, &text, &length, &error), &error) == Status.Ok) list.Add(Utf16(text, length));
    return list;
  }

  // One call if the guess is large enough, else two.
  internal static T[] ArrayOf<T>(int guess, ArrayCall<T> call) {
    var array = new T[guess];
    Size needed;
    Error error;
    Status status = call(array, (Size)guess, &needed, &error);
    if (status == Status.BufferTooSmall) status = call(array = new T[(int)needed], needed, &needed, &error);
    Check(status, &error);
    Array.Resize(ref array, (int)needed);
    return array;
  }

  // Lends the addresses of handles, none of which is freed meanwhile.
  internal static void Lend(IReadOnlyList<Handle> handles, Action<IntPtr[]> use) {
    var addresses = new IntPtr[handles.Count];
    int held = 0;
    try {
      for (; held < addresses.Length; ++held) {
        bool added = false;
        handles[held].DangerousAddRef(ref added);
        addresses[held] = handles[held].DangerousGetHandle();
      }
      use(addresses);
    } finally {
      while (held > 0) handles[--held].DangerousRelease();
    }
  }

  internal static byte[] Utf8(string text) => Encoding.UTF8.GetBytes(text);
  internal static string Utf16(byte* text, Size length) => length == Size.Zero ? "" : Encoding.UTF8.GetString(text, (int)length);
}

/// <summary>Options as the library takes them, and the target of its callbacks.</summary>
internal sealed unsafe class Bag : Handle {
  readonly ProgressFn onProgress;  // the library has but the addresses of their code:
  readonly LogFn onLog;            // these fields keep it from being collected
  ExceptionDispatchInfo thrown;    // an exception must not cross the library

  internal Bag(Options options, CancellationToken token) {
    Token = token;
    Action<long, long> progress = options.Progress;
    Action<Severity, string> log = options.Log;
    onProgress = (done, total, _) => {
      if (progress != null) Catch(() => progress((long)done, (long)total));
      return thrown != null || token.IsCancellationRequested ? 1 : 0;
    };
    onLog = (severity, line, length, _) => Catch(() => log(severity, Utf16(line, length)));

    SetHandle(Native.guanaco_options_new());
    if (IsInvalid) throw new OutOfMemoryException();
    Try(error => Native.guanaco_options_on_progress(this, onProgress, IntPtr.Zero, error));
    if (log != null) Try(error => Native.guanaco_options_on_log(this, onLog, IntPtr.Zero, error));
    foreach (KeyValuePair<Option, object> option in options.Values)
      Try(error => option.Value is double number
                       ? Native.guanaco_options_set_float(this, option.Key, number, error)
                       : Native.guanaco_options_set_int(this, option.Key, Convert.ToInt64(option.Value), error));
    foreach (string stop in options.Stops ?? new string[0]) {
      byte[] text = Utf8(stop);
      Try(error => Native.guanaco_options_add_stop(this, text, (Size)text.Length, error));
    }
  }

  internal CancellationToken Token { get; }

  /// <summary>Throws what a callback threw.</summary>
  internal void Rethrow() {
    ExceptionDispatchInfo first = thrown;
    thrown = null;
    first?.Throw();
  }

  void Catch(Action callback) {
    try {
      callback();
    } catch (Exception exception) {
      thrown = thrown ?? ExceptionDispatchInfo.Capture(exception);
    }
  }

  protected override bool ReleaseHandle() { Native.guanaco_options_free(handle); return true; }
}

}
