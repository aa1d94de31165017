/* The C ABI and the process around it: fork, dlopen and dlclose, small stacks, many loads; and that
 * nothing is printed and the host keeps its signals.
 *
 *     capi_process_test MODEL */
#include "capi_check.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#define QUESTION "### Human: What is the capital of France?\n### Assistant:"

/* Threads of a model that a child of fork loads: the thread sanitizer knows none there. */
#if defined(__SANITIZE_THREAD__)
enum { kThreadsOfChild = 1 };
#else
enum { kThreadsOfChild = 2 };
#endif

static const char* path;
static int is_short; /* for valgrind: few rounds */

/* A seeded reply in a new session. */
static reply ask(const guanaco_model* model) {
  guanaco_options* const options =
      options_of(GUANACO_OPTION_MAX_TOKENS, is_short ? 4 : 16, GUANACO_OPTION_SEED, 9, 0);
  guanaco_session* const session = session_of(model, 128);
  const reply all = reply_to(session, QUESTION, options);
  guanaco_session_free(session);
  guanaco_options_free(options);
  return all;
}

/* What a model loaded anew replies. */
static reply load_and_ask(int threads) {
  guanaco_model* const model = load_on(path, threads);
  const reply all = ask(model);
  guanaco_model_free(model);
  return all;
}

/* ---- fork. */

static void test_fork(void) {
  guanaco_model* const model = load(path);
  guanaco_session* const session = session_of(model, 128);
  const reply expected = ask(model);
  guanaco_options* const options = options_of(GUANACO_OPTION_MAX_TOKENS, is_short ? 2 : 8, 0);
  guanaco_session* const twin = session_of(model, 128);
  const reply begun = reply_to(session, QUESTION, options),
              same_begun = reply_to(twin, QUESTION, options);
  const reply expected_then = reply_to(twin, " And then?", options);
  CHECK(expected.length > 0 && begun.length > 0 && same(&begun, &same_begun));
  guanaco_session_free(twin);
  for (int anew = 0; anew < 2; ++anew) {
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) { /* with the parent's model, or one more */
      const reply found = anew ? load_and_ask(kThreadsOfChild) : ask(model);
      const reply then = reply_to(session, " And then?", options);
      CHECK(same(&found, &expected) && same(&then, &expected_then));
      guanaco_options_free(options);
      guanaco_session_free(session);
      guanaco_model_free(model);
      exit(failures > 0);
    }
    CHECK(status_of(child) == 0);
  }
  const reply after = ask(model), then = reply_to(session, " And then?", options);
  CHECK(same(&after, &expected) && same(&then, &expected_then));
  guanaco_options_free(options);
  guanaco_session_free(session);
  guanaco_model_free(model);
}

/* ---- dlopen and dlclose. */

static int tasks(void) {
  int count = 0;
  DIR* const folder = opendir("/proc/self/task");
  REQUIRE(folder != NULL);
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}
/* A thread that was joined is still listed for a moment. */
static int tasks_become(int count) {
  for (int i = 0; i < 2000 && tasks() != count; ++i) usleep(1000);
  return tasks() == count;
}

static int is_mapped(const char* file) {
  char line[4352];
  int found = 0;
  FILE* const maps = fopen("/proc/self/maps", "r");
  REQUIRE(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL) found |= strstr(line, file) != NULL;
  fclose(maps);
  return found;
}

/* A copy of the library that this program runs with: as a file of its own it is loaded beside it,
 * and goes away. */
static void copy_library(const char* to) {
  Dl_info here;
  void* const symbol = dlsym(RTLD_DEFAULT, "guanaco_abi");
  REQUIRE(symbol != NULL && dladdr(symbol, &here) != 0);
  FILE *const in = fopen(here.dli_fname, "rb"), *const out = fopen(to, "wb");
  REQUIRE(in != NULL && out != NULL);
  static char block[1 << 16];
  for (size_t n; (n = fread(block, 1, sizeof block, in)) > 0;)
    REQUIRE(fwrite(block, 1, n, out) == n);
  fclose(in);
  REQUIRE(fclose(out) == 0);
}

