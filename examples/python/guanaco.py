"""Guanaco and other LLaMA checkpoints from Python: objects over <guanaco/c.h>, which says more of each function.

 - Each object is freed by `with`, by close(), or when nothing refers to it any more: in any order, and twice is
   harmless. Using one that was closed is a ValueError.
 - A failure is a GuanacoError, and the object is as before the call. What a callback raises ends the call and arrives
   at the caller.
 - Settings are keyword arguments, named as GUANACO_OPTION_ in c.h but in lower case (seed=7). None, or leaving one
   out, is the default; those of other purposes are ignored. Besides them: stops, an iterable of str; progress(done,
   total), which gives up by returning False, while None goes on; and, when loading, log(severity, line). Callbacks run
   on the thread that called; they must not compute with a model, nor wait for a thread that does with theirs.
 - Model, Inspection and Tokenizer are immutable and may be used by many threads at once, anything else by one thread
   at a time, but any; Generation.cancel() is the exception. A call into the library lets other threads run.
 - Python handles signals between calls, and as a callback is entered; there it prints what the handler raises, and
   whether the call then ends is open. So if Ctrl-C is to stop a long call, have progress() and a handler that does not
   raise but sets a flag for progress(), or calls Generation.cancel().

The library is libguanaco.so.1 as the linker finds it, or the file that the environment variable GUANACO_LIBRARY names.
"""
import enum
import os
import threading
from array import array
from ctypes import (CDLL, CFUNCTYPE, POINTER, Structure, byref, c_char, c_char_p, c_float, c_double, c_int32, c_int64,
                    c_size_t, c_uint64, c_void_p, string_at)
from functools import cached_property
from numbers import Integral, Real
from typing import NamedTuple

ABI = 1  # of libguanaco.so.1


class _Number(enum.IntEnum):
    @classmethod
    def _missing_(cls, number):  # a later library may know more
        unknown = int.__new__(cls, number)
        unknown._name_, unknown._value_ = f"UNKNOWN_{number}", number
        return unknown


def _numbers(name, prefix="", **numbers):
    """An IntEnum of c.h's numbers under c.h's names, less a prefix: FINISH_NONE=0 becomes Finish.NONE."""
    return _Number(name, {key[len(prefix):]: number for key, number in numbers.items()}, module=__name__)


Status = _numbers("Status", OK=0, END=1, CANCELLED=2, INVALID_ARGUMENT=-1, NOT_FOUND=-2, MALFORMED=-3, UNSUPPORTED=-4,
                  OUT_OF_MEMORY=-5, CONTEXT_FULL=-6, DEVICE=-7, INTERNAL=-8, BUFFER_TOO_SMALL=-9)
Option = _numbers(
    "Option", "OPTION_", OPTION_DEVICE=100, OPTION_CUDA_DEVICE=101, OPTION_THREADS=102, OPTION_ROWS=103,
    OPTION_ZERO_POINTS=104, OPTION_CONTEXT=200, OPTION_SEED=300, OPTION_TEMPERATURE=301, OPTION_TOP_K=302,
    OPTION_TOP_P=303, OPTION_MIN_P=304, OPTION_REPETITION_PENALTY=305, OPTION_FREQUENCY_PENALTY=306,
    OPTION_PRESENCE_PENALTY=307, OPTION_PENALTY_WINDOW=308, OPTION_MAX_TOKENS=400, OPTION_DROP_LEADING_SPACE=401,
    OPTION_STOP_AT_END_OF_TEXT=402, OPTION_TRIM_BEFORE_STOP=403)
