/* guanaco/c.h - the stable C ABI of libguanaco: what <guanaco/guanaco.h> offers, for every language. C99.
 *
 * True of every function:
 *  - A status of 0 is success, a positive one an outcome (GUANACO_END, GUANACO_CANCELLED), a negative one a failure:
 *    `status < 0` is the only error test.
 *  - `error` comes last, may be NULL, is the caller's memory and is written on failure only: one line that names the
 *    culprit, what was expected and what was found. Nothing is thread-local, nothing has to be freed.
 *  - After anything but success *out is NULL, all other results are 0 or NULL, and objects are as before the call. A NULL
 *    argument where an object, text, array or result is needed is GUANACO_INVALID_ARGUMENT. Where a function differs, it
 *    says so.
 *  - Text is UTF-8 with a length in bytes, never NUL-terminated; the pointer may be NULL if the length is 0. Arguments
 *    are read during the call only. Text that is returned lives until the next call on its object or its end.
 *  - Objects may be freed in any order, by any thread: a session keeps its model, a generation its session. Freeing
 *    NULL does nothing.
 *  - Calls that take an object as const may overlap each other; a call that takes it as non-const must be alone on that
 *    object. guanaco_generation_next and _step are non-const calls on the generation's session, too. The exception is
 *    guanaco_generation_cancel: any thread, any time between making and freeing the generation. No object belongs to
 *    the thread that made it.
 *  - Callbacks run on the thread that called, inside the call; they must not unwind (throw, longjmp), change or free
 *    objects that the call uses, nor wait for a thread that uses its model. What would compute with a model
 *    (session_new, feed, score, next, step) is GUANACO_INVALID_ARGUMENT in callbacks of what computes; all else works
 *    there, guanaco_generation_cancel of the call's own generation, too. They should be short: others wait behind them.
 *  - Nothing is printed, no signal handler is installed, the process is never ended; but where an allocation fails while
 *    a tokenizer is loaded or a text encoded, sentencepiece's protobuf may print and end it. Memory that is short before
 *    such a call is GUANACO_OUT_OF_MEMORY; what other threads take meanwhile is not foreseen. A process that has a
 *    protobuf of its own in its global scope, as one linked with libprotobuf, opens this library by
 *    dlopen(RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND), from C++, too; else sentencepiece meets the wrong one: that prints
 *    a line, and loading a tokenizer is GUANACO_UNSUPPORTED. After fork() the child may use models of the CPU that no
 *    other thread was using at that moment, and load others.
 *  - No struct here ever grows, no number is ever reused. New functions and numbers may come with any version. */
#ifndef GUANACO_C_H
#define GUANACO_C_H

#include <stddef.h>
#include <stdint.h>

#define GUANACO_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define GUANACO_ABI 1 /* the N of libguanaco.so.N */

typedef struct guanaco_options guanaco_options;       /* settings by number */
typedef struct guanaco_model guanaco_model;           /* weights; immutable */
typedef struct guanaco_inspection guanaco_inspection; /* what a folder holds; immutable */
typedef struct guanaco_tokenizer guanaco_tokenizer;   /* immutable */
typedef struct guanaco_chat guanaco_chat;             /* a conversation and its shape */
typedef struct guanaco_stream guanaco_stream;         /* bytes of tokens to text */
typedef struct guanaco_sampler guanaco_sampler;       /* choices of one sequence */
typedef struct guanaco_session guanaco_session;       /* tokens so far and their cache */
typedef struct guanaco_generation guanaco_generation; /* a reply */

typedef int32_t guanaco_status; /* int32_t, not an enum, whose width is the compiler's */
enum {
  GUANACO_OK = 0,
  GUANACO_END = 1,              /* nothing more to give */
  GUANACO_CANCELLED = 2,        /* a callback or guanaco_generation_cancel asked for it */
  GUANACO_INVALID_ARGUMENT = -1,
  GUANACO_NOT_FOUND = -2,       /* no such file, or a folder without what is needed */
  GUANACO_MALFORMED = -3,       /* a file that contradicts its format or itself */
  GUANACO_UNSUPPORTED = -4,     /* a valid file or request that this library does not handle */
  GUANACO_OUT_OF_MEMORY = -5,   /* of the host or the device */
  GUANACO_CONTEXT_FULL = -6,    /* more tokens than the session reserved room for */
  GUANACO_DEVICE = -7,          /* a CUDA call failed */
  GUANACO_INTERNAL = -8,        /* a bug in this library */
  GUANACO_BUFFER_TOO_SMALL = -9 /* *needed says what is enough */
};
typedef struct guanaco_error {
  guanaco_status status;
  char message[508]; /* one line of UTF-8, NUL-terminated, cut at a code point if need be */
} guanaco_error;

