/* Every class of failure of the C ABI, made to happen: files that are missing or malformed, memory
 * that ends, calls that are given up, a full context, no device. Each gives its status and a line
 * that names the culprit.
 *
 *     capi_failures_test MODEL */
#include "capi_check.h"

#include <sys/resource.h>

static const char* path;
static guanaco_model* model;

static int32_t give_up(uint64_t done, uint64_t total, void* user_data) {
  (void)user_data;
  return done > total / 4;
}

static void test_failures(void) {
  char folder[] = "/tmp/guanaco-XXXXXX", file[64], config[4096];
  REQUIRE(mkdtemp(folder) != NULL);
  snprintf(file, sizeof file, "%s/model.safetensors", folder);
  snprintf(config, sizeof config, "%s/config.json", path);

  FAILS(GUANACO_NOT_FOUND, "nowhere",
        guanaco_model_load(TEXT("/nowhere/at/all"), NULL, &got.made.model, error));
  FAILS(GUANACO_NOT_FOUND, "", guanaco_model_load(NULL, 0, NULL, &got.made.model, error));
  FAILS(GUANACO_NOT_FOUND, "nowhere",
        guanaco_inspect(TEXT("/nowhere/at/all"), NULL, &got.made.inspection, error));
  FAILS(GUANACO_NOT_FOUND, "nowhere",
        guanaco_estimate(TEXT("/nowhere/at/all"), NULL, got.bytes, 2, error));
  FAILS(GUANACO_NOT_FOUND, "nowhere",
        guanaco_tokenizer_load(TEXT("/nowhere/at/all"), &got.made.tokenizer, error));
  FAILS(GUANACO_UNSUPPORTED, "config.json",
        guanaco_model_load(TEXT(config), NULL, &got.made.model, error));

  FILE* const broken = fopen(file, "wb");
  REQUIRE(broken != NULL && fwrite("\x10\0\0\0\0\0\0\0{\"broken\": nope}", 24, 1, broken) == 1);
  fclose(broken);
  FAILS(GUANACO_MALFORMED, "model.safetensors",
        guanaco_model_load(TEXT(file), NULL, &got.made.model, error));
  FAILS(GUANACO_MALFORMED, "model.safetensors",
        guanaco_model_load(TEXT(folder), NULL, &got.made.model, error));
  FAILS(GUANACO_MALFORMED, "model.safetensors",
        guanaco_tokenizer_load(TEXT(file), &got.made.tokenizer, error));
  unlink(file);
  FAILS(GUANACO_NOT_FOUND, folder, guanaco_model_load(TEXT(folder), NULL, &got.made.model, error));
  rmdir(folder);

  /* A name too long for a message is cut, and not inside a code point. */
  char name[3001];
  for (int i = 0; i < 1000; ++i) memcpy(name + 3 * i, "\xe6\xbc\xa2", 3);
  for (int shift = 0; shift < 3; ++shift) {
    guanaco_error error;
    name[3000 - shift] = 0;
    memset(name, 'a', 3);
    CHECK(guanaco_model_load(TEXT(name + shift), NULL, &got.made.model, &error) < 0);
    const size_t length = strlen(error.message);
    CHECK(length > 0 && length < sizeof error.message && error.status < 0);
    const char* dots = strstr(error.message, "...");
    CHECK(dots != NULL && memcmp(dots - 3, "\xe6\xbc\xa2", 3) == 0);
  }

  guanaco_options* const options = options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CPU, 0);
  OK(guanaco_options_on_progress(options, give_up, NULL, error));
  got.made.model = (guanaco_model*)&got;
  GIVES(GUANACO_CANCELLED, guanaco_model_load(TEXT(path), options, &got.made.model, error));
  CHECK(got.made.model == NULL);
  guanaco_options_free(options);

  /* No machine has a device of this number; a library without CUDA has none at all. */
  guanaco_options* const cuda =
      options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CUDA, GUANACO_OPTION_CUDA_DEVICE, 4096, 0);
  guanaco_error error;
  const guanaco_status status =
      guanaco_model_load(TEXT(path), cuda, &got.made.model, poisoned(&error));
  const guanaco_status want = status == GUANACO_UNSUPPORTED ? GUANACO_UNSUPPORTED : GUANACO_DEVICE;
  FAILS(want, "CUDA", guanaco_model_load(TEXT(path), cuda, &got.made.model, error));
  guanaco_options_free(cuda);
}

static uint64_t address_space(void) {
  unsigned long pages = 0;
  FILE* const file = fopen("/proc/self/statm", "r");
  REQUIRE(file != NULL && fscanf(file, "%lu", &pages) == 1);
  fclose(file);
  return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* One reply of a model loaded anew. Gives its status; what was made is freed. */
static guanaco_status try_all(const guanaco_options* options, guanaco_error* error) {
  guanaco_model* fresh = NULL;
  guanaco_session* session = NULL;
  guanaco_generation* generation = NULL;
  guanaco_status status = guanaco_model_load(TEXT(path), options, &fresh, error);
  if (status == GUANACO_OK) status = guanaco_session_new(fresh, options, &session, error);
  if (status == GUANACO_OK)
    status = guanaco_generate(session, NULL, TEXT("One"), options, &generation, error);
  while (status == GUANACO_OK) {
    const char* text = NULL;
    size_t length = 0;
    status = guanaco_generation_next(generation, &text, &length, NULL, NULL, error);
  }
  guanaco_generation_free(generation);
  guanaco_session_free(session);
  guanaco_model_free(fresh);
  return status;
}

/* In a process of its own with room for so much more: 0 all went well, 1 refused as it should be,
 * and all goes well once there is room again. */
static int run_limited(uint64_t more) {
  guanaco_options* const options =
      options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CPU, GUANACO_OPTION_THREADS, 2,
                 GUANACO_OPTION_ROWS, 16, GUANACO_OPTION_MAX_TOKENS, 2, 0);
  struct rlimit before, limit;
  guanaco_error error;
  REQUIRE(getrlimit(RLIMIT_AS, &before) == 0);
  limit = before;
  limit.rlim_cur = address_space() + more;
  REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  const guanaco_status status = try_all(options, poisoned(&error));
  setrlimit(RLIMIT_AS, &before);
  if (status < 0)
    check_fails(__FILE__, __LINE__, "with limited memory", GUANACO_OUT_OF_MEMORY, "", status,
                &error);
  CHECK(try_all(options, NULL) == GUANACO_END);
  guanaco_options_free(options);
  return failures > 0 ? 2 : status < 0;
}

/* Comes first: it forks. */
static void test_memory(void) {
  if (SANITIZED || getenv("GUANACO_SHORT") != NULL) return; /* their own memory has no limit */
  int refusals = 0;
  for (uint64_t more = 0;; more += UINT64_C(1) << 20) {
    const pid_t child = fork();
    if (child == 0) _exit(run_limited(more));
    const int status = status_of(child);
    if (status != 0 && status != 1) fprintf(stderr, "%llu bytes\n", (unsigned long long)more);
    CHECK(status == 0 || status == 1);
    if (status != 1) break;
    ++refusals;
  }
  printf("%d refusals\n", refusals);
  CHECK(refusals > 8);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 2);
  path = argv[1];
  test_memory();
  model = load(path);
  test_failures();
  guanaco_model_free(model);
  return failures > 0;
}