Device = _numbers("Device", "DEVICE_", DEVICE_AUTOMATIC=0, DEVICE_CPU=1, DEVICE_CUDA=2)
ZeroPoints = _numbers("ZeroPoints", "ZERO_POINTS_", ZERO_POINTS_AUTOMATIC=0, ZERO_POINTS_V1=1, ZERO_POINTS_V2=2)
Severity = _numbers("Severity", "SEVERITY_", SEVERITY_DEBUG=0, SEVERITY_INFO=1, SEVERITY_WARNING=2)
Role = _numbers("Role", "ROLE_", ROLE_SYSTEM=0, ROLE_USER=1, ROLE_ASSISTANT=2)
Finish = _numbers("Finish", "FINISH_", FINISH_NONE=0, FINISH_END_OF_TEXT=1, FINISH_STOP_TEXT=2, FINISH_MAX_TOKENS=3,
                  FINISH_CONTEXT_FULL=4, FINISH_CANCELLED=5)
Info = _numbers(
    "Info", "INFO_", INFO_LAYERS=1, INFO_HEADS=2, INFO_KV_HEADS=3, INFO_HEAD_DIM=4, INFO_HIDDEN=5, INFO_FFN=6,
    INFO_VOCAB=7, INFO_CONTEXT=8, INFO_BITS=9, INFO_GROUP_SIZE=10, INFO_ACT_ORDER=11, INFO_PARAMETERS=12,
    INFO_FILE_BYTES=13, INFO_WEIGHT_BYTES=14, INFO_BYTES_PER_TOKEN=15, INFO_KV_BYTES_PER_TOKEN=16, INFO_THREADS=17,
    INFO_HAS_TOKENIZER=18)
Text = _numbers("Text", "TEXT_", TEXT_DEVICE=1, TEXT_FORMAT=2, TEXT_DECISION=3, TEXT_WARNING=4, TEXT_IGNORED=5)
Memory = _numbers("Memory", "MEMORY_", MEMORY_WEIGHTS=0, MEMORY_SCRATCH=1, MEMORY_SESSION=2, MEMORY_LOADING=3,
                  MEMORY_HOST=4, MEMORY_DEVICE=5)
_FLOATS = (Option.TEMPERATURE, Option.TOP_P, Option.MIN_P, Option.REPETITION_PENALTY, Option.FREQUENCY_PENALTY,
           Option.PRESENCE_PENALTY)


class _Error(Structure):
    _fields_ = [("status", c_int32), ("message", c_char * 508)]


_Progress = CFUNCTYPE(c_int32, c_uint64, c_uint64, c_void_p)
_Log = CFUNCTYPE(None, c_int32, c_void_p, c_size_t, c_void_p)
_object, _objects, _ints, _floats = c_void_p, POINTER(c_void_p), POINTER(c_int32), POINTER(c_float)
_bytes = POINTER(c_char)
_size, _text, _error = POINTER(c_size_t), POINTER(_bytes), POINTER(_Error)  # where these are results

# RTLD_DEEPBIND: the tokenizer's sentencepiece has a protobuf of its own, which must not meet another one.
_lib = CDLL(os.environ.get("GUANACO_LIBRARY", "libguanaco.so.1"), os.RTLD_NOW | getattr(os, "RTLD_DEEPBIND", 0))
_lib.guanaco_abi.argtypes, _lib.guanaco_abi.restype = (), c_int32
if _lib.guanaco_abi() != ABI:
    raise ImportError(f"needs ABI {ABI} of libguanaco, but {_lib._name} has ABI {_lib.guanaco_abi()}")

