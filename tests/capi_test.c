/* The C ABI used rightly: versions, options, models, texts and samplers; what one function says
 * agrees with what the others do. Sessions are capi_sessions_test.c's, what is refused is
 * capi_refusals_test.c's.
 *
 *     capi_test MODEL */
#include "capi_check.h"

#include <math.h>

/* What is compiled into programs: never changes. */
#define PIN(name, condition) typedef char pinned_##name[(condition) ? 1 : -1]
PIN(abi, GUANACO_ABI == 1);
PIN(error, sizeof(guanaco_error) == 512 && offsetof(guanaco_error, message) == 4);
PIN(widths, sizeof(guanaco_status) == 4 && sizeof(guanaco_option) == 4);
PIN(statuses, GUANACO_OK == 0 && GUANACO_END == 1 && GUANACO_CANCELLED == 2 &&
                  GUANACO_INVALID_ARGUMENT == -1 && GUANACO_NOT_FOUND == -2 &&
                  GUANACO_MALFORMED == -3 && GUANACO_UNSUPPORTED == -4 &&
                  GUANACO_OUT_OF_MEMORY == -5 && GUANACO_CONTEXT_FULL == -6 &&
                  GUANACO_DEVICE == -7 && GUANACO_INTERNAL == -8 && GUANACO_BUFFER_TOO_SMALL == -9);
PIN(options,
    GUANACO_OPTION_DEVICE == 100 && GUANACO_OPTION_CUDA_DEVICE == 101 &&
        GUANACO_OPTION_THREADS == 102 && GUANACO_OPTION_ROWS == 103 &&
        GUANACO_OPTION_ZERO_POINTS == 104 && GUANACO_OPTION_CONTEXT == 200 &&
        GUANACO_OPTION_SEED == 300 && GUANACO_OPTION_TEMPERATURE == 301 &&
        GUANACO_OPTION_TOP_K == 302 && GUANACO_OPTION_TOP_P == 303 && GUANACO_OPTION_MIN_P == 304 &&
        GUANACO_OPTION_REPETITION_PENALTY == 305 && GUANACO_OPTION_FREQUENCY_PENALTY == 306 &&
        GUANACO_OPTION_PRESENCE_PENALTY == 307 && GUANACO_OPTION_PENALTY_WINDOW == 308 &&
        GUANACO_OPTION_MAX_TOKENS == 400 && GUANACO_OPTION_DROP_LEADING_SPACE == 401 &&
        GUANACO_OPTION_STOP_AT_END_OF_TEXT == 402 && GUANACO_OPTION_TRIM_BEFORE_STOP == 403);
PIN(devices, GUANACO_DEVICE_AUTOMATIC == 0 && GUANACO_DEVICE_CPU == 1 && GUANACO_DEVICE_CUDA == 2);
PIN(zero_points, GUANACO_ZERO_POINTS_AUTOMATIC == 0 && GUANACO_ZERO_POINTS_V1 == 1 &&
                     GUANACO_ZERO_POINTS_V2 == 2);
PIN(severities,
    GUANACO_SEVERITY_DEBUG == 0 && GUANACO_SEVERITY_INFO == 1 && GUANACO_SEVERITY_WARNING == 2);
PIN(roles, GUANACO_ROLE_SYSTEM == 0 && GUANACO_ROLE_USER == 1 && GUANACO_ROLE_ASSISTANT == 2);
PIN(finishes, GUANACO_FINISH_NONE == 0 && GUANACO_FINISH_END_OF_TEXT == 1 &&
                  GUANACO_FINISH_STOP_TEXT == 2 && GUANACO_FINISH_MAX_TOKENS == 3 &&
                  GUANACO_FINISH_CONTEXT_FULL == 4 && GUANACO_FINISH_CANCELLED == 5);
