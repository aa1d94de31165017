//! Guanaco and other LLaMA checkpoints from Rust: objects over <guanaco/c.h>, which says more of each function.
//!
//!  - A failure is an [`Error`], and the object is as before the call. What was cancelled is one with [`Status::CANCELLED`],
//!    but a reply that is cancelled just ends: [`Generation::finish`] tells why.
//!  - Objects keep what they use, so they may be dropped in any order. Texts are copied; what is borrowed says so by its type.
//!  - The types know the threads: [`Model`], [`Inspection`] and [`Tokenizer`] are immutable and may be used by many at once,
//!    the others by one at a time, but any. [`CancelHandle`] is the exception: any thread, any time.
//!  - Callbacks run on the thread that called, during the call. They must not compute with a model, nor wait for a
//!    thread that does with theirs. A panic in one of them ends the call and goes on in the caller.
use std::any::Any;
use std::ffi::{c_void, CStr};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::Path;
use std::ptr::{null, null_mut, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, slice};

pub mod sys;

/// Numbers of c.h, each kind a type of its own. No enum: a later library may give numbers that are not known here.
macro_rules! numbers {
    ($($(#[$doc:meta])* $type:ident { $($c_name:ident = $number:literal => $name:ident),* $(,)? })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(pub i32);
        impl $type { $(pub const $name: $type = $type($number);)* }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                match *self {
                    $($type::$name => f.write_str(stringify!($name)),)*
                    $type(other) => write!(f, "{other}"),
                }
            }
        }
    )* };
}
numbers! {
    /// 0 is success, what is positive an outcome, what is negative a failure.
    Status {
        OK = 0 => OK, END = 1 => END, CANCELLED = 2 => CANCELLED, INVALID_ARGUMENT = -1 => INVALID_ARGUMENT,
        NOT_FOUND = -2 => NOT_FOUND, MALFORMED = -3 => MALFORMED, UNSUPPORTED = -4 => UNSUPPORTED,
        OUT_OF_MEMORY = -5 => OUT_OF_MEMORY, CONTEXT_FULL = -6 => CONTEXT_FULL, DEVICE = -7 => DEVICE,
        INTERNAL = -8 => INTERNAL, BUFFER_TOO_SMALL = -9 => BUFFER_TOO_SMALL,
    }
    /// Where a model runs.
    Device { DEVICE_AUTOMATIC = 0 => AUTOMATIC, DEVICE_CPU = 1 => CPU, DEVICE_CUDA = 2 => CUDA }
    /// What a GPTQ file's zero points mean.
    ZeroPoints { ZERO_POINTS_AUTOMATIC = 0 => AUTOMATIC, ZERO_POINTS_V1 = 1 => V1, ZERO_POINTS_V2 = 2 => V2 }
    /// Of a line of the log.
    Severity { SEVERITY_DEBUG = 0 => DEBUG, SEVERITY_INFO = 1 => INFO, SEVERITY_WARNING = 2 => WARNING }
    /// Who speaks.
    Role { ROLE_SYSTEM = 0 => SYSTEM, ROLE_USER = 1 => USER, ROLE_ASSISTANT = 2 => ASSISTANT }
    /// Why a reply ended.
    Finish {
        FINISH_NONE = 0 => NONE, FINISH_END_OF_TEXT = 1 => END_OF_TEXT, FINISH_STOP_TEXT = 2 => STOP_TEXT,
        FINISH_MAX_TOKENS = 3 => MAX_TOKENS, FINISH_CONTEXT_FULL = 4 => CONTEXT_FULL, FINISH_CANCELLED = 5 => CANCELLED,
    }
    /// Numbers of a model.
    Info {
        INFO_LAYERS = 1 => LAYERS, INFO_HEADS = 2 => HEADS, INFO_KV_HEADS = 3 => KV_HEADS, INFO_HEAD_DIM = 4 => HEAD_DIM,
        INFO_HIDDEN = 5 => HIDDEN, INFO_FFN = 6 => FFN, INFO_VOCAB = 7 => VOCAB, INFO_CONTEXT = 8 => CONTEXT,
        INFO_BITS = 9 => BITS, INFO_GROUP_SIZE = 10 => GROUP_SIZE, INFO_ACT_ORDER = 11 => ACT_ORDER,
        INFO_PARAMETERS = 12 => PARAMETERS, INFO_FILE_BYTES = 13 => FILE_BYTES, INFO_WEIGHT_BYTES = 14 => WEIGHT_BYTES,
        INFO_BYTES_PER_TOKEN = 15 => BYTES_PER_TOKEN, INFO_KV_BYTES_PER_TOKEN = 16 => KV_BYTES_PER_TOKEN,
        INFO_THREADS = 17 => THREADS, INFO_HAS_TOKENIZER = 18 => HAS_TOKENIZER,
    }
    /// Texts of a model: one `DEVICE` and one `FORMAT`, any number of the others.
    Text {
        TEXT_DEVICE = 1 => DEVICE, TEXT_FORMAT = 2 => FORMAT, TEXT_DECISION = 3 => DECISION, TEXT_WARNING = 4 => WARNING,
        TEXT_IGNORED = 5 => IGNORED,
    }
    /// What memory is for: places in the array that [`estimate`] gives.
    Memory {
        MEMORY_WEIGHTS = 0 => WEIGHTS, MEMORY_SCRATCH = 1 => SCRATCH, MEMORY_SESSION = 2 => SESSION,
        MEMORY_LOADING = 3 => LOADING, MEMORY_HOST = 4 => HOST, MEMORY_DEVICE = 5 => DEVICE,
    }
}
impl Status {
    /// "malformed".
    pub fn name(self) -> &'static str {
        static_text(unsafe { sys::guanaco_status_name(self.0) })
    }
}