/* Settings; [range], default. guanaco/model.h, session.h and sampler.h say more of each. */
typedef int32_t guanaco_option;
enum {
  /* of loading */
  GUANACO_OPTION_DEVICE = 100,      /* one of GUANACO_DEVICE_, AUTOMATIC */
  GUANACO_OPTION_CUDA_DEVICE = 101, /* [0, ...), 0: ordinal, as in cudaSetDevice */
  GUANACO_OPTION_THREADS = 102,     /* [0, 1024], 0: as many as the machine has cores for this process */
  GUANACO_OPTION_ROWS = 103,        /* [1, 4096], 512: most tokens in one pass over the weights */
  GUANACO_OPTION_ZERO_POINTS = 104, /* one of GUANACO_ZERO_POINTS_, AUTOMATIC */
  /* of a session, and of guanaco_estimate */
  GUANACO_OPTION_CONTEXT = 200,     /* [1, 2^24], 2048: tokens a session has room for */
  /* of a sampler; (float) */
  GUANACO_OPTION_SEED = 300,               /* any 64 bits, 0 */
  GUANACO_OPTION_TEMPERATURE = 301,        /* (float) [0, inf), 0.7; 0: the likeliest token */
  GUANACO_OPTION_TOP_K = 302,              /* [0, ...), 0: off */
  GUANACO_OPTION_TOP_P = 303,              /* (float) (0, 1], 0.9; 1: off */
  GUANACO_OPTION_MIN_P = 304,              /* (float) [0, 1], 0: off */
  GUANACO_OPTION_REPETITION_PENALTY = 305, /* (float) (0, inf), 1: off */
  GUANACO_OPTION_FREQUENCY_PENALTY = 306,  /* (float) 0: off */
  GUANACO_OPTION_PRESENCE_PENALTY = 307,   /* (float) 0: off */
  GUANACO_OPTION_PENALTY_WINDOW = 308,     /* [0, ...), 0: all tokens count as seen, else the last n */
  /* of a generation; 401, 403 and stop texts also of a stream */
  GUANACO_OPTION_MAX_TOKENS = 400,          /* [1, ...), 512 */
  GUANACO_OPTION_DROP_LEADING_SPACE = 401,  /* 0 or 1; 1 in generations, 0 in streams */
  GUANACO_OPTION_STOP_AT_END_OF_TEXT = 402, /* 0 or 1, 1 */
  GUANACO_OPTION_TRIM_BEFORE_STOP = 403     /* 0 or 1, 1: drop the ASCII white space before a stop text */
};
enum { GUANACO_DEVICE_AUTOMATIC = 0, GUANACO_DEVICE_CPU = 1, GUANACO_DEVICE_CUDA = 2 };
enum { GUANACO_ZERO_POINTS_AUTOMATIC = 0, GUANACO_ZERO_POINTS_V1 = 1, GUANACO_ZERO_POINTS_V2 = 2 };
enum { GUANACO_SEVERITY_DEBUG = 0, GUANACO_SEVERITY_INFO = 1, GUANACO_SEVERITY_WARNING = 2 };
enum { GUANACO_ROLE_SYSTEM = 0, GUANACO_ROLE_USER = 1, GUANACO_ROLE_ASSISTANT = 2 };
enum { /* why a generation ended */
  GUANACO_FINISH_NONE = 0,
  GUANACO_FINISH_END_OF_TEXT = 1,
  GUANACO_FINISH_STOP_TEXT = 2,
  GUANACO_FINISH_MAX_TOKENS = 3,
  GUANACO_FINISH_CONTEXT_FULL = 4,
  GUANACO_FINISH_CANCELLED = 5
};
enum { /* numbers of a model; guanaco::ModelInfo */
  GUANACO_INFO_LAYERS = 1,
  GUANACO_INFO_HEADS = 2,
  GUANACO_INFO_KV_HEADS = 3,
  GUANACO_INFO_HEAD_DIM = 4,
  GUANACO_INFO_HIDDEN = 5,
  GUANACO_INFO_FFN = 6,
  GUANACO_INFO_VOCAB = 7,   /* logits of a token; may exceed the tokenizer's size */
  GUANACO_INFO_CONTEXT = 8, /* positions it was trained for */
  GUANACO_INFO_BITS = 9,        /* of a quantised weight; 16 or 32 where none is quantised */
  GUANACO_INFO_GROUP_SIZE = 10, /* input rows that share a scale; -1: the whole column; 0: not quantised */
  GUANACO_INFO_ACT_ORDER = 11, /* 0 or 1 */
  GUANACO_INFO_PARAMETERS = 12,
  GUANACO_INFO_FILE_BYTES = 13,
  GUANACO_INFO_WEIGHT_BYTES = 14,
  GUANACO_INFO_BYTES_PER_TOKEN = 15,
  GUANACO_INFO_KV_BYTES_PER_TOKEN = 16,
  GUANACO_INFO_THREADS = 17,
  GUANACO_INFO_HAS_TOKENIZER = 18 /* 0 or 1; of an inspection always 0 */
};
enum { /* texts of a model; those that are lists go on until GUANACO_END */
  GUANACO_TEXT_DEVICE = 1, /* where it runs */
  GUANACO_TEXT_FORMAT = 2,
  GUANACO_TEXT_DECISION = 3, /* list: where each setting came from */
  GUANACO_TEXT_WARNING = 4,  /* list: contradictions and how they were resolved, and guesses */
  GUANACO_TEXT_IGNORED = 5   /* list: names of tensors that were not used */
};
enum { /* places in the array of guanaco_estimate; guanaco::MemoryEstimate */
  GUANACO_MEMORY_WEIGHTS = 0,
  GUANACO_MEMORY_SCRATCH = 1,
  GUANACO_MEMORY_SESSION = 2,
  GUANACO_MEMORY_LOADING = 3,
  GUANACO_MEMORY_HOST = 4,
  GUANACO_MEMORY_DEVICE = 5
};