PIN(infos, GUANACO_INFO_LAYERS == 1 && GUANACO_INFO_HEADS == 2 && GUANACO_INFO_KV_HEADS == 3 &&
               GUANACO_INFO_HEAD_DIM == 4 && GUANACO_INFO_HIDDEN == 5 && GUANACO_INFO_FFN == 6 &&
               GUANACO_INFO_VOCAB == 7 && GUANACO_INFO_CONTEXT == 8 && GUANACO_INFO_BITS == 9 &&
               GUANACO_INFO_GROUP_SIZE == 10 && GUANACO_INFO_ACT_ORDER == 11 &&
               GUANACO_INFO_PARAMETERS == 12 && GUANACO_INFO_FILE_BYTES == 13 &&
               GUANACO_INFO_WEIGHT_BYTES == 14 && GUANACO_INFO_BYTES_PER_TOKEN == 15 &&
               GUANACO_INFO_KV_BYTES_PER_TOKEN == 16 && GUANACO_INFO_THREADS == 17 &&
               GUANACO_INFO_HAS_TOKENIZER == 18);
PIN(texts, GUANACO_TEXT_DEVICE == 1 && GUANACO_TEXT_FORMAT == 2 && GUANACO_TEXT_DECISION == 3 &&
               GUANACO_TEXT_WARNING == 4 && GUANACO_TEXT_IGNORED == 5);
PIN(memory, GUANACO_MEMORY_WEIGHTS == 0 && GUANACO_MEMORY_SCRATCH == 1 &&
                GUANACO_MEMORY_SESSION == 2 && GUANACO_MEMORY_LOADING == 3 &&
                GUANACO_MEMORY_HOST == 4 && GUANACO_MEMORY_DEVICE == 5);

static const char* path;
static guanaco_model* model;
static guanaco_tokenizer* tokenizer;

static int contains(const char* text, size_t length, const char* what) {
  const size_t n = strlen(what);
  for (size_t i = 0; i + n <= length; ++i)
    if (memcmp(text + i, what, n) == 0) return 1;
  return 0;
}

static void test_versions(void) {
  CHECK(guanaco_abi() == GUANACO_ABI);
  int major = -1, minor = -1, patch = -1;
  CHECK(sscanf(guanaco_version(), "%d.%d.%d", &major, &minor, &patch) == 3 && major >= 0);
  static const char* const names[] = {
      "buffer_too_small", "internal",    "device",    "context_full",
      "out_of_memory",    "unsupported", "malformed", "not_found",
      "invalid_argument", "ok",          "end",       "cancelled"};
  for (int status = GUANACO_BUFFER_TOO_SMALL; status <= GUANACO_CANCELLED; ++status)
    CHECK(strcmp(guanaco_status_name(status), names[status - GUANACO_BUFFER_TOO_SMALL]) == 0);
  CHECK(strcmp(guanaco_status_name(GUANACO_CANCELLED + 1), "unknown") == 0);
  CHECK(strcmp(guanaco_status_name(GUANACO_BUFFER_TOO_SMALL - 1), "unknown") == 0);
}

/* ---- Options: each takes its range and refuses what is beyond. */