for _result, _functions in (
    (c_int32, dict(  # a status; all but the first take an error last
        guanaco_chat_name=(c_size_t, _text, _size),
        guanaco_options_set_int=(_object, c_int32, c_int64, _error),
        guanaco_options_set_float=(_object, c_int32, c_double, _error),
        guanaco_options_add_stop=(_object, c_char_p, c_size_t, _error),
        guanaco_options_on_progress=(_object, _Progress, c_void_p, _error),
        guanaco_options_on_log=(_object, _Log, c_void_p, _error),
        guanaco_model_load=(c_char_p, c_size_t, _object, _objects, _error),
        guanaco_model_info=(_object, c_int32, POINTER(c_int64), _error),
        guanaco_model_text=(_object, c_int32, c_size_t, _text, _size, _error),
        guanaco_model_tokenizer=(_object, _objects, _error),
        guanaco_inspect=(c_char_p, c_size_t, _object, _objects, _error),
        guanaco_inspection_info=(_object, c_int32, POINTER(c_int64), _error),
        guanaco_inspection_text=(_object, c_int32, c_size_t, _text, _size, _error),
        guanaco_estimate=(c_char_p, c_size_t, _object, POINTER(c_uint64), c_size_t, _error),
        guanaco_tokenizer_load=(c_char_p, c_size_t, _objects, _error),
        guanaco_tokenizer_encode=(_object, c_char_p, c_size_t, c_int32, _ints, c_size_t, _size, _error),
        guanaco_tokenizer_encode_continuation=(_object, c_char_p, c_size_t, _ints, c_size_t, _size, _error),
        guanaco_tokenizer_decode=(_object, _ints, c_size_t, _bytes, c_size_t, _size, _error),
        guanaco_tokenizer_piece=(_object, c_int32, _text, _size, _error),
        guanaco_chat_new=(c_char_p, c_size_t, _objects, _error),
        guanaco_chat_add=(_object, c_int32, c_char_p, c_size_t, _error),
        guanaco_chat_clear=(_object, _error),
        guanaco_chat_render=(_object, _text, _size, _error),
        guanaco_chat_stop=(_object, c_size_t, _text, _size, _error),
        guanaco_stream_new=(_object, _objects, _error),
        guanaco_stream_push=(_object, c_char_p, c_size_t, _text, _size, _error),
        guanaco_stream_finish=(_object, _text, _size, _error),
        guanaco_sampler_new=(_object, _objects, _error),
        guanaco_sampler_copy=(_object, _objects, _error),
        guanaco_sampler_sample=(_object, _floats, c_size_t, _ints, _error),
        guanaco_sampler_accept=(_object, _ints, c_size_t, _error),
        guanaco_session_new=(_object, _object, _objects, _error),
        guanaco_session_feed=(_object, _ints, c_size_t, _object, _error),
        guanaco_session_feed_many=(_objects, POINTER(_ints), _size, c_size_t, _object, _error),
        guanaco_session_score=(_object, _ints, c_size_t, _floats, _object, _error),
        guanaco_session_rewind=(_object, c_int64, _error),
        guanaco_session_reuse=(_object, _ints, c_size_t, _size, _error),
        guanaco_generate=(_object, _object, c_char_p, c_size_t, _object, _objects, _error),
        guanaco_generate_tokens=(_object, _object, _ints, c_size_t, _object, _objects, _error),
        guanaco_generation_next=(_object, _text, _size, _ints, _floats, _error),
        guanaco_generation_step=(_objects, c_size_t, _error))),
    (c_char_p, dict(guanaco_version=(), guanaco_status_name=(c_int32,))),
    (c_void_p, dict(guanaco_options_new=(), guanaco_session_logits=(_object, _size),
                    guanaco_session_tokens=(_object, _size))),
    (c_int32, dict.fromkeys(("guanaco_tokenizer_size", "guanaco_tokenizer_bos", "guanaco_tokenizer_eos",
                             "guanaco_generation_finish"), (_object,))),
    (c_int64, dict.fromkeys(("guanaco_stream_stop", "guanaco_session_position", "guanaco_session_context",
                             "guanaco_generation_tokens"), (_object,))),
    (None, dict.fromkeys(("guanaco_options_free", "guanaco_model_free", "guanaco_inspection_free",
                          "guanaco_tokenizer_free", "guanaco_chat_free", "guanaco_stream_free", "guanaco_sampler_free",
                          "guanaco_session_free", "guanaco_generation_free", "guanaco_generation_cancel"),
                         (_object,)))):
    for _name, _arguments in _functions.items():
        _function = getattr(_lib, _name)
        _function.restype, _function.argtypes = _result, _arguments