/* Done so far and in all: bytes of a file, or tokens of a prompt. Not 0: give up, the call ends in GUANACO_CANCELLED. */
typedef int32_t (*guanaco_progress_fn)(uint64_t done, uint64_t total, void* user_data);
typedef void (*guanaco_log_fn)(int32_t severity, const char* line, size_t length, void* user_data);

/* ---- Version. Bindings check guanaco_abi() == GUANACO_ABI before anything else. */
GUANACO_API int32_t guanaco_abi(void);
GUANACO_API const char* guanaco_version(void);                      /* "0.1.0", static, NUL-terminated */
GUANACO_API const char* guanaco_status_name(guanaco_status status); /* "malformed", likewise; "unknown" for others */

/* ---- Options. Wherever they are taken NULL means defaults, and those of other purposes are ignored. An unknown number
 * or a value outside the range is GUANACO_INVALID_ARGUMENT, at once. Functions keep nothing of the options, but a
 * generation keeps the progress callback, for its prompt. */
GUANACO_API guanaco_options* guanaco_options_new(void); /* NULL: out of memory */
GUANACO_API void guanaco_options_free(guanaco_options* options);
GUANACO_API guanaco_status guanaco_options_set_int(guanaco_options* options, guanaco_option option, int64_t value,
                                                   guanaco_error* error);
GUANACO_API guanaco_status guanaco_options_set_float(guanaco_options* options, guanaco_option option, double value,
                                                     guanaco_error* error);
/* A text that ends a generation or a stream, and is never part of its text. */
GUANACO_API guanaco_status guanaco_options_add_stop(guanaco_options* options, const char* text, size_t length,
                                                    guanaco_error* error);