/// "0.1.0".
pub fn version() -> &'static str {
    static_text(unsafe { sys::guanaco_version() })
}

/// What failed, with one line that names the culprit, what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub status: Status,
    pub message: String,
}
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Error {}
pub type Result<T> = std::result::Result<T, Error>;

/// Whether the library is the one that these declarations are of. Asked before anything is made, and all else needs something
/// that was made.
fn check_abi() -> Result<()> {
    let found = unsafe { sys::guanaco_abi() };
    let message = || format!("libguanaco: this program needs version {} of its ABI, found {found}", sys::ABI);
    (found == sys::ABI).then_some(()).ok_or_else(|| Error { status: Status::UNSUPPORTED, message: message() })
}

/// Calls a function of the library with somewhere to put its error.
fn call(function: impl FnOnce(*mut sys::guanaco_error) -> i32) -> Result<Status> {
    let mut error = sys::guanaco_error { status: 0, message: [0; 508] };
    let status = Status(function(&mut error));
    let message = match status {
        Status::CANCELLED => "cancelled".into(),
        Status(0..) => return Ok(status),
        _ => unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned(),
    };
    Err(Error { status, message })
}
/// The object that a function makes.
fn make<T>(function: impl FnOnce(*mut *mut T, *mut sys::guanaco_error) -> i32) -> Result<NonNull<T>> {
    check_abi()?;
    let mut out = null_mut();
    call(|e| function(&mut out, e))?;
    Ok(NonNull::new(out).expect("success gives an object"))
}
/// The text that a function gives, and its status.
fn text(
    function: impl FnOnce(*mut *const u8, *mut usize, *mut sys::guanaco_error) -> i32,
) -> Result<(Status, String)> {
    let (mut bytes, mut length) = (null(), 0);
    let status = call(|e| function(&mut bytes, &mut length, e))?;
    Ok((status, String::from_utf8_lossy(unsafe { array(bytes, length) }).into_owned()))
}
/// All texts of a function that gives them by index.
fn texts(
    function: impl Fn(usize, *mut *const u8, *mut usize, *mut sys::guanaco_error) -> i32,
) -> Result<Vec<String>> {
    let mut found = Vec::new();
    loop {
        match text(|bytes, length, e| function(found.len(), bytes, length, e))? {
            (Status::END, _) => return Ok(found),
            (_, text) => found.push(text),
        }
    }
}
/// What a function writes into a buffer; it is called again if there was too little room.
fn fill<T: Clone + Default>(
    room: usize, function: impl Fn(*mut T, usize, *mut usize, *mut sys::guanaco_error) -> i32,
) -> Result<Vec<T>> {
    let (mut buffer, mut needed) = (vec![T::default(); room], 0);
    match call(|e| function(buffer.as_mut_ptr(), room, &mut needed, e)) {
        Err(error) if error.status == Status::BUFFER_TOO_SMALL => return fill(needed, function),
        result => result?,
    };
    buffer.truncate(needed);
    Ok(buffer)
}
/// What the library lends; it lives no longer than the object that lends it. NULL stands for nothing.
unsafe fn array<'a, T>(data: *const T, count: usize) -> &'a [T] {
    if count == 0 { &[] } else { slice::from_raw_parts(data, count) }
}
fn static_text(text: *const std::os::raw::c_char) -> &'static str {
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("?")
}
fn bytes_of(path: &impl AsRef<Path>) -> &[u8] {
    path.as_ref().as_os_str().as_bytes()
}