/* Each function of the library as a variable of its type. */
#define FUNCTION(result, name, ...)                  \
  result (*name)(__VA_ARGS__);                       \
  *(void**)&name = dlsym(library, "guanaco_" #name); \
  REQUIRE(name != NULL)

static reply ask_library(void* library) {
  FUNCTION(int32_t, abi, void);
  FUNCTION(guanaco_status, model_load, const char*, size_t, const guanaco_options*, guanaco_model**,
           guanaco_error*);
  FUNCTION(void, model_free, guanaco_model*);
  FUNCTION(guanaco_options*, options_new, void);
  FUNCTION(guanaco_status, options_set_int, guanaco_options*, guanaco_option, int64_t,
           guanaco_error*);
  FUNCTION(void, options_free, guanaco_options*);
  FUNCTION(guanaco_status, session_new, const guanaco_model*, const guanaco_options*,
           guanaco_session**, guanaco_error*);
  FUNCTION(void, session_free, guanaco_session*);
  FUNCTION(guanaco_status, generate, guanaco_session*, const guanaco_sampler*, const char*, size_t,
           const guanaco_options*, guanaco_generation**, guanaco_error*);
  FUNCTION(guanaco_status, generation_next, guanaco_generation*, const char**, size_t*, int32_t*,
           float*, guanaco_error*);
  FUNCTION(void, generation_free, guanaco_generation*);

  CHECK(abi() == GUANACO_ABI);
  guanaco_options* const options = options_new();
  guanaco_model* model = NULL;
  guanaco_session* session = NULL;
  guanaco_generation* generation = NULL;
  CHECK(options_set_int(options, -1, 0, NULL) == GUANACO_INVALID_ARGUMENT);
  OK(options_set_int(options, GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CPU, error));
  OK(options_set_int(options, GUANACO_OPTION_THREADS, 2, error));
  OK(options_set_int(options, GUANACO_OPTION_MAX_TOKENS, is_short ? 4 : 16, error));
  OK(options_set_int(options, GUANACO_OPTION_SEED, 9, error));
  CHECK(model_load(TEXT("/nowhere"), options, &model, NULL) == GUANACO_NOT_FOUND);
  OK(model_load(TEXT(path), options, &model, error));
  OK(session_new(model, options, &session, error));
  OK(generate(session, NULL, TEXT(QUESTION), options, &generation, error));
  reply all = {"", 0};
  const char* text = NULL;
  size_t length = 0;
  while (generation_next(generation, &text, &length, NULL, NULL, NULL) == GUANACO_OK)
    append(&all, text, length);
  model_free(model);
  session_free(session);
  generation_free(generation);
  options_free(options);
  return all;
}

static void test_dlopen(void) {
  const reply expected = load_and_ask(2);
  char folder[] = "/tmp/guanaco-XXXXXX", file[64];
  REQUIRE(mkdtemp(folder) != NULL);
  snprintf(file, sizeof file, "%s/libguanaco.so.1", folder);
  copy_library(file);
  const int before = tasks();
  for (int i = 0; i < 3; ++i) {
    void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) failed(__FILE__, __LINE__, "dlopen", dlerror());
    REQUIRE(library != NULL && is_mapped(file));
    const reply found = ask_library(library);
    CHECK(same(&found, &expected));
    CHECK(tasks_become(before));
    CHECK(dlclose(library) == 0);
    CHECK(!is_mapped(file));
  }
  unlink(file);
  rmdir(folder);
}

/* ---- A small stack. */

