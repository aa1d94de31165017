/* What the tests of the C ABI share: checks that count and go on, and short ways to a model and a
 * reply. C99 and POSIX. Comes before every other header. */
#ifndef GUANACO_TESTS_CAPI_CHECK_H
#define GUANACO_TESTS_CAPI_CHECK_H

#define _GNU_SOURCE /* fork, setrlimit, dladdr */

#include <guanaco/c.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define TEXT(text) text, strlen(text)

static int failures;
static pthread_mutex_t failing = PTHREAD_MUTEX_INITIALIZER;

/* Counts a failure; any thread. */
static inline void failed(const char* file, int line, const char* what, const char* found) {
  pthread_mutex_lock(&failing);
  ++failures;
  fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, found);
  pthread_mutex_unlock(&failing);
}
#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) failed(__FILE__, __LINE__, #condition, "is not so"); \
  } while (0)
/* For what the rest of a test cannot do without. */
#define REQUIRE(condition)                                                       \
  do {                                                                           \
    if (!(condition)) {                                                          \
      failed(__FILE__, __LINE__, #condition, "is not so, the rest is left out"); \
      exit(1);                                                                   \
    }                                                                            \
  } while (0)

static inline guanaco_error* poisoned(guanaco_error* error) {
  memset(error, 0x5a, sizeof *error);
  return error;
}
/* That a call gave a status that is no failure, and left the error alone. */
static inline void check_gives(const char* file, int line, const char* call, guanaco_status want,
                               guanaco_status found, const guanaco_error* written) {
  guanaco_error blank;
  if (found < 0 && found == written->status)
    failed(file, line, call, written->message);
  else if (found != want)
    failed(file, line, call, guanaco_status_name(found));
  else if (memcmp(written, poisoned(&blank), sizeof blank) != 0)
    failed(file, line, call, "writes an error without a failure");
}
/* `call` says `error` where the error struct goes. */
#define GIVES(want, call)                                         \
  do {                                                            \
    guanaco_error written, *const error = poisoned(&written);     \
    check_gives(__FILE__, __LINE__, #call, want, call, &written); \
  } while (0)
#define OK(call) GIVES(GUANACO_OK, call)

/* That a call failed with a status and a line that names the culprit. */
static inline void check_fails(const char* file, int line, const char* call, guanaco_status want,
                               const char* culprit, guanaco_status found,
                               const guanaco_error* written) {
  if (found != want || written->status != want) {
    failed(file, line, call, guanaco_status_name(found));
    return;
  }
  const char* const message = written->message;
  if (memchr(message, 0, sizeof written->message) == NULL)
    failed(file, line, call, "a message without an end");
  else if (message[0] == 0 || strpbrk(message, "\n\r") != NULL || strstr(message, culprit) == NULL)
    failed(file, line, call, message);
}

/* Results go here, so that it can be seen what a failure leaves in them. */
typedef struct results {
  const char* text;
  size_t length, needed, known;
  int64_t value;
  int32_t token;
  float logprob;
  float logprobs[2];
  uint64_t bytes[2];
  union {
    guanaco_model* model;
    guanaco_inspection* inspection;
    guanaco_tokenizer* tokenizer;
    guanaco_chat* chat;
    guanaco_stream* stream;
    guanaco_sampler* sampler;
    guanaco_session* session;
    guanaco_generation* generation;
  } made;
} results;
static results got;

/* What a call was given is 0 after a failure, and the rest as before. */
static inline void check_cleared(const char* file, int line, const char* call,
                                 guanaco_status status) {
#define RESULT(name, field) \
  { name, offsetof(results, field), sizeof got.field }
  static const struct {
    const char* name;
    size_t offset, size;
  } all[] = {RESULT("&got.text", text),        RESULT("&got.length", length),
             RESULT("&got.needed", needed),    RESULT("&got.known", known),
             RESULT("&got.value", value),      RESULT("&got.token", token),
             RESULT("&got.logprob,", logprob), RESULT("got.logprobs", logprobs),
             RESULT("got.bytes", bytes),       RESULT("&got.made", made)};
#undef RESULT
  for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
    if (status == GUANACO_BUFFER_TOO_SMALL && strcmp(all[i].name, "&got.needed") == 0) continue;
    const unsigned char* const bytes = (const unsigned char*)&got + all[i].offset;
    const unsigned char want = strstr(call, all[i].name) != NULL ? 0 : 0x5a;
    for (size_t j = 0; j < all[i].size; ++j)
      if (bytes[j] != want) {
        failed(file, line, call, all[i].name);
        break;
      }
  }
}

/* With an error struct and without. `call` says `error` where it goes; its results are `got`. */
#define FAILS(want, culprit, call)                                         \
  do {                                                                     \
    guanaco_error written, *error = poisoned(&written);                    \
    memset(&got, 0x5a, sizeof got);                                        \
    check_fails(__FILE__, __LINE__, #call, want, culprit, call, &written); \
    check_cleared(__FILE__, __LINE__, #call, want);                        \
    error = NULL;                                                          \
    CHECK((call) == (want));                                               \
  } while (0)
#define REFUSES(culprit, call) FAILS(GUANACO_INVALID_ARGUMENT, culprit, call)

/* Options by (number, value) up to a 0; the caller's. */
static inline guanaco_options* options_of(int number, ...) {
  guanaco_options* const options = guanaco_options_new();
  REQUIRE(options != NULL);
  va_list more;
  va_start(more, number);
  for (; number != 0; number = va_arg(more, int))
    OK(guanaco_options_set_int(options, number, va_arg(more, int), error));
  va_end(more);
  return options;
}

/* On the CPU with short passes, so that a prompt takes several. */
static inline guanaco_model* load_on(const char* path, int threads) {
  guanaco_options* const options =
      options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CPU, GUANACO_OPTION_THREADS, threads,
                 GUANACO_OPTION_ROWS, 16, 0);
  guanaco_model* model = NULL;
  OK(guanaco_model_load(TEXT(path), options, &model, error));
  guanaco_options_free(options);
  REQUIRE(model != NULL);
  return model;
}

static inline guanaco_model* load(const char* path) { return load_on(path, 2); }

static inline guanaco_session* session_of(const guanaco_model* model, int context) {
  guanaco_options* const options = options_of(GUANACO_OPTION_CONTEXT, context, 0);
  guanaco_session* session = NULL;
  OK(guanaco_session_new(model, options, &session, error));
  guanaco_options_free(options);
  REQUIRE(session != NULL);
  return session;
}

/* A text as it comes. */
typedef struct reply {
  char text[4096];
  size_t length;
} reply;

static inline void append(reply* to, const char* text, size_t length) {
  REQUIRE(text != NULL || length == 0);
  REQUIRE(to->length + length < sizeof to->text);
  if (length > 0) memcpy(to->text + to->length, text, length);
  to->length += length;
}
static inline int same(const reply* a, const reply* b) {
  return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
}

/* Adds all that is still to come; gives the status it ended in. */
static inline guanaco_status pull(guanaco_generation* generation, reply* to) {
  for (;;) {
    const char* text = NULL;
    size_t length = 0;
    const guanaco_status status =
        guanaco_generation_next(generation, &text, &length, NULL, NULL, NULL);
    if (status != GUANACO_OK) return status;
    append(to, text, length);
  }
}

/* The whole reply to a prompt. */
static inline reply reply_to(guanaco_session* session, const char* prompt,
                             const guanaco_options* options) {
  reply all = {"", 0};
  guanaco_generation* generation = NULL;
  OK(guanaco_generate(session, NULL, TEXT(prompt), options, &generation, error));
  REQUIRE(generation != NULL);
  CHECK(pull(generation, &all) == GUANACO_END);
  guanaco_generation_free(generation);
  return all;
}

/* Waits for a child; its exit status, or -1 if a signal ended it. */
static inline int status_of(pid_t child) {
  int status = 0;
  REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