/// Objects of the library, freed when they are dropped.
macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident($raw:ident) $free:ident $(+ $marker:ident)*;)*) => { $(
        $(#[$doc])*
        pub struct $name(NonNull<sys::$raw>);
        impl Drop for $name {
            fn drop(&mut self) {
                unsafe { sys::$free(self.0.as_ptr()) }
            }
        }
        $(unsafe impl $marker for $name {})*
    )* };
}
objects! {
    /// The weights of a checkpoint; immutable.
    Model(guanaco_model) guanaco_model_free + Send + Sync;
    /// What loading would find, from the headers of the files alone.
    Inspection(guanaco_inspection) guanaco_inspection_free + Send + Sync;
    /// Text to tokens and back; immutable.
    Tokenizer(guanaco_tokenizer) guanaco_tokenizer_free + Send + Sync;
    /// A conversation, and the published shape in which it becomes one prompt.
    Chat(guanaco_chat) guanaco_chat_free + Send;
    /// Bytes of tokens to text that can be shown at once: whole code points, and no part of a stop text.
    Stream(guanaco_stream) guanaco_stream_free + Send;
    /// The choices of one sequence.
    Sampler(guanaco_sampler) guanaco_sampler_free + Send + Sync;
    /// Tokens so far and their cache. While a [`Generation`] of it lives, the borrow checker keeps everything else from it.
    Session(guanaco_session) guanaco_session_free + Send;
}

type Progress<'a> = Box<dyn FnMut(u64, u64) -> bool + Send + 'a>;
type Log<'a> = Box<dyn FnMut(Severity, &str) + Send + 'a>;

/// What callbacks need, at an address that stays; a panic waits here until the call is over.
#[derive(Default)]
struct Callbacks<'a> {
    progress: Option<Progress<'a>>,
    log: Option<Log<'a>>,
    panic: Option<Box<dyn Any + Send>>,
}
impl Callbacks<'_> {
    /// Runs a callback, unless one panicked before; None if so, or if it does now.
    fn run<T>(&mut self, callback: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.panic.is_some() {
            return None;
        }
        catch_unwind(AssertUnwindSafe(|| callback(self))).map_err(|panic| self.panic = Some(panic)).ok()
    }
}
unsafe extern "C" fn on_progress(done: u64, total: u64, callbacks: *mut c_void) -> i32 {
    let run = |to: &mut Callbacks| to.progress.as_mut().map_or(true, |progress| progress(done, total));
    let go_on = (*callbacks.cast::<Callbacks>()).run(run).unwrap_or(false);
    i32::from(!go_on)
}
unsafe extern "C" fn on_log(severity: i32, line: *const u8, length: usize, callbacks: *mut c_void) {
    let line = String::from_utf8_lossy(array(line, length));
    (*callbacks.cast::<Callbacks>()).run(|to| to.log.as_mut().map(|log| log(Severity(severity), &line)));
}