/* Of loading, feeding, scoring and generating; fn may be NULL for none. */
GUANACO_API guanaco_status guanaco_options_on_progress(guanaco_options* options, guanaco_progress_fn fn,
                                                       void* user_data, guanaco_error* error);
GUANACO_API guanaco_status guanaco_options_on_log(guanaco_options* options, guanaco_log_fn fn, void* user_data,
                                                  guanaco_error* error);

/* ---- Model: a Hugging Face folder, or one .safetensors file with its neighbours. */
GUANACO_API guanaco_status guanaco_model_load(const char* path, size_t length, const guanaco_options* options,
                                              guanaco_model** out, guanaco_error* error);
GUANACO_API void guanaco_model_free(guanaco_model* model);
GUANACO_API guanaco_status guanaco_model_info(const guanaco_model* model, int32_t info, int64_t* value,
                                              guanaco_error* error);
/* The index-th text of a kind, GUANACO_END past the last; lives as long as the model. */
GUANACO_API guanaco_status guanaco_model_text(const guanaco_model* model, int32_t kind, size_t index,
                                              const char** text, size_t* length, guanaco_error* error);
/* GUANACO_NOT_FOUND if the folder has none; token ids work without. */
GUANACO_API guanaco_status guanaco_model_tokenizer(const guanaco_model* model, guanaco_tokenizer** out,
                                                   guanaco_error* error);

/* What loading would find, from the headers of the files alone: where only the weights can tell, the larger numbers and
 * act_order 1. */
GUANACO_API guanaco_status guanaco_inspect(const char* path, size_t length, const guanaco_options* options,
                                           guanaco_inspection** out, guanaco_error* error);
GUANACO_API void guanaco_inspection_free(guanaco_inspection* inspection);
GUANACO_API guanaco_status guanaco_inspection_info(const guanaco_inspection* inspection, int32_t info, int64_t* value,
                                                   guanaco_error* error);
GUANACO_API guanaco_status guanaco_inspection_text(const guanaco_inspection* inspection, int32_t kind, size_t index,
                                                   const char** text, size_t* length, guanaco_error* error);
/* The memory that loading and one session will use, likewise: bytes[GUANACO_MEMORY_...], as many as fit in. */
GUANACO_API guanaco_status guanaco_estimate(const char* path, size_t length, const guanaco_options* options,
                                            uint64_t* bytes, size_t count, guanaco_error* error);

/* ---- Tokenizer. `tokens` and `text` may be NULL if capacity is 0; *needed always receives the full size, and with
 * GUANACO_BUFFER_TOO_SMALL nothing else is written. */
GUANACO_API guanaco_status guanaco_tokenizer_load(const char* file, size_t length, guanaco_tokenizer** out,
                                                  guanaco_error* error);
GUANACO_API void guanaco_tokenizer_free(guanaco_tokenizer* tokenizer);
GUANACO_API int32_t guanaco_tokenizer_size(const guanaco_tokenizer* tokenizer); /* pieces; 0 for NULL */
GUANACO_API int32_t guanaco_tokenizer_bos(const guanaco_tokenizer* tokenizer);  /* -1: none */
GUANACO_API int32_t guanaco_tokenizer_eos(const guanaco_tokenizer* tokenizer);  /* -1: none */
/* begin: 1 for the beginning of a sequence (bos in front, a space before the first word), 0 without bos. A byte that is
 * not UTF-8 counts as U+FFFD, which may be three tokens. While it runs it takes 120 to 290 bytes of memory for a byte of
 * text, measured; if 320 are not to be had beforehand it is GUANACO_OUT_OF_MEMORY. At most 64 MiB of text. */
GUANACO_API guanaco_status guanaco_tokenizer_encode(const guanaco_tokenizer* tokenizer, const char* text, size_t length,
                                                    int32_t begin, int32_t* tokens, size_t capacity, size_t* needed,
                                                    guanaco_error* error);
/* Of text that goes on where other text ended. */
GUANACO_API guanaco_status guanaco_tokenizer_encode_continuation(const guanaco_tokenizer* tokenizer, const char* text,
                                                                 size_t length, int32_t* tokens, size_t capacity,
                                                                 size_t* needed, guanaco_error* error);