static void* use_little_stack(void* result) {
  guanaco_model* const model = load(path);
  *(reply*)result = ask(model);
  guanaco_tokenizer* tokenizer = NULL;
  guanaco_inspection* inspection = NULL;
  int32_t tokens[32];
  float logprobs[32];
  size_t count = 0;
  OK(guanaco_inspect(TEXT(path), NULL, &inspection, error));
  guanaco_inspection_free(inspection);
  CHECK(guanaco_model_load(TEXT("/nowhere"), NULL, NULL, NULL) == GUANACO_INVALID_ARGUMENT);
  OK(guanaco_model_tokenizer(model, &tokenizer, error));
  OK(guanaco_tokenizer_encode(tokenizer, TEXT(QUESTION), 1, tokens, 32, &count, error));
  guanaco_session* const session = session_of(model, 128);
  OK(guanaco_session_score(session, tokens, count, logprobs, NULL, error));
  guanaco_session_free(session);
  guanaco_tokenizer_free(tokenizer);
  guanaco_model_free(model);
  return NULL;
}

static void test_small_stack(void) {
  const reply expected = load_and_ask(2);
  reply found = {"", 0};
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  REQUIRE(pthread_attr_setstacksize(&attributes, 256 << 10) == 0);
  REQUIRE(pthread_create(&thread, &attributes, use_little_stack, &found) == 0);
  pthread_join(thread, NULL);
  pthread_attr_destroy(&attributes);
  CHECK(same(&found, &expected));
}

/* ---- Many loads. */

static long resident_bytes(void) {
  long pages = 0, resident = 0;
  FILE* const file = fopen("/proc/self/statm", "r");
  REQUIRE(file != NULL && fscanf(file, "%ld %ld", &pages, &resident) == 2);
  fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

static void test_many_loads(void) {
  enum { kWarm = 10 };
  const int loads = is_short ? 2 : SANITIZED ? 20 : 100, before = tasks();
  long warm = 0;
  for (int i = 0; i < loads; ++i) {
    if (i == kWarm) warm = resident_bytes();
    guanaco_model* const model = load(path);
    if (i % 10 == 0) ask(model);
    guanaco_model_free(model);
  }
  CHECK(tasks_become(before));
  /* The model has 13 MiB. Sanitizers and valgrind keep what is freed for a while. */
  if (!SANITIZED && !is_short) CHECK(resident_bytes() - warm < 2 << 20);
}

/* ---- Nothing is printed, no signal handler is changed, and no signal is taken. */

typedef struct handler {
  struct sigaction action;
  int known;
} handler;

static void read_handlers(handler handlers[NSIG]) {
  memset(handlers, 0, NSIG * sizeof *handlers);
  for (int signal = 1; signal < NSIG; ++signal)
    handlers[signal].known = sigaction(signal, NULL, &handlers[signal].action) == 0;
}

static void succeed_and_fail(void) {
  guanaco_model* none = NULL;
  char config[4096];
  snprintf(config, sizeof config, "%s/config.json", path);
  load_and_ask(2);
  use_little_stack(&(reply){"", 0});
  CHECK(guanaco_model_load(TEXT("/nowhere"), NULL, &none, NULL) == GUANACO_NOT_FOUND);
  CHECK(guanaco_model_load(TEXT(config), NULL, &none, NULL) == GUANACO_UNSUPPORTED);
  guanaco_tokenizer* tokenizer = NULL;
  CHECK(guanaco_tokenizer_load(TEXT(config), &tokenizer, NULL) == GUANACO_MALFORMED);
  guanaco_options* const options =
      options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CUDA, GUANACO_OPTION_CUDA_DEVICE, 4096, 0);
  CHECK(guanaco_model_load(TEXT(path), options, &none, NULL) < 0);
  guanaco_options_free(options);
  guanaco_model* const model = load(path);
  guanaco_session* const session = session_of(model, 2);
  const int32_t tokens[] = {1, 2, 3};
  CHECK(guanaco_session_feed(session, tokens, 3, NULL, NULL) == GUANACO_CONTEXT_FULL);
  guanaco_session_free(session);
  guanaco_model_free(model);
}