/// Settings. What is not set is the library's default, and those of other purposes are ignored. One that is refused becomes the
/// error of the call that is given the options.
pub struct Options<'a> {
    raw: *mut sys::guanaco_options, // NULL if there was no memory: nothing can be set, and it stands for the defaults
    callbacks: *mut Callbacks<'a>,  // no Box, which would claim to be the only one that points there
    sampler: Option<&'a Sampler>,
    refused: Option<Error>,
}
unsafe impl Send for Options<'_> {}
impl Drop for Options<'_> {
    fn drop(&mut self) {
        unsafe {
            sys::guanaco_options_free(self.raw);
            drop(Box::from_raw(self.callbacks));
        }
    }
}
impl Default for Options<'_> {
    fn default() -> Self {
        Self::new()
    }
}
/// What no i64 holds is out of every range, and refused as the largest one.
fn integer(value: usize) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
/// A method for each setting, with the type that is natural in Rust.
macro_rules! settings {
    ($set:ident: $($c_name:ident = $number:literal => $name:ident($value:ident: $type:ty) $raw:expr, $doc:literal;)*) => {
        impl Options<'_> { $(
            #[doc = $doc]
            pub fn $name(self, $value: $type) -> Self {
                self.set(|options, e| unsafe { sys::$set(options, $number, $raw, e) })
            }
        )* }
    };
}
settings! { guanaco_options_set_int:
    OPTION_DEVICE = 100 => device(value: Device) value.0.into(), "Of loading.";
    OPTION_CUDA_DEVICE = 101 => cuda_device(value: usize) integer(value), "Of loading: ordinal, as in cudaSetDevice. 0.";
    OPTION_THREADS = 102 => threads(value: usize) integer(value), "Of loading. 0: as many as there are cores.";
    OPTION_ROWS = 103 => rows(value: usize) integer(value), "Of loading: most tokens in one pass over the weights. 512.";
    OPTION_ZERO_POINTS = 104 => zero_points(value: ZeroPoints) value.0.into(), "Of loading.";
    OPTION_CONTEXT = 200 => context(value: usize) integer(value), "Of a session: tokens that it has room for. 2048.";
    OPTION_SEED = 300 => seed(value: u64) value as i64, "Of a sampler. 0.";
    OPTION_TOP_K = 302 => top_k(value: usize) integer(value), "Of a sampler. 0: off.";
    OPTION_PENALTY_WINDOW = 308 => penalty_window(value: usize) integer(value), "Of a sampler. 0: all tokens count as seen.";
    OPTION_MAX_TOKENS = 400 => max_tokens(value: usize) integer(value), "Of a reply. 512.";
    OPTION_DROP_LEADING_SPACE = 401 => drop_leading_space(value: bool) value.into(), "Of a reply: true. Of a stream: false.";
    OPTION_STOP_AT_END_OF_TEXT = 402 => stop_at_end_of_text(value: bool) value.into(), "Of a reply. true.";
    OPTION_TRIM_BEFORE_STOP = 403 => trim_before_stop(value: bool) value.into(), "Of a reply or a stream. true.";
}
settings! { guanaco_options_set_float:
    OPTION_TEMPERATURE = 301 => temperature(value: f64) value, "Of a sampler. 0.7; 0: the likeliest token.";
    OPTION_TOP_P = 303 => top_p(value: f64) value, "Of a sampler. 0.9; 1: off.";
    OPTION_MIN_P = 304 => min_p(value: f64) value, "Of a sampler. 0: off.";
    OPTION_REPETITION_PENALTY = 305 => repetition_penalty(value: f64) value, "Of a sampler. 1: off.";
    OPTION_FREQUENCY_PENALTY = 306 => frequency_penalty(value: f64) value, "Of a sampler. 0: off.";
    OPTION_PRESENCE_PENALTY = 307 => presence_penalty(value: f64) value, "Of a sampler. 0: off.";
}
impl<'a> Options<'a> {
    pub fn new() -> Self {
        let (raw, refused) = match check_abi() {
            Ok(()) => (unsafe { sys::guanaco_options_new() }, None),
            Err(error) => (null_mut(), Some(error)),
        };
        Options { raw, callbacks: Box::into_raw(Box::default()), sampler: None, refused }
    }
    /// Of a reply or a stream: texts that end it and are never part of it.
    pub fn stops(mut self, stops: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        for stop in stops {
            let stop = stop.as_ref();
            self = self.set(|o, e| unsafe { sys::guanaco_options_add_stop(o, stop.as_ptr(), stop.len(), e) });
        }
        self
    }
    /// Of a reply: goes on with these choices, which are copied, instead of new ones with these options' settings.
    pub fn sampler(mut self, sampler: &'a Sampler) -> Self {
        self.sampler = Some(sampler);
        self
    }
    /// Is told the bytes of a file or the tokens of a prompt, done so far and in all; false gives up.
    pub fn progress(self, progress: impl FnMut(u64, u64) -> bool + Send + 'a) -> Self {
        unsafe { (*self.callbacks).progress = Some(Box::new(progress)) };
        self.report_progress()
    }
    /// Of loading: is given the lines of the log.
    pub fn log(self, log: impl FnMut(Severity, &str) + Send + 'a) -> Self {
        let to = self.callbacks;
        unsafe { (*to).log = Some(Box::new(log)) };
        self.set(|o, e| unsafe { sys::guanaco_options_on_log(o, Some(on_log), to.cast(), e) }).report_progress()
    }
    /// Also for the log alone: that is where a panic ends the call.
    fn report_progress(self) -> Self {
        let to = self.callbacks;
        self.set(|o, e| unsafe { sys::guanaco_options_on_progress(o, Some(on_progress), to.cast(), e) })
    }
    fn set(mut self, function: impl FnOnce(*mut sys::guanaco_options, *mut sys::guanaco_error) -> i32) -> Self {
        if self.refused.is_none() {
            self.refused = call(|e| function(self.raw, e)).err();
        }
        self
    }
    /// Runs a call that takes these options. A panic in a callback of theirs goes on here.
    fn with<T>(&mut self, run: impl FnOnce(*const sys::guanaco_options) -> Result<T>) -> Result<T> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        let result = run(self.raw);
        match unsafe { (*self.callbacks).panic.take() } {
            Some(panic) => resume_unwind(panic),
            None => result,
        }
    }
}