version = _lib.guanaco_version().decode()


class GuanacoError(Exception):
    """What failed, in one line; status is a Status, CANCELLED if a callback said so."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = Status(status)


def _call(function, *arguments):
    error = _Error()
    status = function(*arguments, byref(error))
    if status < 0:
        raise GuanacoError(status, error.message.decode(errors="replace"))
    return status


def _text_of(function, *arguments):
    """A text that is a result, and whether there is more: not at END."""
    text, length = _bytes(), c_size_t()
    status = _call(function, *arguments, byref(text), byref(length))
    return text[:length.value], status != Status.END


def _texts(function, *arguments):
    texts = []
    text, there = _text_of(function, *arguments, 0)
    while there:
        texts.append(text.decode())
        text, there = _text_of(function, *arguments, len(texts))
    return texts


def _filled(kind, guess, function, *arguments):
    """What a function writes into an array of the caller's, made anew if the guess was too small."""
    content, needed = (kind * guess)(), c_size_t()
    try:
        _call(function, *arguments, content, guess, byref(needed))
    except GuanacoError as error:
        if error.status != Status.BUFFER_TOO_SMALL:
            raise
        content = (kind * needed.value)()
        _call(function, *arguments, content, needed.value, byref(needed))
    return content[:needed.value]


def _natural(number):
    return number if number >= 0 else None


def _pointers(objects):
    return (c_void_p * len(objects))(*[one._pointer for one in objects])


def _array(kind, values):
    """(array, length) of c_int32 or c_float; a number that does not fit is an OverflowError, and not cut."""
    values = array("i" if kind is c_int32 else "f", values)
    return (kind * len(values)).from_buffer(values), len(values)


def _sized(text):
    return text, len(text)


class _Object:
    """One of the library's objects, to be freed."""

    def _make(self, function, *arguments, options=None):
        made = c_void_p()
        try:
            if options is None:
                _call(function, *arguments, byref(made))
            else:
                options.call(function, *arguments, options._pointer, byref(made))
        finally:  # a callback may have raised although there is an object
            self._pointer = made.value

    def __getattr__(self, name):  # comes here only for what is not there
        if name == "_pointer":
            raise ValueError(f"{type(self).__name__} is closed")
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def close(self):
        self._free(self.__dict__.pop("_pointer", None))

    def __del__(self):
        if "_pointer" in self.__dict__:
            self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Options(_Object):
    """Settings as the library takes them. What a callback raises must not enter it, and waits for the call's end."""
    _free = _lib.guanaco_options_free

    def __init__(self, stops=(), progress=None, log=None, **values):
        if isinstance(stops, str):  # else each of its characters would be a stop
            raise TypeError("stops is a str, but has to be an iterable of them")
        self._pointer = _lib.guanaco_options_new()
        if self._pointer is None:
            raise MemoryError
        self.raised = raised = []

        def guarded(callback):
            def call(*arguments):
                if raised:
                    return True
                try:
                    answer = callback(*arguments)
                    return answer is not None and not answer
                except BaseException as error:
                    raised.append(error)
                    return True
            return call

        if progress is not None or log is not None:  # for what log raises, too, to end the call
            self._progress = _Progress(guarded(lambda done, total, _: progress is None or progress(done, total)))
            _call(_lib.guanaco_options_on_progress, self._pointer, self._progress, None)
        if log is not None:
            self._log = _Log(guarded(lambda severity, line, length, _: log(
                Severity(severity), string_at(line, length).decode())))
            _call(_lib.guanaco_options_on_log, self._pointer, self._log, None)
        for stop in stops:
            _call(_lib.guanaco_options_add_stop, self._pointer, *_sized(stop.encode()))
        for name, value in values.items():
            option = Option.__members__.get(name.upper())
            if option is None:
                raise TypeError(f"there is no option {name}")
            if value is None:
                continue
            kind = Real if option in _FLOATS else Integral
            if not isinstance(value, kind):
                raise TypeError(f"{name}: expected a{' whole' if kind is Integral else ''} number, found {value!r}")
            if kind is Real:
                _call(_lib.guanaco_options_set_float, self._pointer, option, float(value))
            elif -1 << 63 <= value < 1 << 64:  # a seed may be any 64 bits
                _call(_lib.guanaco_options_set_int, self._pointer, option, int(value))
            else:
                raise OverflowError(f"{name}: {value} has more than 64 bits")

    def raise_first(self):
        if self.raised:
            first = self.raised[0]
            self.raised.clear()
            try:
                raise first
            finally:
                del first  # its traceback has this frame: a circle would keep the caller's objects until a collection

    def call(self, function, *arguments):
        try:
            status = _call(function, *arguments)
        finally:
            self.raise_first()
        if status == Status.CANCELLED:
            raise GuanacoError(status, _lib.guanaco_status_name(status).decode())