static void test_options(void) {
  static const struct {
    int option;
    int64_t least, most; /* beyond are refused; equal: any may be given */
  } ints[] = {{GUANACO_OPTION_DEVICE, 0, 2},
              {GUANACO_OPTION_CUDA_DEVICE, 0, INT32_MAX},
              {GUANACO_OPTION_THREADS, 0, 1024},
              {GUANACO_OPTION_ROWS, 1, 4096},
              {GUANACO_OPTION_ZERO_POINTS, 0, 2},
              {GUANACO_OPTION_CONTEXT, 1, 1 << 24},
              {GUANACO_OPTION_SEED, INT64_MIN, INT64_MAX},
              {GUANACO_OPTION_TOP_K, 0, INT32_MAX},
              {GUANACO_OPTION_PENALTY_WINDOW, 0, INT32_MAX},
              {GUANACO_OPTION_MAX_TOKENS, 1, INT32_MAX},
              {GUANACO_OPTION_DROP_LEADING_SPACE, 0, 1},
              {GUANACO_OPTION_STOP_AT_END_OF_TEXT, 0, 1},
              {GUANACO_OPTION_TRIM_BEFORE_STOP, 0, 1}};
  static const struct {
    int option;
    double good, bad;
    const char* name;
  } floats[] = {{GUANACO_OPTION_TEMPERATURE, 0, -0.1, "temperature"},
                {GUANACO_OPTION_TOP_P, 1, 0, "top_p"},
                {GUANACO_OPTION_MIN_P, 0, 1.1, "min_p"},
                {GUANACO_OPTION_REPETITION_PENALTY, 1.5, 0, "repetition_penalty"},
                {GUANACO_OPTION_FREQUENCY_PENALTY, -1, HUGE_VAL, "frequency_penalty"},
                {GUANACO_OPTION_PRESENCE_PENALTY, -1, -HUGE_VAL, "presence_penalty"}};
  guanaco_options* const options = guanaco_options_new();
  REQUIRE(options != NULL);
  for (size_t i = 0; i < sizeof ints / sizeof *ints; ++i) {
    char number[16];
    snprintf(number, sizeof number, "%d", ints[i].option);
    OK(guanaco_options_set_int(options, ints[i].option, ints[i].least, error));
    OK(guanaco_options_set_int(options, ints[i].option, ints[i].most, error));
    REFUSES(number, guanaco_options_set_float(options, ints[i].option, 1, error));
    if (ints[i].least == INT64_MIN) continue;
    REFUSES(number, guanaco_options_set_int(options, ints[i].option, ints[i].least - 1, error));
    REFUSES(number, guanaco_options_set_int(options, ints[i].option, ints[i].most + 1, error));
    REFUSES(number, guanaco_options_set_int(options, ints[i].option, INT64_MIN, error));
    REFUSES(number, guanaco_options_set_int(options, ints[i].option, INT64_MAX, error));
  }
  for (size_t i = 0; i < sizeof floats / sizeof *floats; ++i) {
    const char* const name = floats[i].name;
    OK(guanaco_options_set_float(options, floats[i].option, floats[i].good, error));
    REFUSES(name, guanaco_options_set_float(options, floats[i].option, floats[i].bad, error));
    REFUSES(name, guanaco_options_set_float(options, floats[i].option, (double)NAN, error));
    REFUSES(name, guanaco_options_set_int(options, floats[i].option, 1, error));
  }
  REFUSES("77", guanaco_options_set_int(options, 77, 1, error));
  REFUSES("-1", guanaco_options_set_float(options, -1, 1, error));
  REFUSES("stop", guanaco_options_add_stop(options, "", 0, error));
  REFUSES("UTF-8", guanaco_options_add_stop(options, "\xc3", 1, error));
  REFUSES("text", guanaco_options_add_stop(options, NULL, 1, error));
  OK(guanaco_options_add_stop(options, "###", 3, error));
  REFUSES("stops[1]", guanaco_options_add_stop(options, "", 0, error));
  REFUSES("options", guanaco_options_set_int(NULL, GUANACO_OPTION_SEED, 1, error));
  REFUSES("options", guanaco_options_set_float(NULL, GUANACO_OPTION_TOP_P, 1, error));
  REFUSES("options", guanaco_options_add_stop(NULL, "a", 1, error));
  REFUSES("options", guanaco_options_on_progress(NULL, NULL, NULL, error));
  REFUSES("options", guanaco_options_on_log(NULL, NULL, NULL, error));
  OK(guanaco_options_on_progress(options, NULL, NULL, error));
  OK(guanaco_options_on_log(options, NULL, NULL, error));
  guanaco_options_free(options);
}

/* ---- Model. */

typedef struct watched {
  uint64_t done, total;
  int calls, backwards, lines;
} watched;

static int32_t watch(uint64_t done, uint64_t total, void* user_data) {
  watched* const seen = user_data;
  seen->backwards += done < seen->done || done > total || (seen->calls > 0 && total != seen->total);
  seen->done = done;
  seen->total = total;
  ++seen->calls;
  return 0;
}
static void log_line(int32_t severity, const char* line, size_t length, void* user_data) {
  CHECK(severity >= GUANACO_SEVERITY_DEBUG && severity <= GUANACO_SEVERITY_WARNING);
  CHECK(length > 0 && memchr(line, '\n', length) == NULL);
  ++((watched*)user_data)->lines;
}