/// Numbers and texts, which a model and an inspection both have.
macro_rules! facts {
    ($($type:ident: $info:ident, $text:ident;)*) => { $(impl $type {
        pub fn info(&self, info: Info) -> Result<i64> {
            let mut value = 0;
            call(|e| unsafe { sys::$info(self.0.as_ptr(), info.0, &mut value, e) })?;
            Ok(value)
        }
        pub fn texts(&self, kind: Text) -> Result<Vec<String>> {
            texts(|i, text, length, e| unsafe { sys::$text(self.0.as_ptr(), kind.0, i, text, length, e) })
        }
    })* };
}
facts! {
    Model: guanaco_model_info, guanaco_model_text;
    Inspection: guanaco_inspection_info, guanaco_inspection_text;
}

impl Model {
    /// Loads a Hugging Face folder, or one .safetensors file with its neighbours.
    pub fn load(path: impl AsRef<Path>, mut options: Options) -> Result<Model> {
        let (at, n) = (bytes_of(&path).as_ptr(), bytes_of(&path).len());
        options.with(|o| make(|out, e| unsafe { sys::guanaco_model_load(at, n, o, out, e) }).map(Model))
    }
    /// [`Status::NOT_FOUND`] if the folder has none; token ids work without.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        make(|out, e| unsafe { sys::guanaco_model_tokenizer(self.0.as_ptr(), out, e) }).map(Tokenizer)
    }
}
/// What [`Model::load`] would find.
pub fn inspect(path: impl AsRef<Path>, mut options: Options) -> Result<Inspection> {
    let (at, n) = (bytes_of(&path).as_ptr(), bytes_of(&path).len());
    options.with(|o| make(|out, e| unsafe { sys::guanaco_inspect(at, n, o, out, e) }).map(Inspection))
}
/// The bytes that loading and one session will use, likewise: `estimate(...)?[Memory::HOST.0 as usize]`.
pub fn estimate(path: impl AsRef<Path>, mut options: Options) -> Result<[u64; 6]> {
    let (at, n, mut bytes) = (bytes_of(&path).as_ptr(), bytes_of(&path).len(), [0; 6]);
    options.with(|o| call(|e| unsafe { sys::guanaco_estimate(at, n, o, bytes.as_mut_ptr(), bytes.len(), e) }))?;
    Ok(bytes)
}