class _Described(_Object):
    def info(self, number):
        """One of Info."""
        value = c_int64()
        _call(self._info, self._pointer, number, byref(value))
        return value.value

    def texts(self, kind):
        """A list: one Text.DEVICE and one FORMAT, any number of the others."""
        return _texts(self._text, self._pointer, kind)


class Model(_Described):
    """Weights: a folder as Hugging Face has it, or one .safetensors file with its neighbours."""
    _free, _info, _text = _lib.guanaco_model_free, _lib.guanaco_model_info, _lib.guanaco_model_text

    def __init__(self, path, **options):
        self._make(_lib.guanaco_model_load, *_sized(os.fsencode(path)), options=_Options(**options))

    @cached_property
    def tokenizer(self):
        """NOT_FOUND if the folder has none; token ids work without."""
        tokenizer = Tokenizer.__new__(Tokenizer)
        tokenizer._make(_lib.guanaco_model_tokenizer, self._pointer)
        return tokenizer


class Inspection(_Described):
    """What loading would find, from the headers of the files alone."""
    _free, _info, _text = _lib.guanaco_inspection_free, _lib.guanaco_inspection_info, _lib.guanaco_inspection_text

    def __init__(self, path, **options):
        self._make(_lib.guanaco_inspect, *_sized(os.fsencode(path)), options=_Options(**options))


def estimate(path, **options):
    """The bytes that loading and one session will use, likewise: a dict by Memory."""
    options, count = _Options(**options), (c_uint64 * len(Memory))()
    options.call(_lib.guanaco_estimate, *_sized(os.fsencode(path)), options._pointer, count, len(count))
    return {use: count[use] for use in Memory}


class Tokenizer(_Object):
    """A file tokenizer.model. len() is the number of pieces; bos and eos are None if there are none."""
    _free = _lib.guanaco_tokenizer_free

    def __init__(self, file):
        self._make(_lib.guanaco_tokenizer_load, *_sized(os.fsencode(file)))

    def __len__(self):
        return _lib.guanaco_tokenizer_size(self._pointer)

    @property
    def bos(self):
        return _natural(_lib.guanaco_tokenizer_bos(self._pointer))

    @property
    def eos(self):
        return _natural(_lib.guanaco_tokenizer_eos(self._pointer))

    def encode(self, text, begin=True):
        """The tokens of a text that begins a sequence, with or without bos in front."""
        text = text.encode()
        return _filled(c_int32, len(text) + 2, _lib.guanaco_tokenizer_encode, self._pointer, *_sized(text), begin)

    def encode_continuation(self, text):
        """The tokens of a text that goes on where other text ended."""
        text = text.encode()
        return _filled(c_int32, len(text) + 2, _lib.guanaco_tokenizer_encode_continuation, self._pointer, *_sized(text))

    def decode(self, tokens):
        tokens, count = _array(c_int32, tokens)
        return _filled(c_char, 8 * count, _lib.guanaco_tokenizer_decode, self._pointer, tokens, count).decode()

    def piece(self, token):
        """The bytes of one token, possibly none or part of a character."""
        return _text_of(_lib.guanaco_tokenizer_piece, self._pointer, token)[0]