static void test_loading(void) {
  watched seen = {0};
  guanaco_options* const options =
      options_of(GUANACO_OPTION_DEVICE, GUANACO_DEVICE_CPU, GUANACO_OPTION_THREADS, 2,
                 GUANACO_OPTION_ROWS, 16, GUANACO_OPTION_CONTEXT, 512, 0);
  OK(guanaco_options_on_progress(options, watch, &seen, error));
  OK(guanaco_options_on_log(options, log_line, &seen, error));
  OK(guanaco_model_load(TEXT(path), options, &model, error));
  REQUIRE(model != NULL);
  CHECK(seen.calls > 1 && seen.backwards == 0 && seen.done == seen.total && seen.lines > 0);

  /* An inspection tells the same numbers from the headers alone, as far as they tell: the order of
   * groups is open until it is read, and counted as the costlier one. */
  guanaco_inspection* inspection = NULL;
  OK(guanaco_inspect(TEXT(path), options, &inspection, error));
  REQUIRE(inspection != NULL);
  int64_t value[GUANACO_INFO_HAS_TOKENIZER + 1] = {0};
  for (int32_t info = GUANACO_INFO_LAYERS; info <= GUANACO_INFO_HAS_TOKENIZER; ++info) {
    int64_t inspected = -1;
    OK(guanaco_model_info(model, info, &value[info], error));
    OK(guanaco_inspection_info(inspection, info, &inspected, error));
    if (info == GUANACO_INFO_ACT_ORDER || info == GUANACO_INFO_WEIGHT_BYTES ||
        info == GUANACO_INFO_BYTES_PER_TOKEN)
      CHECK(inspected >= value[info]);
    else
      CHECK(inspected == (info == GUANACO_INFO_HAS_TOKENIZER ? 0 : value[info]));
  }
  int64_t weight_bytes = 0;
  OK(guanaco_inspection_info(inspection, GUANACO_INFO_WEIGHT_BYTES, &weight_bytes, error));
  CHECK(value[GUANACO_INFO_HEADS] * value[GUANACO_INFO_HEAD_DIM] == value[GUANACO_INFO_HIDDEN]);
  CHECK(value[GUANACO_INFO_KV_HEADS] <= value[GUANACO_INFO_HEADS]);
  CHECK(value[GUANACO_INFO_BITS] == 4 && value[GUANACO_INFO_GROUP_SIZE] == 128);
  CHECK(value[GUANACO_INFO_LAYERS] == 8 && value[GUANACO_INFO_FFN] == 1024);
  CHECK(value[GUANACO_INFO_CONTEXT] == 2048 && value[GUANACO_INFO_ACT_ORDER] == 0);
  CHECK(value[GUANACO_INFO_THREADS] == 2 && value[GUANACO_INFO_HAS_TOKENIZER] == 1);
  CHECK(value[GUANACO_INFO_PARAMETERS] * 4 / 8 < value[GUANACO_INFO_FILE_BYTES]);
  CHECK(value[GUANACO_INFO_BYTES_PER_TOKEN] < value[GUANACO_INFO_WEIGHT_BYTES]);
  for (int32_t kind = GUANACO_TEXT_DEVICE; kind <= GUANACO_TEXT_IGNORED; ++kind) {
    const char *text = NULL, *inspected = NULL;
    size_t length = 0, inspected_length = 0, index = 0;
    while (guanaco_model_text(model, kind, index, &text, &length, NULL) == GUANACO_OK) {
      CHECK(length > 0 && memchr(text, '\n', length) == NULL);
      if (kind == GUANACO_TEXT_FORMAT) CHECK(contains(text, length, "4 bit"));
      if (kind == GUANACO_TEXT_FORMAT || kind == GUANACO_TEXT_DEVICE) {
        OK(guanaco_inspection_text(inspection, kind, index, &inspected, &inspected_length, error));
        CHECK(memcmp(text, inspected, kind == GUANACO_TEXT_DEVICE ? length : 30) == 0);
      }
      ++index;
    }
    GIVES(GUANACO_END, guanaco_model_text(model, kind, index, &text, &length, error));
    CHECK(text == NULL && length == 0);
    if (kind == GUANACO_TEXT_FORMAT || kind == GUANACO_TEXT_DEVICE) CHECK(index == 1);
  }
  guanaco_inspection_free(inspection);

  /* What zero points are asked for is what they are taken for. */
  for (int32_t version = GUANACO_ZERO_POINTS_V1; version <= GUANACO_ZERO_POINTS_V2; ++version) {
    const char* text = NULL;
    size_t length = 0;
    OK(guanaco_options_set_int(options, GUANACO_OPTION_ZERO_POINTS, version, error));
    OK(guanaco_inspect(TEXT(path), options, &inspection, error));
    OK(guanaco_inspection_text(inspection, GUANACO_TEXT_FORMAT, 0, &text, &length, error));
    CHECK(contains(text, length, version == GUANACO_ZERO_POINTS_V1 ? "points v1" : "points v2"));
    guanaco_inspection_free(inspection);
  }

  /* The estimate adds up, and gives as many as are asked for. */
  uint64_t bytes[8], first[2] = {0, 77};
  OK(guanaco_estimate(TEXT(path), options, bytes, 8, error));
  CHECK(bytes[GUANACO_MEMORY_WEIGHTS] == (uint64_t)weight_bytes);
  CHECK(bytes[GUANACO_MEMORY_SESSION] >= (uint64_t)value[GUANACO_INFO_KV_BYTES_PER_TOKEN] * 512);
  CHECK(bytes[GUANACO_MEMORY_HOST] + bytes[GUANACO_MEMORY_DEVICE] ==
        bytes[GUANACO_MEMORY_WEIGHTS] + bytes[GUANACO_MEMORY_SCRATCH] +
            bytes[GUANACO_MEMORY_SESSION]);
  CHECK(bytes[GUANACO_MEMORY_DEVICE] == 0 && bytes[6] == 0 && bytes[7] == 0);
  OK(guanaco_estimate(TEXT(path), options, first, 1, error));
  CHECK(first[0] == bytes[0] && first[1] == 77);
  guanaco_options_free(options);

  OK(guanaco_model_tokenizer(model, &tokenizer, error));
  REQUIRE(tokenizer != NULL);
}