impl Tokenizer {
    pub fn load(file: impl AsRef<Path>) -> Result<Tokenizer> {
        let (at, n) = (bytes_of(&file).as_ptr(), bytes_of(&file).len());
        make(|out, e| unsafe { sys::guanaco_tokenizer_load(at, n, out, e) }).map(Tokenizer)
    }
    /// How many tokens it knows.
    pub fn size(&self) -> usize {
        unsafe { sys::guanaco_tokenizer_size(self.0.as_ptr()) as usize }
    }
    /// The token that begins a text.
    pub fn bos(&self) -> Option<i32> {
        Some(unsafe { sys::guanaco_tokenizer_bos(self.0.as_ptr()) }).filter(|&token| token >= 0)
    }
    /// The token that ends a text.
    pub fn eos(&self) -> Option<i32> {
        Some(unsafe { sys::guanaco_tokenizer_eos(self.0.as_ptr()) }).filter(|&token| token >= 0)
    }
    /// `begin`: of the beginning of a sequence, with bos in front; else without.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<i32>> {
        let (at, n) = (text.as_ptr(), text.len());
        fill(n + 2, |tokens, room, needed, e| unsafe {
            sys::guanaco_tokenizer_encode(self.0.as_ptr(), at, n, begin.into(), tokens, room, needed, e)
        })
    }
    /// Of text that goes on where other text ended.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<i32>> {
        let (at, n) = (text.as_ptr(), text.len());
        fill(n + 2, |tokens, room, needed, e| unsafe {
            sys::guanaco_tokenizer_encode_continuation(self.0.as_ptr(), at, n, tokens, room, needed, e)
        })
    }
    pub fn decode(&self, tokens: &[i32]) -> Result<String> {
        let (at, n) = (tokens.as_ptr(), tokens.len());
        let text = fill(8 * n, |text, room, needed, e| unsafe {
            sys::guanaco_tokenizer_decode(self.0.as_ptr(), at, n, text, room, needed, e)
        })?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
    /// The bytes of one token, possibly none or part of a code point.
    pub fn piece(&self, token: i32) -> Result<&[u8]> {
        let (mut at, mut n) = (null(), 0);
        call(|e| unsafe { sys::guanaco_tokenizer_piece(self.0.as_ptr(), token, &mut at, &mut n, e) })?;
        Ok(unsafe { array(at, n) })
    }
}

impl Chat {
    /// The shapes that there are: "guanaco", "card", and more.
    pub fn names() -> Result<Vec<String>> {
        check_abi()?;
        texts(|i, text, length, _| unsafe { sys::guanaco_chat_name(i, text, length) })
    }
    pub fn new(name: &str) -> Result<Chat> {
        make(|out, e| unsafe { sys::guanaco_chat_new(name.as_ptr(), name.len(), out, e) }).map(Chat)
    }
    pub fn add(&mut self, role: Role, text: &str) -> Result<()> {
        call(|e| unsafe { sys::guanaco_chat_add(self.0.as_ptr(), role.0, text.as_ptr(), text.len(), e) }).map(drop)
    }
    pub fn clear(&mut self) -> Result<()> {
        call(|e| unsafe { sys::guanaco_chat_clear(self.0.as_ptr(), e) }).map(drop)
    }
    /// The prompt, up to where the assistant is to speak.
    pub fn render(&mut self) -> Result<String> {
        Ok(text(|text, length, e| unsafe { sys::guanaco_chat_render(self.0.as_ptr(), text, length, e) })?.1)
    }
    /// The texts that end the assistant's turn.
    pub fn stops(&self) -> Result<Vec<String>> {
        texts(|i, text, length, e| unsafe { sys::guanaco_chat_stop(self.0.as_ptr(), i, text, length, e) })
    }
}

impl Stream {
    pub fn new(mut options: Options) -> Result<Stream> {
        options.with(|o| make(|out, e| unsafe { sys::guanaco_stream_new(o, out, e) }).map(Stream))
    }
    /// The text that these bytes release, possibly none; the last one once [`Stream::stop`] is some.
    pub fn push(&mut self, bytes: &[u8]) -> Result<String> {
        let (at, n) = (bytes.as_ptr(), bytes.len());
        Ok(text(|text, length, e| unsafe { sys::guanaco_stream_push(self.0.as_ptr(), at, n, text, length, e) })?.1)
    }
    /// What was held back.
    pub fn finish(&mut self) -> Result<String> {
        Ok(text(|text, length, e| unsafe { sys::guanaco_stream_finish(self.0.as_ptr(), text, length, e) })?.1)
    }
    /// Which stop text was found, in the order they were added.
    pub fn stop(&self) -> Option<usize> {
        unsafe { sys::guanaco_stream_stop(self.0.as_ptr()) }.try_into().ok()
    }
}