GUANACO_API guanaco_status guanaco_tokenizer_decode(const guanaco_tokenizer* tokenizer, const int32_t* tokens,
                                                    size_t count, char* text, size_t capacity, size_t* needed,
                                                    guanaco_error* error);
/* The bytes of one token, possibly none or part of a code point, none for an id that does not exist; live as long as the
 * tokenizer. */
GUANACO_API guanaco_status guanaco_tokenizer_piece(const guanaco_tokenizer* tokenizer, int32_t token,
                                                   const char** bytes, size_t* length, guanaco_error* error);

/* ---- Chat: a conversation, and the published shape ("guanaco", "card", "train", "eval", "webui") in which it becomes
 * one prompt. */
GUANACO_API guanaco_status guanaco_chat_name(size_t index, const char** text, size_t* length); /* END past the last */
GUANACO_API guanaco_status guanaco_chat_new(const char* name, size_t length, guanaco_chat** out, guanaco_error* error);
GUANACO_API void guanaco_chat_free(guanaco_chat* chat);
GUANACO_API guanaco_status guanaco_chat_add(guanaco_chat* chat, int32_t role, const char* text, size_t length,
                                            guanaco_error* error);
GUANACO_API guanaco_status guanaco_chat_clear(guanaco_chat* chat, guanaco_error* error);
/* The prompt, up to where the assistant is to speak; guanaco::ChatTemplate::render() says who may speak when. */
GUANACO_API guanaco_status guanaco_chat_render(guanaco_chat* chat, const char** text, size_t* length,
                                               guanaco_error* error);
/* The index-th text that ends the assistant's turn, static; END past the last. */
GUANACO_API guanaco_status guanaco_chat_stop(const guanaco_chat* chat, size_t index, const char** text, size_t* length,
                                             guanaco_error* error);

/* ---- Stream: bytes of tokens to text that can be shown at once. */
GUANACO_API guanaco_status guanaco_stream_new(const guanaco_options* options, guanaco_stream** out,
                                              guanaco_error* error);
GUANACO_API void guanaco_stream_free(guanaco_stream* stream);
/* The text that these bytes release, possibly none. GUANACO_END once a stop text was found: the first time it comes with
 * the last text, which is to be shown, too. */
GUANACO_API guanaco_status guanaco_stream_push(guanaco_stream* stream, const char* bytes, size_t count,
                                               const char** text, size_t* length, guanaco_error* error);
/* What was held back. */
GUANACO_API guanaco_status guanaco_stream_finish(guanaco_stream* stream, const char** text, size_t* length,
                                                 guanaco_error* error);
/* Which stop text was found, in the order they were added; -1: none. */
GUANACO_API int64_t guanaco_stream_stop(const guanaco_stream* stream);

/* ---- Sampler. */
GUANACO_API guanaco_status guanaco_sampler_new(const guanaco_options* options, guanaco_sampler** out,
                                               guanaco_error* error);
GUANACO_API guanaco_status guanaco_sampler_copy(const guanaco_sampler* sampler, guanaco_sampler** out,
                                                guanaco_error* error);
GUANACO_API void guanaco_sampler_free(guanaco_sampler* sampler);
GUANACO_API guanaco_status guanaco_sampler_sample(guanaco_sampler* sampler, const float* logits, size_t count,
                                                  int32_t* token, guanaco_error* error);
/* Counts tokens that were not chosen here as seen, for the penalties. */
GUANACO_API guanaco_status guanaco_sampler_accept(guanaco_sampler* sampler, const int32_t* tokens, size_t count,
                                                  guanaco_error* error);

/* ---- Session. While a generation of it lives, even one that has ended, what is not const here is
 * GUANACO_INVALID_ARGUMENT: free that first. Nothing copies a session; to try another way, rewind it. */
GUANACO_API guanaco_status guanaco_session_new(const guanaco_model* model, const guanaco_options* options,
                                               guanaco_session** out, guanaco_error* error);
GUANACO_API void guanaco_session_free(guanaco_session* session);
/* Appends tokens, after the last one of a reply if nothing came after that yet; their progress and cancelling by the
 * options' callback. */