/* ---- Texts. */

static void test_tokenizer(void) {
  char file[4096];
  snprintf(file, sizeof file, "%s/tokenizer.model", path);
  guanaco_tokenizer* alone = NULL;
  OK(guanaco_tokenizer_load(TEXT(file), &alone, error));
  REQUIRE(alone != NULL);
  CHECK(guanaco_tokenizer_size(alone) == guanaco_tokenizer_size(tokenizer));
  CHECK(guanaco_tokenizer_bos(tokenizer) == 1 && guanaco_tokenizer_eos(tokenizer) == 2);

  static const char* const texts[] = {"Hello there, world!",
                                      "  two  spaces ",
                                      "\xc3\xa9t\xc3\xa9",
                                      "\xf0\x9f\xa6\x99 and \xe6\xbc\xa2",
                                      "a\nb\tc",
                                      "<s>"};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; ++i) {
    const char* const text = texts[i];
    int32_t tokens[64], others[64];
    size_t count = 0, without = 0, length = 0;
    char decoded[64];
    OK(guanaco_tokenizer_encode(tokenizer, TEXT(text), 1, tokens, 64, &count, error));
    CHECK(tokens[0] == guanaco_tokenizer_bos(tokenizer));
    OK(guanaco_tokenizer_decode(tokenizer, tokens, count, decoded, 64, &length, error));
    CHECK(length == strlen(text) && memcmp(decoded, text, length) == 0);
    OK(guanaco_tokenizer_encode(alone, TEXT(text), 0, others, 64, &without, error));
    CHECK(without == count - 1 && memcmp(others, tokens + 1, without * sizeof *tokens) == 0);

    /* Text that goes on is its pieces, byte for byte. */
    reply pieces = {"", 0};
    OK(guanaco_tokenizer_encode_continuation(tokenizer, TEXT(text), tokens, 64, &count, error));
    for (size_t j = 0; j < count; ++j) {
      const char* bytes = NULL;
      OK(guanaco_tokenizer_piece(tokenizer, tokens[j], &bytes, &length, error));
      append(&pieces, bytes, length);
    }
    CHECK(pieces.length == strlen(text) && memcmp(pieces.text, text, pieces.length) == 0);
  }
  /* Length and not NUL ends a text. */
  int32_t tokens[8];
  size_t count = 0, length = 0;
  char decoded[8];
  OK(guanaco_tokenizer_encode(tokenizer, "a\0b", 3, 1, tokens, 8, &count, error));
  OK(guanaco_tokenizer_decode(tokenizer, tokens, count, decoded, 8, &length, error));
  CHECK(length == 3 && memcmp(decoded, "a\0b", 3) == 0);
  guanaco_tokenizer_free(alone);
}