impl Sampler {
    pub fn new(mut options: Options) -> Result<Sampler> {
        options.with(|o| make(|out, e| unsafe { sys::guanaco_sampler_new(o, out, e) }).map(Sampler))
    }
    /// A copy, to branch.
    pub fn try_clone(&self) -> Result<Sampler> {
        make(|out, e| unsafe { sys::guanaco_sampler_copy(self.0.as_ptr(), out, e) }).map(Sampler)
    }
    /// Chooses the next token.
    pub fn sample(&mut self, logits: &[f32]) -> Result<i32> {
        let (at, n, mut token) = (logits.as_ptr(), logits.len(), 0);
        call(|e| unsafe { sys::guanaco_sampler_sample(self.0.as_ptr(), at, n, &mut token, e) })?;
        Ok(token)
    }
    /// Counts tokens that were not chosen here as seen, for the penalties.
    pub fn accept(&mut self, tokens: &[i32]) -> Result<()> {
        call(|e| unsafe { sys::guanaco_sampler_accept(self.0.as_ptr(), tokens.as_ptr(), tokens.len(), e) }).map(drop)
    }
}

/// What a reply goes on from: text, or tokens.
pub enum Prompt<'p> {
    Text(&'p str),
    Tokens(&'p [i32]),
}
macro_rules! prompts {
    ($($from:ty => $name:ident)*) => { $(impl<'p> From<&'p $from> for Prompt<'p> {
        fn from(prompt: &'p $from) -> Self {
            Prompt::$name(prompt)
        }
    })* };
}
prompts! { str => Text String => Text [i32] => Tokens Vec<i32> => Tokens }

impl Session {
    /// Reserves all memory that the session will use.
    pub fn new(model: &Model, mut options: Options) -> Result<Session> {
        options.with(|o| make(|out, e| unsafe { sys::guanaco_session_new(model.0.as_ptr(), o, out, e) }).map(Session))
    }
    /// Appends tokens.
    pub fn feed(&mut self, tokens: &[i32], mut options: Options) -> Result<()> {
        let (at, n) = (tokens.as_ptr(), tokens.len());
        options.with(|o| call(|e| unsafe { sys::guanaco_session_feed(self.0.as_ptr(), at, n, o, e) })).map(drop)
    }
    /// Appends tokens and gives the natural log-probability of each after all before it.
    pub fn score(&mut self, tokens: &[i32], mut options: Options) -> Result<Vec<f32>> {
        let (at, n, mut scores) = (tokens.as_ptr(), tokens.len(), vec![0.0; tokens.len()]);
        let to = scores.as_mut_ptr();
        options.with(|o| call(|e| unsafe { sys::guanaco_session_score(self.0.as_ptr(), at, n, to, o, e) }))?;
        Ok(scores)
    }
    /// Scores of the next token, as natural logs up to a constant; empty if there are none.
    pub fn logits(&self) -> &[f32] {
        let mut count = 0;
        unsafe { array(sys::guanaco_session_logits(self.0.as_ptr(), &mut count), count) }
    }
    /// All that the cache holds.
    pub fn tokens(&self) -> &[i32] {
        let mut count = 0;
        unsafe { array(sys::guanaco_session_tokens(self.0.as_ptr(), &mut count), count) }
    }
    /// How many those are.
    pub fn position(&self) -> usize {
        unsafe { sys::guanaco_session_position(self.0.as_ptr()) as usize }
    }
    /// How many there is room for.
    pub fn context(&self) -> usize {
        unsafe { sys::guanaco_session_context(self.0.as_ptr()) as usize }
    }
    /// Forgets all tokens from `position` on.
    pub fn rewind(&mut self, position: usize) -> Result<()> {
        call(|e| unsafe { sys::guanaco_session_rewind(self.0.as_ptr(), position as i64, e) }).map(drop)
    }
    /// Rewinds to the longest common beginning with a prompt; so many tokens of it need not be fed again.
    pub fn reuse(&mut self, prompt: &[i32]) -> Result<usize> {
        let (at, n, mut known) = (prompt.as_ptr(), prompt.len(), 0);
        call(|e| unsafe { sys::guanaco_session_reuse(self.0.as_ptr(), at, n, &mut known, e) })?;
        Ok(known)
    }
    /// Starts a reply; nothing is computed yet. A prompt of text begins a sequence if the session is empty, else it goes on.
    pub fn generate<'a, 'p>(
        &'a mut self, prompt: impl Into<Prompt<'p>>, mut options: Options<'a>,
    ) -> Result<Generation<'a>> {
        let (session, sampler) = (self.0.as_ptr(), options.sampler.map_or(null_mut(), |s| s.0.as_ptr()));
        let prompt = prompt.into();
        let raw = options.with(|o| make(|out, e| unsafe {
            match prompt {
                Prompt::Text(p) => sys::guanaco_generate(session, sampler, p.as_ptr(), p.len(), o, out, e),
                Prompt::Tokens(p) => sys::guanaco_generate_tokens(session, sampler, p.as_ptr(), p.len(), o, out, e),
            }
        }))?;
        let cancel = CancelHandle(Arc::new(Mutex::new(Live(raw.as_ptr()))));
        Ok(Generation { raw, cancel, options, session: PhantomData })
    }
}
/// Feeds many sessions of one model together, reading the weights once for all; all or nothing.
pub fn feed<'s>(
    feeds: impl IntoIterator<Item = (&'s mut Session, &'s [i32])>, mut options: Options,
) -> Result<()> {
    let (mut sessions, mut tokens, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (session, of) in feeds {
        sessions.push(session.0.as_ptr());
        tokens.push(of.as_ptr());
        counts.push(of.len());
    }
    let (s, t, c, n) = (sessions.as_ptr(), tokens.as_ptr(), counts.as_ptr(), counts.len());
    options.with(|o| call(|e| unsafe { sys::guanaco_session_feed_many(s, t, c, n, o, e) })).map(drop)
}

/// A token of a reply and the text that it releases: whole code points, possibly none.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    /// None if only text was released that had been held back.
    pub token: Option<i32>,
    /// Natural log, before temperature and penalties.
    pub logprob: f32,
}