class Chat(_Object):
    """A conversation, and the published shape, one of names(), in which it becomes one prompt."""
    _free = _lib.guanaco_chat_free

    def __init__(self, name="guanaco"):
        self._make(_lib.guanaco_chat_new, *_sized(name.encode()))

    @staticmethod
    def names():
        return _texts(lambda index, text, length, _: _lib.guanaco_chat_name(index, text, length))

    @property
    def stops(self):
        """Texts that end the assistant's turn; a list, for the option of that name."""
        return _texts(_lib.guanaco_chat_stop, self._pointer)

    def add(self, role, text):
        _call(_lib.guanaco_chat_add, self._pointer, role, *_sized(text.encode()))

    def clear(self):
        _call(_lib.guanaco_chat_clear, self._pointer)

    def render(self):
        """The prompt, up to where the assistant is to speak."""
        return _text_of(_lib.guanaco_chat_render, self._pointer)[0].decode()


class Stream(_Object):
    """Bytes of tokens to text that can be shown at once."""
    _free = _lib.guanaco_stream_free

    def __init__(self, **options):
        self._make(_lib.guanaco_stream_new, options=_Options(**options))

    @property
    def stop(self):
        """Which of the stops was found; None: none yet."""
        return _natural(_lib.guanaco_stream_stop(self._pointer))

    def push(self, data):
        """The text that these bytes release, possibly none."""
        return _text_of(_lib.guanaco_stream_push, self._pointer, *_sized(data))[0].decode()

    def finish(self):
        """What was held back."""
        return _text_of(_lib.guanaco_stream_finish, self._pointer)[0].decode()


class Sampler(_Object):
    """The choices of one sequence."""
    _free = _lib.guanaco_sampler_free

    def __init__(self, **options):
        self._make(_lib.guanaco_sampler_new, options=_Options(**options))

    def copy(self):
        copy = Sampler.__new__(Sampler)
        copy._make(_lib.guanaco_sampler_copy, self._pointer)
        return copy

    def sample(self, logits):
        token = c_int32()
        _call(_lib.guanaco_sampler_sample, self._pointer, *_array(c_float, logits), byref(token))
        return token.value

    def accept(self, tokens):
        """Counts tokens that were not chosen here as seen, for the penalties."""
        _call(_lib.guanaco_sampler_accept, self._pointer, *_array(c_int32, tokens))


class Session(_Object):
    """The tokens so far and their cache. Keeps the model. While a Generation of it lives, only properties work."""
    _free = _lib.guanaco_session_free

    def __init__(self, model, **options):
        self._make(_lib.guanaco_session_new, model._pointer, options=_Options(**options))

    def feed(self, tokens, **options):
        options = _Options(**options)
        options.call(_lib.guanaco_session_feed, self._pointer, *_array(c_int32, tokens), options._pointer)

    def score(self, tokens, **options):
        """Feeds, and gives the natural log-probability of each token after all before it."""
        options, (tokens, count) = _Options(**options), _array(c_int32, tokens)
        scores = (c_float * count)()
        options.call(_lib.guanaco_session_score, self._pointer, tokens, count, scores, options._pointer)
        return list(scores)

    @property
    def logits(self):
        """Scores of the next token, as natural logs up to a constant; an array("f"), empty if there are none."""
        count = c_size_t()
        logits = _lib.guanaco_session_logits(self._pointer, byref(count))
        return array("f", string_at(logits, 4 * count.value))

    @property
    def tokens(self):
        """All that the cache holds."""
        count = c_size_t()
        tokens = _lib.guanaco_session_tokens(self._pointer, byref(count))
        return array("i", string_at(tokens, 4 * count.value)).tolist()

    @property
    def position(self):
        """Tokens so far."""
        return _lib.guanaco_session_position(self._pointer)

    @property
    def context(self):
        """Tokens there is room for."""
        return _lib.guanaco_session_context(self._pointer)

    def rewind(self, position):
        """Forgets all tokens from there on."""
        _call(_lib.guanaco_session_rewind, self._pointer, position)

    def reuse(self, prompt):
        """Rewinds to the longest common beginning with these tokens; as many of them need not be fed again."""
        known = c_size_t()
        _call(_lib.guanaco_session_reuse, self._pointer, *_array(c_int32, prompt), byref(known))
        return known.value

    def generate(self, prompt, sampler=None, **options):
        """Starts a Generation; nothing is computed yet. The prompt is tokens, or a str, which begins a sequence if the
        session is empty and else goes on. The sampler is copied; None is one with the options' settings."""
        return Generation(self, prompt, sampler, **options)