static void test_chat(void) {
  const char* name = NULL;
  size_t length = 0, index = 0;
  for (; guanaco_chat_name(index, &name, &length) == GUANACO_OK; ++index) {
    guanaco_chat* chat = NULL;
    OK(guanaco_chat_new(name, length, &chat, error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_SYSTEM, TEXT("Be brief."), error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, TEXT("One?"), error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_ASSISTANT, TEXT("Two."), error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, TEXT("Three?"), error));
    const char* text = NULL;
    OK(guanaco_chat_render(chat, &text, &length, error));
    CHECK(memcmp(text, "Be brief.", 9) == 0 && contains(text, length, "Human: One?"));
    CHECK(contains(text, length, "Assistant: Two.") && contains(text, length, "Human: Three?"));
    CHECK(memcmp(text + length - 10, "Assistant:", 10) == 0);
    size_t stops = 0;
    for (; guanaco_chat_stop(chat, stops, &text, &length, NULL) == GUANACO_OK; ++stops)
      CHECK(length > 0);
    GIVES(GUANACO_END, guanaco_chat_stop(chat, stops, &text, &length, error));
    CHECK(stops > 0 && text == NULL && length == 0);
    OK(guanaco_chat_clear(chat, error));
    OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, NULL, 0, error));
    OK(guanaco_chat_render(chat, &text, &length, error));
    CHECK(!contains(text, length, "One?") && contains(text, length, "Human:"));
    guanaco_chat_free(chat);
  }
  CHECK(index == 5 && guanaco_chat_name(index, &name, &length) == GUANACO_END);
  CHECK(name == NULL && length == 0);
}