/// A generation that is not freed yet, else NULL.
struct Live(*mut sys::guanaco_generation);
unsafe impl Send for Live {}

/// Ends a reply within a layer, in the middle of a long prompt too; from any thread. Does nothing once the reply is dropped.
#[derive(Clone)]
pub struct CancelHandle(Arc<Mutex<Live>>);
impl CancelHandle {
    pub fn cancel(&self) {
        unsafe { sys::guanaco_generation_cancel(self.live().0) } // which takes NULL
    }
    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply, piece by piece. It ends once the reply does, cancelled or not; after an error it tries again.
pub struct Generation<'a> {
    raw: NonNull<sys::guanaco_generation>,
    cancel: CancelHandle,
    options: Options<'a>, // the progress callback among them is called for the prompt
    session: PhantomData<&'a mut Session>,
}
unsafe impl Send for Generation<'_> {}
impl Drop for Generation<'_> {
    fn drop(&mut self) {
        let mut live = self.cancel.live(); // a cancel() that runs now is waited for
        live.0 = null_mut();
        unsafe { sys::guanaco_generation_free(self.raw.as_ptr()) }
    }
}
impl Iterator for Generation<'_> {
    type Item = Result<Piece>;
    fn next(&mut self) -> Option<Result<Piece>> {
        let (mut token, mut logprob, raw) = (0, 0.0, self.raw.as_ptr());
        let next = |at: *mut _, n: *mut _, e: *mut _| unsafe {
            sys::guanaco_generation_next(raw, at, n, &mut token, &mut logprob, e)
        };
        match self.options.with(|_| text(next)) {
            Ok((Status::OK, text)) => Some(Ok(Piece { text, token: Some(token).filter(|&id| id >= 0), logprob })),
            Ok(_) => None,
            Err(error) if error.status == Status::CANCELLED => None,
            Err(error) => Some(Err(error)),
        }
    }
}
impl Generation<'_> {
    /// The whole text from here.
    pub fn rest(&mut self) -> Result<String> {
        self.map(|piece| piece.map(|piece| piece.text)).collect()
    }
    /// Why it ended; [`Finish::NONE`] while it goes on.
    pub fn finish(&self) -> Finish {
        Finish(unsafe { sys::guanaco_generation_finish(self.raw.as_ptr()) })
    }
    /// How many tokens of the reply there are so far.
    pub fn tokens(&self) -> usize {
        unsafe { sys::guanaco_generation_tokens(self.raw.as_ptr()) as usize }
    }
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }
}
/// Computes one token for each unfinished reply of one model, in one pass; the `next()` that follows hands it out.
pub fn step<'g, 'a: 'g>(replies: impl IntoIterator<Item = &'g mut Generation<'a>>) -> Result<()> {
    let replies: Vec<_> = replies.into_iter().map(|reply| reply.raw.as_ptr()).collect();
    call(|e| unsafe { sys::guanaco_generation_step(replies.as_ptr(), replies.len(), e) }).map(drop)
}