static void test_silence(void) {
  handler before[NSIG], after[NSIG];
  sigset_t mask_before, mask_after;
  struct stat printed;
  FILE* const file = tmpfile();
  REQUIRE(file != NULL);
  read_handlers(before);
  pthread_sigmask(SIG_SETMASK, NULL, &mask_before);
  fflush(NULL);
  const int was_failing = failures, out = dup(1), err = dup(2);
  REQUIRE(dup2(fileno(file), 1) == 1 && dup2(fileno(file), 2) == 2);
  succeed_and_fail();
  fflush(NULL);
  REQUIRE(dup2(out, 1) == 1 && dup2(err, 2) == 2);
  close(out);
  close(err);
  REQUIRE(fstat(fileno(file), &printed) == 0);
  if (printed.st_size > 0) { /* by the library, or by a check that failed above */
    char line[512];
    rewind(file);
    while (fgets(line, sizeof line, file) != NULL) fputs(line, stderr);
    CHECK(failures > was_failing);
  }
  fclose(file);
  pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
  read_handlers(after);
  for (int signal = 1; signal < NSIG; ++signal) {
    CHECK(before[signal].known == after[signal].known &&
          before[signal].action.sa_handler == after[signal].action.sa_handler &&
          before[signal].action.sa_flags == after[signal].action.sa_flags);
    CHECK(sigismember(&mask_before, signal) == sigismember(&mask_after, signal));
  }
}

/* ---- At exit: a handler that was there first runs after the library's own. */

static guanaco_chat* held;

static reply rendered(void) {
  reply all = {"", 0};
  for (size_t i = 0;; ++i) {
    const char *name = NULL, *text = NULL;
    size_t length = 0;
    if (guanaco_chat_name(i, &name, &length) != GUANACO_OK) return all;
    guanaco_chat* chat = NULL;
    OK(guanaco_chat_new(name, length, &chat, error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, TEXT("Hi"), error));
    OK(guanaco_chat_render(chat, &text, &length, error));
    append(&all, text, length);
    OK(guanaco_chat_stop(chat, 1, &text, &length, error));
    append(&all, text, length);
    guanaco_chat_free(chat);
  }
}

static reply before_exit;

static void use_at_exit(void) {
  const reply now = rendered();
  const char* text = NULL;
  size_t length = 0;
  CHECK(now.length > 0 && same(&now, &before_exit));
  OK(guanaco_chat_render(held, &text, &length, error));
  CHECK(length > 0 && memcmp(text, before_exit.text, length) == 0);
  guanaco_chat_free(held);
  guanaco_stream* stream = NULL;
  OK(guanaco_stream_new(NULL, &stream, error));
  guanaco_stream_free(stream);
  if (failures > 0) _exit(1);
}

static void test_exit(void) {
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    atexit(use_at_exit);
    before_exit = rendered();
    OK(guanaco_chat_new(TEXT("guanaco"), &held, error));
    OK(guanaco_chat_add(held, GUANACO_ROLE_USER, TEXT("Hi"), error));
    guanaco_stream* stream = NULL;
    OK(guanaco_stream_new(NULL, &stream, error));
    guanaco_stream_free(stream);
    exit(failures > 0);
  }
  CHECK(status_of(child) == 0);
}

/* A signal that the host waits for comes to it, though a model has threads of its own. */
static void test_signals(void) {
  fflush(NULL);
  const pid_t child = fork();
  if (child == 0) {
    guanaco_model* const model = load_on(path, kThreadsOfChild);
    sigset_t awaited;
    int signal = 0;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &awaited, NULL);
    kill(getpid(), SIGTERM);
    CHECK(sigwait(&awaited, &signal) == 0 && signal == SIGTERM);
    guanaco_model_free(model);
    exit(failures > 0);
  }
  CHECK(status_of(child) == 0);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 2);
  path = argv[1];
  is_short = getenv("GUANACO_SHORT") != NULL;
  test_silence();
  test_signals();
  test_exit();
  test_fork();
  test_dlopen();
  test_small_stack();
  test_many_loads();
  return failures > 0;
}