GUANACO_API guanaco_status guanaco_session_feed(guanaco_session* session, const int32_t* tokens, size_t count,
                                                const guanaco_options* options, guanaco_error* error);
/* The same for many sessions of one model, reading the weights once for all; all or nothing. */
GUANACO_API guanaco_status guanaco_session_feed_many(guanaco_session* const* sessions, const int32_t* const* tokens,
                                                     const size_t* counts, size_t count,
                                                     const guanaco_options* options, guanaco_error* error);
/* Feeds, and gives the natural log-probability of each token after all before it: logprobs[count]. The first token of an
 * empty session has nothing before it and gets 0. */
GUANACO_API guanaco_status guanaco_session_score(guanaco_session* session, const int32_t* tokens, size_t count,
                                                 float* logprobs, const guanaco_options* options,
                                                 guanaco_error* error);
/* [*count] scores of the next token, as natural logs up to a constant. NULL and 0 before the first token, after a rewind
 * that dropped tokens, and after a reply whose tokens a GPU chose; after another reply they are those that its last token
 * was chosen from. Lives until the next call that is not const, as a generation's next and step are not. */
GUANACO_API const float* guanaco_session_logits(const guanaco_session* session, size_t* count);
/* [*count] all that the cache holds; likewise. The last token of a reply is not there, nor in the position, until
 * something is fed, scored or generated after it. */
GUANACO_API const int32_t* guanaco_session_tokens(const guanaco_session* session, size_t* count);
GUANACO_API int64_t guanaco_session_position(const guanaco_session* session); /* tokens so far; -1 for NULL */
GUANACO_API int64_t guanaco_session_context(const guanaco_session* session);  /* room; -1 for NULL */
/* Forgets all tokens from `position` on. */
GUANACO_API guanaco_status guanaco_session_rewind(guanaco_session* session, int64_t position, guanaco_error* error);
/* Rewinds to the longest common beginning with a prompt, short of the whole prompt: *known tokens of it need not be fed
 * again, and at least the last one is left to feed. */
GUANACO_API guanaco_status guanaco_session_reuse(guanaco_session* session, const int32_t* tokens, size_t count,
                                                 size_t* known, guanaco_error* error);

/* ---- Generation: a reply, one token at a time. Starting one does no device work. The sampler is copied; NULL for one
 * with the options' settings. A prompt given as text begins a sequence if the session is empty, else it goes on. */
GUANACO_API guanaco_status guanaco_generate(guanaco_session* session, const guanaco_sampler* sampler,
                                            const char* prompt, size_t length, const guanaco_options* options,
                                            guanaco_generation** out, guanaco_error* error);
GUANACO_API guanaco_status guanaco_generate_tokens(guanaco_session* session, const guanaco_sampler* sampler,
                                                   const int32_t* tokens, size_t count,
                                                   const guanaco_options* options, guanaco_generation** out,
                                                   guanaco_error* error);
GUANACO_API void guanaco_generation_free(guanaco_generation* generation);
/* The next token: GUANACO_OK with whole code points of text, possibly none; then GUANACO_END, or GUANACO_CANCELLED, for
 * ever and without text. token: -1 if only text was released. token and logprob (natural log, before temperature and
 * penalties) may be NULL. */
GUANACO_API guanaco_status guanaco_generation_next(guanaco_generation* generation, const char** text, size_t* length,
                                                   int32_t* token, float* logprob, guanaco_error* error);
/* A token for each of many generations of one model, in as few passes over the weights as the device likes; the
 * guanaco_generation_next() that follows hands out what it made. Prompts that it computes report no progress. */
GUANACO_API guanaco_status guanaco_generation_step(guanaco_generation* const* generations, size_t count,
                                                   guanaco_error* error);
GUANACO_API int32_t guanaco_generation_finish(const guanaco_generation* generation); /* one of GUANACO_FINISH_ */
GUANACO_API int64_t guanaco_generation_tokens(const guanaco_generation* generation); /* of the reply so far */
/* Ends the reply within a layer, in the middle of a long prompt too. */
GUANACO_API void guanaco_generation_cancel(guanaco_generation* generation);

#ifdef __cplusplus
}
#endif
#endif