static void test_stream(void) {
  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_add_stop(options, TEXT("###"), error));
  OK(guanaco_options_add_stop(options, TEXT("The End"), error));
  static const char input[] = " One \xc3\xa9 # two \n The End of it";
  static const char* const expected[] = {" One \xc3\xa9 # two", " One \xc3\xa9 # two \n "};
  for (int trim = 1; trim >= 0; --trim)
    for (size_t slice = 1; slice <= sizeof input; ++slice) {
      OK(guanaco_options_set_int(options, GUANACO_OPTION_TRIM_BEFORE_STOP, trim, error));
      OK(guanaco_options_set_int(options, GUANACO_OPTION_DROP_LEADING_SPACE, !trim, error));
      guanaco_stream* stream = NULL;
      OK(guanaco_stream_new(options, &stream, error));
      reply all = {"", 0};
      const char* text = NULL;
      size_t length = 0;
      CHECK(guanaco_stream_stop(stream) == -1);
      guanaco_status status = GUANACO_OK;
      for (size_t at = 0; status == GUANACO_OK && at < strlen(input); at += slice) {
        const size_t left = strlen(input) - at;
        status = guanaco_stream_push(stream, input + at, left < slice ? left : slice, &text,
                                     &length, NULL);
        append(&all, text, length);
      }
      CHECK(status == GUANACO_END && guanaco_stream_stop(stream) == 1);
      const char* const want = expected[!trim] + !trim;
      CHECK(all.length == strlen(want) && memcmp(all.text, want, all.length) == 0);
      GIVES(GUANACO_END, guanaco_stream_push(stream, TEXT("more"), &text, &length, error));
      CHECK(length == 0);
      OK(guanaco_stream_finish(stream, &text, &length, error));
      CHECK(length == 0);
      guanaco_stream_free(stream);
    }
  guanaco_options_free(options);

  /* What is held back comes at the end: half a stop text is none, half a code point is U+FFFD. */
  guanaco_stream* stream = NULL;
  const char* text = NULL;
  size_t length = 0;
  OK(guanaco_stream_new(NULL, &stream, error));
  OK(guanaco_stream_push(stream, TEXT("a\xf0\x9f"), &text, &length, error));
  CHECK(length == 1 && text[0] == 'a');
  OK(guanaco_stream_push(stream, NULL, 0, &text, &length, error));
  CHECK(length == 0);
  OK(guanaco_stream_finish(stream, &text, &length, error));
  CHECK(length == 3 && memcmp(text, "\xef\xbf\xbd", 3) == 0);
  CHECK(guanaco_stream_stop(stream) == -1);
  guanaco_stream_free(stream);
}

static void test_sampler(void) {
  float logits[256];
  uint32_t state = 1;
  for (size_t i = 0; i < 256; ++i) {
    state = state * 1664525u + 1013904223u;
    logits[i] = (float)(state >> 8) / (float)(1 << 22);
  }
  guanaco_options* const options = options_of(GUANACO_OPTION_SEED, 11, 0);
  OK(guanaco_options_set_float(options, GUANACO_OPTION_PRESENCE_PENALTY, 0.5, error));
  guanaco_sampler *sampler = NULL, *twin = NULL;
  OK(guanaco_sampler_new(options, &sampler, error));
  int32_t a = -1, b = -1, different = 0;
  OK(guanaco_sampler_sample(sampler, logits, 256, &a, error));
  OK(guanaco_sampler_copy(sampler, &twin, error));
  for (int i = 0; i < 32; ++i) {
    const int32_t last = a;
    OK(guanaco_sampler_sample(sampler, logits, 256, &a, error));
    OK(guanaco_sampler_sample(twin, logits, 256, &b, error));
    CHECK(a == b && a >= 0 && a < 256);
    different += a != last;
  }
  CHECK(different > 0);
  guanaco_sampler_free(sampler);
  guanaco_sampler_free(twin);

  /* Temperature 0 takes the likeliest, until it is penalised enough. */
  int32_t likeliest = 0;
  for (int32_t i = 1; i < 256; ++i)
    if (logits[i] > logits[likeliest]) likeliest = i;
  OK(guanaco_options_set_float(options, GUANACO_OPTION_TEMPERATURE, 0, error));
  OK(guanaco_options_set_float(options, GUANACO_OPTION_PRESENCE_PENALTY, 1000, error));
  OK(guanaco_sampler_new(options, &sampler, error));
  OK(guanaco_sampler_copy(sampler, &twin, error));
  OK(guanaco_sampler_sample(sampler, logits, 256, &a, error));
  OK(guanaco_sampler_accept(twin, &likeliest, 1, error));
  OK(guanaco_sampler_accept(twin, NULL, 0, error));
  OK(guanaco_sampler_sample(twin, logits, 256, &b, error));
  CHECK(a == likeliest && b != likeliest);
  guanaco_sampler_free(sampler);
  guanaco_sampler_free(twin);
  guanaco_options_free(options);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 2);
  path = argv[1];
  test_versions();
  test_options();
  test_loading();
  test_tokenizer();
  test_chat();
  test_stream();
  test_sampler();
  guanaco_tokenizer_free(tokenizer);
  guanaco_model_free(model);
  return failures > 0;
}