def feed(sessions, tokens, **options):
    """Feeds many sessions of one model together, each its tokens, reading the weights once for all; all or nothing."""
    options, lists = _Options(**options), [_array(c_int32, one) for one in tokens]
    if len(lists) != len(sessions):
        raise ValueError(f"{len(sessions)} sessions, tokens for {len(lists)}")
    options.call(_lib.guanaco_session_feed_many, _pointers(sessions), (_ints * len(lists))(*[one for one, _ in lists]),
                 (c_size_t * len(lists))(*[count for _, count in lists]), len(lists), options._pointer)


class Piece(NamedTuple):
    text: str  # whole characters, possibly none
    token: int  # -1 if only text was released
    logprob: float  # natural log, before temperature and penalties


class Generation(_Object):
    """A reply: an iterator of its str, one for each token. Keeps the session."""
    _free = _lib.guanaco_generation_free

    def __init__(self, session, prompt, sampler=None, **options):
        self._lock = threading.RLock()  # cancel() may come while close() runs, in a signal handler of its thread too
        self._options = _Options(**options)  # has the callback, which is called until the prompt is read
        self._text, self._length, self._token, self._logprob, self._error = results = (
            _bytes(), c_size_t(), c_int32(), c_float(), _Error())
        self._results = [byref(result) for result in results]  # once, because __next__() is called often
        generate, prompt = ((_lib.guanaco_generate, _sized(prompt.encode())) if isinstance(prompt, str) else
                            (_lib.guanaco_generate_tokens, _array(c_int32, prompt)))
        self._make(generate, session._pointer, None if sampler is None else sampler._pointer, *prompt,
                   options=self._options)

    def __iter__(self):
        return self

    def __next__(self):
        """The next token, computed now unless step() did. Ends with the reply, cancelled or not: see finish."""
        status = _lib.guanaco_generation_next(self._pointer, *self._results)
        if status or self._options.raised:
            self._options.raise_first()
            if status < 0:
                raise GuanacoError(status, self._error.message.decode(errors="replace"))
            raise StopIteration
        return self._text[:self._length.value].decode()

    def pieces(self):
        """An iterator of Piece instead."""
        for text in self:
            yield Piece(text, self._token.value, self._logprob.value)

    @property
    def finish(self):
        """Why it ended: Finish.NONE while it goes on."""
        return Finish(_lib.guanaco_generation_finish(self._pointer))

    @property
    def tokens(self):
        """Of the reply so far, their number."""
        return _lib.guanaco_generation_tokens(self._pointer)

    def cancel(self):
        """Ends the reply within a layer, in the middle of a long prompt too. From any thread, at any time."""
        with self._lock:
            if "_pointer" in self.__dict__:
                _lib.guanaco_generation_cancel(self._pointer)

    def close(self):
        with self._lock:
            super().close()


def step(generations):
    """One pass for many generations of one model; the next piece of each is what it made."""
    _call(_lib.guanaco_generation_step, _pointers(generations), len(generations))
