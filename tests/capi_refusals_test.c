/* What the C ABI refuses: every function with NULL for each pointer, in the wrong order, with
 * lengths of zero and room for one too few. Each gives its status and a line that names the
 * culprit, clears its results, and leaves all objects as they were.
 *
 *     capi_refusals_test MODEL */
#include "capi_check.h"

#include <math.h>

static const char* path;
static guanaco_model* model;
static guanaco_tokenizer* tokenizer;
static const int32_t tokens[] = {1, 400, 500, 600};

static void test_model(void) {
  guanaco_inspection* inspection = NULL;
  OK(guanaco_inspect(TEXT(path), NULL, &inspection, error));
  REFUSES("path", guanaco_model_load(NULL, 1, NULL, &got.made.model, error));
  REFUSES("out", guanaco_model_load(TEXT(path), NULL, NULL, error));
  REFUSES("path", guanaco_model_load("a\0b", 3, NULL, &got.made.model, error));
  REFUSES("model", guanaco_model_info(NULL, GUANACO_INFO_HEADS, &got.value, error));
  REFUSES("value", guanaco_model_info(model, GUANACO_INFO_HEADS, NULL, error));
  REFUSES("info 0", guanaco_model_info(model, 0, &got.value, error));
  REFUSES("info 19", guanaco_model_info(model, GUANACO_INFO_HAS_TOKENIZER + 1, &got.value, error));
  REFUSES("model", guanaco_model_text(NULL, 1, 0, &got.text, &got.length, error));
  REFUSES("text", guanaco_model_text(model, 1, 0, NULL, &got.length, error));
  REFUSES("length", guanaco_model_text(model, 1, 0, &got.text, NULL, error));
  REFUSES("text 6", guanaco_model_text(model, 6, 0, &got.text, &got.length, error));
  REFUSES("model", guanaco_model_tokenizer(NULL, &got.made.tokenizer, error));
  REFUSES("out", guanaco_model_tokenizer(model, NULL, error));
  REFUSES("path", guanaco_inspect(NULL, 1, NULL, &got.made.inspection, error));
  REFUSES("out", guanaco_inspect(TEXT(path), NULL, NULL, error));
  REFUSES("inspection", guanaco_inspection_info(NULL, GUANACO_INFO_HEADS, &got.value, error));
  REFUSES("value", guanaco_inspection_info(inspection, GUANACO_INFO_HEADS, NULL, error));
  REFUSES("info -1", guanaco_inspection_info(inspection, -1, &got.value, error));
  REFUSES("inspection", guanaco_inspection_text(NULL, 1, 0, &got.text, &got.length, error));
  REFUSES("text", guanaco_inspection_text(inspection, 1, 0, NULL, &got.length, error));
  REFUSES("length", guanaco_inspection_text(inspection, 1, 0, &got.text, NULL, error));
  REFUSES("text 0", guanaco_inspection_text(inspection, 0, 0, &got.text, &got.length, error));
  REFUSES("path", guanaco_estimate(NULL, 1, NULL, got.bytes, 2, error));
  REFUSES("bytes", guanaco_estimate(TEXT(path), NULL, NULL, 2, error));
  guanaco_inspection_free(inspection);
}

static void test_tokenizer(void) {
  REFUSES("file", guanaco_tokenizer_load(NULL, 1, &got.made.tokenizer, error));
  REFUSES("out", guanaco_tokenizer_load("x", 1, NULL, error));
  int32_t ids[8];
  char text[32];
  REFUSES("tokenizer", guanaco_tokenizer_encode(NULL, "a", 1, 1, ids, 8, &got.needed, error));
  REFUSES("text", guanaco_tokenizer_encode(tokenizer, NULL, 1, 1, ids, 8, &got.needed, error));
  REFUSES("needed", guanaco_tokenizer_encode(tokenizer, "a", 1, 1, ids, 8, NULL, error));
  for (size_t room = 1; room < 64; room += 31) /* too little, and enough */
    REFUSES("tokens: is NULL",
            guanaco_tokenizer_encode(tokenizer, "a", 1, 1, NULL, room, &got.needed, error));
  REFUSES("tokenizer",
          guanaco_tokenizer_encode_continuation(NULL, "a", 1, ids, 8, &got.needed, error));
  REFUSES("text",
          guanaco_tokenizer_encode_continuation(tokenizer, NULL, 1, ids, 8, &got.needed, error));
  REFUSES("needed", guanaco_tokenizer_encode_continuation(tokenizer, "a", 1, ids, 8, NULL, error));
  REFUSES("tokens: is NULL",
          guanaco_tokenizer_encode_continuation(tokenizer, "a", 1, NULL, 64, &got.needed, error));
  REFUSES("tokenizer", guanaco_tokenizer_decode(NULL, tokens, 4, text, 32, &got.needed, error));
  REFUSES("tokens", guanaco_tokenizer_decode(tokenizer, NULL, 4, text, 32, &got.needed, error));
  REFUSES("needed", guanaco_tokenizer_decode(tokenizer, tokens, 4, text, 32, NULL, error));
  REFUSES("text: is NULL",
          guanaco_tokenizer_decode(tokenizer, tokens, 4, NULL, 32, &got.needed, error));
  REFUSES("tokenizer", guanaco_tokenizer_piece(NULL, 1, &got.text, &got.length, error));
  REFUSES("bytes", guanaco_tokenizer_piece(tokenizer, 1, NULL, &got.length, error));
  REFUSES("length", guanaco_tokenizer_piece(tokenizer, 1, &got.text, NULL, error));
  CHECK(guanaco_tokenizer_size(NULL) == 0 && guanaco_tokenizer_bos(NULL) == -1 &&
        guanaco_tokenizer_eos(NULL) == -1);
  const char* piece = "";
  size_t length = 77;
  OK(guanaco_tokenizer_piece(tokenizer, -1, &piece, &length, error));
  CHECK(length == 0);

  /* A buffer with room for one too few is left alone; none is needed to ask, nor for nothing. */
  size_t needed = 0;
  GIVES(GUANACO_OK, guanaco_tokenizer_encode(tokenizer, NULL, 0, 0, NULL, 0, &needed, error));
  CHECK(needed == 0);
  OK(guanaco_tokenizer_encode_continuation(tokenizer, NULL, 0, NULL, 0, &needed, error));
  OK(guanaco_tokenizer_decode(tokenizer, NULL, 0, NULL, 0, &needed, error));
  for (size_t capacity = 0; capacity < 4; ++capacity) {
#define TOO_SMALL(buffer, enough, call)                                           \
  do {                                                                            \
    size_t room = capacity;                                                       \
    memset(buffer, 0x5a, sizeof buffer);                                          \
    FAILS(GUANACO_BUFFER_TOO_SMALL, #buffer, call);                               \
    needed = got.needed;                                                          \
    CHECK(needed == (enough));                                                    \
    room = needed - 1;                                                            \
    CHECK((call) == GUANACO_BUFFER_TOO_SMALL);                                    \
    for (size_t i = 0; i < sizeof buffer; ++i) CHECK(((char*)buffer)[i] == 0x5a); \
    room = needed;                                                                \
    CHECK((call) == GUANACO_OK && got.needed == needed);                          \
    CHECK(((char*)buffer)[needed * sizeof *buffer] == 0x5a);                      \
  } while (0)
    int32_t tokens[64];
    guanaco_error* error = NULL;
    TOO_SMALL(
        tokens, 6,
        guanaco_tokenizer_encode(tokenizer, TEXT("zqxzq"), 1, tokens, room, &got.needed, error));
    TOO_SMALL(tokens, 5,
              guanaco_tokenizer_encode_continuation(tokenizer, TEXT("zqxzq"), tokens, room,
                                                    &got.needed, error));
    CHECK(guanaco_tokenizer_encode(tokenizer, TEXT("zqxzq"), 1, tokens, 64, &needed, NULL) == 0);
    TOO_SMALL(text, 5,
              guanaco_tokenizer_decode(tokenizer, tokens, 6, text, room, &got.needed, error));
#undef TOO_SMALL
  }
}

static void test_chat(void) {
  const char* text = "";
  size_t length = 77;
  CHECK(guanaco_chat_name(0, NULL, &length) == GUANACO_INVALID_ARGUMENT && length == 0);
  CHECK(guanaco_chat_name(0, &text, NULL) == GUANACO_INVALID_ARGUMENT && text == NULL);
  guanaco_chat* chat = NULL;
  OK(guanaco_chat_new(TEXT("guanaco"), &chat, error));
  REQUIRE(chat != NULL);
  REFUSES("name", guanaco_chat_new(NULL, 1, &got.made.chat, error));
  REFUSES("out", guanaco_chat_new("card", 4, NULL, error));
  REFUSES("guanaco, card", guanaco_chat_new("llama", 5, &got.made.chat, error));
  REFUSES("guanaco, card", guanaco_chat_new(NULL, 0, &got.made.chat, error));
  REFUSES("chat", guanaco_chat_add(NULL, GUANACO_ROLE_USER, "a", 1, error));
  REFUSES("text", guanaco_chat_add(chat, GUANACO_ROLE_USER, NULL, 1, error));
  REFUSES("role", guanaco_chat_add(chat, GUANACO_ROLE_ASSISTANT + 1, "a", 1, error));
  REFUSES("role", guanaco_chat_add(chat, -1, "a", 1, error));
  REFUSES("chat", guanaco_chat_clear(NULL, error));
  REFUSES("chat", guanaco_chat_render(NULL, &got.text, &got.length, error));
  REFUSES("text", guanaco_chat_render(chat, NULL, &got.length, error));
  REFUSES("length", guanaco_chat_render(chat, &got.text, NULL, error));
  REFUSES("chat", guanaco_chat_stop(NULL, 0, &got.text, &got.length, error));
  REFUSES("text", guanaco_chat_stop(chat, 0, NULL, &got.length, error));
  REFUSES("length", guanaco_chat_stop(chat, 0, &got.text, NULL, error));

  REFUSES("conversation[0]", guanaco_chat_render(chat, &got.text, &got.length, error));
  OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, TEXT("Yes?"), error));
  OK(guanaco_chat_add(chat, GUANACO_ROLE_ASSISTANT, TEXT("No."), error));
  REFUSES("conversation[1]", guanaco_chat_render(chat, &got.text, &got.length, error));
  OK(guanaco_chat_add(chat, GUANACO_ROLE_SYSTEM, TEXT("Late."), error));
  REFUSES("conversation[2]", guanaco_chat_render(chat, &got.text, &got.length, error));
  OK(guanaco_chat_clear(chat, error));
  OK(guanaco_chat_add(chat, GUANACO_ROLE_USER, TEXT("Yes?"), error));
  OK(guanaco_chat_render(chat, &text, &length, error));
  guanaco_chat_free(chat);
}

static void test_stream_and_sampler(void) {
  guanaco_stream* stream = NULL;
  OK(guanaco_stream_new(NULL, &stream, error));
  REFUSES("out", guanaco_stream_new(NULL, NULL, error));
  REFUSES("stream", guanaco_stream_push(NULL, "a", 1, &got.text, &got.length, error));
  REFUSES("bytes", guanaco_stream_push(stream, NULL, 1, &got.text, &got.length, error));
  REFUSES("text", guanaco_stream_push(stream, "a", 1, NULL, &got.length, error));
  REFUSES("length", guanaco_stream_push(stream, "a", 1, &got.text, NULL, error));
  REFUSES("stream", guanaco_stream_finish(NULL, &got.text, &got.length, error));
  REFUSES("text", guanaco_stream_finish(stream, NULL, &got.length, error));
  REFUSES("length", guanaco_stream_finish(stream, &got.text, NULL, error));
  CHECK(guanaco_stream_stop(NULL) == -1);
  const char* text = NULL;
  size_t length = 0;
  OK(guanaco_stream_push(stream, "b", 1, &text, &length, error));
  CHECK(length == 1 && text[0] == 'b'); /* nothing of what was refused */
  OK(guanaco_stream_finish(stream, &text, &length, error));
  OK(guanaco_stream_push(stream, "c", 1, &text, &length, error)); /* after the end: nothing */
  CHECK(length == 0);
  guanaco_stream_free(stream);

  guanaco_sampler* sampler = NULL;
  float logits[] = {0, 1, 2, 3};
  OK(guanaco_sampler_new(NULL, &sampler, error));
  REFUSES("out", guanaco_sampler_new(NULL, NULL, error));
  REFUSES("sampler", guanaco_sampler_copy(NULL, &got.made.sampler, error));
  REFUSES("out", guanaco_sampler_copy(sampler, NULL, error));
  REFUSES("sampler", guanaco_sampler_sample(NULL, logits, 4, &got.token, error));
  REFUSES("logits", guanaco_sampler_sample(sampler, NULL, 4, &got.token, error));
  REFUSES("token", guanaco_sampler_sample(sampler, logits, 4, NULL, error));
  REFUSES("logits", guanaco_sampler_sample(sampler, NULL, 0, &got.token, error));
  REFUSES("sampler", guanaco_sampler_accept(NULL, tokens, 4, error));
  REFUSES("tokens", guanaco_sampler_accept(sampler, NULL, 4, error));
  const int32_t negative = -1;
  REFUSES("-1", guanaco_sampler_accept(sampler, &negative, 1, error));
  logits[2] = NAN;
  REFUSES("logits", guanaco_sampler_sample(sampler, logits, 4, &got.token, error));
  for (int i = 0; i < 4; ++i) logits[i] = -HUGE_VALF;
  REFUSES("logits", guanaco_sampler_sample(sampler, logits, 4, &got.token, error));
  guanaco_sampler_free(sampler);
}

static void test_session(void) {
  guanaco_session *const session = session_of(model, 8), *const other = session_of(model, 8);
  guanaco_options* const huge = options_of(GUANACO_OPTION_CONTEXT, 1 << 24, 0);
  REFUSES("model", guanaco_session_new(NULL, NULL, &got.made.session, error));
  REFUSES("out", guanaco_session_new(model, NULL, NULL, error));
  FAILS(GUANACO_OUT_OF_MEMORY, "16777216 tokens",
        guanaco_session_new(model, huge, &got.made.session, error));
  guanaco_options_free(huge);
  OK(guanaco_session_feed(session, tokens, 4, NULL, error));
  REFUSES("session", guanaco_session_feed(NULL, tokens, 4, NULL, error));
  REFUSES("tokens", guanaco_session_feed(session, NULL, 4, NULL, error));
  const int32_t wrong[] = {1, 1 << 20}, negative[] = {1, -1};
  REFUSES("1048576", guanaco_session_feed(session, wrong, 2, NULL, error));
  REFUSES("-1", guanaco_session_feed(session, negative, 2, NULL, error));
  const int32_t five[] = {1, 2, 3, 4, 5};
  FAILS(GUANACO_CONTEXT_FULL, "5 tokens", guanaco_session_feed(session, five, 5, NULL, error));

  guanaco_session *const both[] = {session, other}, *const twice[] = {other, other},
                         *const half[] = {other, NULL};
  const int32_t *const lists[] = {tokens, tokens}, *const one_list[] = {tokens, NULL},
                       *const too_long[] = {tokens, five};
  const size_t counts[] = {2, 2}, fives[] = {2, 5};
  REFUSES("sessions", guanaco_session_feed_many(NULL, lists, counts, 2, NULL, error));
  REFUSES("sessions[", guanaco_session_feed_many(half, lists, counts, 2, NULL, error));
  REFUSES("tokens", guanaco_session_feed_many(both, NULL, counts, 2, NULL, error));
  REFUSES("tokens[", guanaco_session_feed_many(both, one_list, counts, 2, NULL, error));
  REFUSES("counts", guanaco_session_feed_many(both, lists, NULL, 2, NULL, error));
  REFUSES("same session", guanaco_session_feed_many(twice, lists, counts, 2, NULL, error));
  guanaco_session* const full_last[] = {other, session};
  FAILS(GUANACO_CONTEXT_FULL, "5 tokens",
        guanaco_session_feed_many(full_last, too_long, fives, 2, NULL, error));

  REFUSES("session", guanaco_session_score(NULL, tokens, 2, got.logprobs, NULL, error));
  REFUSES("tokens", guanaco_session_score(session, NULL, 2, got.logprobs, NULL, error));
  REFUSES("logprobs", guanaco_session_score(session, tokens, 2, NULL, NULL, error));
  REFUSES("1048576", guanaco_session_score(session, wrong, 2, got.logprobs, NULL, error));

  REFUSES("session", guanaco_session_rewind(NULL, 0, error));
  REFUSES("position", guanaco_session_rewind(session, 5, error));
  REFUSES("position", guanaco_session_rewind(session, -1, error));
  REFUSES("position", guanaco_session_rewind(session, INT64_C(1) << 32, error));
  REFUSES("session", guanaco_session_reuse(NULL, tokens, 4, &got.known, error));
  REFUSES("tokens", guanaco_session_reuse(session, NULL, 4, &got.known, error));
  REFUSES("known", guanaco_session_reuse(session, tokens, 4, NULL, error));

  size_t count = 77;
  CHECK(guanaco_session_logits(NULL, &count) == NULL && count == 0);
  CHECK(guanaco_session_logits(session, NULL) != NULL);
  count = 77;
  CHECK(guanaco_session_tokens(NULL, &count) == NULL && count == 0);
  CHECK(guanaco_session_tokens(session, NULL) != NULL);
  CHECK(guanaco_session_position(NULL) == -1 && guanaco_session_context(NULL) == -1);
  CHECK(guanaco_session_position(session) == 4 && guanaco_session_position(other) == 0);
  guanaco_session_free(session);
  guanaco_session_free(other);
}

static void test_generation(void) {
  guanaco_session *const session = session_of(model, 64), *const other = session_of(model, 64);
  guanaco_generation *generation = NULL, *foreign = NULL;
  REFUSES("session", guanaco_generate(NULL, NULL, "a", 1, NULL, &got.made.generation, error));
  REFUSES("prompt", guanaco_generate(session, NULL, NULL, 1, NULL, &got.made.generation, error));
  REFUSES("out", guanaco_generate(session, NULL, "a", 1, NULL, NULL, error));
  REFUSES("session",
          guanaco_generate_tokens(NULL, NULL, tokens, 4, NULL, &got.made.generation, error));
  REFUSES("tokens",
          guanaco_generate_tokens(session, NULL, NULL, 4, NULL, &got.made.generation, error));
  REFUSES("out", guanaco_generate_tokens(session, NULL, tokens, 4, NULL, NULL, error));
  REFUSES("empty",
          guanaco_generate_tokens(session, NULL, NULL, 0, NULL, &got.made.generation, error));
  char long_prompt[256];
  memset(long_prompt, '!', sizeof long_prompt);
  FAILS(GUANACO_CONTEXT_FULL, "64",
        guanaco_generate(session, NULL, long_prompt, 256, NULL, &got.made.generation, error));

  /* While a generation of it lives, a session can only be looked at. */
  OK(guanaco_generate(session, NULL, "a", 1, NULL, &generation, error));
  REQUIRE(generation != NULL);
  const int32_t* const list = tokens;
  const size_t one = 1;
  REFUSES("in use", guanaco_session_feed(session, tokens, 1, NULL, error));
  REFUSES("in use", guanaco_session_feed_many(&session, &list, &one, 1, NULL, error));
  REFUSES("in use", guanaco_session_score(session, tokens, 2, got.logprobs, NULL, error));
  REFUSES("in use", guanaco_session_rewind(session, 0, error));
  REFUSES("in use", guanaco_session_reuse(session, tokens, 1, &got.known, error));
  REFUSES("in use", guanaco_generate(session, NULL, "a", 1, NULL, &got.made.generation, error));
  REFUSES("in use",
          guanaco_generate_tokens(session, NULL, tokens, 1, NULL, &got.made.generation, error));
  CHECK(guanaco_session_position(session) == 0);

  REFUSES("generation",
          guanaco_generation_next(NULL, &got.text, &got.length, &got.token, &got.logprob, error));
  REFUSES("text", guanaco_generation_next(generation, NULL, &got.length, NULL, NULL, error));
  REFUSES("length", guanaco_generation_next(generation, &got.text, NULL, NULL, NULL, error));
  REFUSES("generations", guanaco_generation_step(NULL, 1, error));
  guanaco_generation *const half[] = {generation, NULL}, *const twice[] = {generation, generation};
  REFUSES("generations[", guanaco_generation_step(half, 2, error));
  REFUSES("the same", guanaco_generation_step(twice, 2, error));
  CHECK(guanaco_generation_finish(NULL) == GUANACO_FINISH_NONE);
  CHECK(guanaco_generation_tokens(NULL) == 0);
  guanaco_generation_cancel(NULL);

  /* Of two models: not together. */
  guanaco_model* const second = load(path);
  guanaco_session* const stranger = session_of(second, 64);
  guanaco_session* const strangers[] = {other, stranger};
  const int32_t* const lists[] = {tokens, tokens};
  const size_t counts[] = {1, 1};
  REFUSES("another model", guanaco_session_feed_many(strangers, lists, counts, 2, NULL, error));
  OK(guanaco_generate(stranger, NULL, "a", 1, NULL, &foreign, error));
  guanaco_generation* const mixed[] = {generation, foreign};
  REFUSES("another model", guanaco_generation_step(mixed, 2, error));
  guanaco_generation_free(foreign);
  guanaco_session_free(stranger);
  guanaco_model_free(second);

  /* After all that it goes on; cancelled before it began, it never does. */
  const char* text = NULL;
  size_t length = 0;
  OK(guanaco_generation_next(generation, &text, &length, NULL, NULL, error));
  CHECK(guanaco_generation_tokens(generation) == 1);
  guanaco_generation_free(generation);
  OK(guanaco_generate(other, NULL, "a", 1, NULL, &generation, error));
  guanaco_generation_cancel(generation);
  GIVES(GUANACO_CANCELLED, guanaco_generation_next(generation, &text, &length, NULL, NULL, error));
  guanaco_generation_free(generation);
  guanaco_session_free(session);
  guanaco_session_free(other);
}

/* In a callback, what would wait for its own call; of another model, for who may wait for it. */
static int call_backs;
static guanaco_session* foreign;
static guanaco_generation* talk;
static int32_t call_back(uint64_t done, uint64_t total, void* other) {
  ++call_backs;
  REFUSES("from a callback", guanaco_session_feed(foreign, tokens, 1, NULL, error));
  REFUSES("from a callback",
          guanaco_generation_next(talk, &got.text, &got.length, NULL, NULL, error));
  REFUSES("from a callback", guanaco_generation_step(&talk, 1, error));
  REFUSES("from a callback", guanaco_session_feed(other, tokens, 1, NULL, error));
  REFUSES("from a callback", guanaco_session_score(other, tokens, 2, got.logprobs, NULL, error));
  REFUSES("from a callback", guanaco_session_new(model, NULL, &got.made.session, error));
  CHECK(guanaco_session_position(other) == 0);
  return done > total;
}

static void test_callback(void) {
  guanaco_session *const session = session_of(model, 8), *const other = session_of(model, 8);
  guanaco_session* const talking = session_of(model, 8);
  guanaco_options* const options = guanaco_options_new();
  guanaco_model* const second = load(path);
  foreign = session_of(second, 8);
  OK(guanaco_generate(talking, NULL, "a", 1, NULL, &talk, error));
  OK(guanaco_options_on_progress(options, call_back, other, error));
  OK(guanaco_session_feed(session, tokens, 4, options, error));
  CHECK(call_backs > 0);
  OK(guanaco_session_feed(other, tokens, 4, NULL, error));
  OK(guanaco_session_feed(foreign, tokens, 4, NULL, error));
  guanaco_generation_free(talk);
  guanaco_session_free(talking);
  guanaco_session_free(foreign);
  guanaco_model_free(second);
  guanaco_options_free(options);
  guanaco_session_free(session);
  guanaco_session_free(other);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 2);
  path = argv[1];
  model = load(path);
  OK(guanaco_model_tokenizer(model, &tokenizer, error));
  test_model();
  test_tokenizer();
  test_chat();
  test_stream_and_sampler();
  test_session();
  test_generation();
  test_callback();
  guanaco_options_free(NULL);
  guanaco_inspection_free(NULL);
  guanaco_chat_free(NULL);
  guanaco_stream_free(NULL);
  guanaco_sampler_free(NULL);
  guanaco_generation_free(NULL);
  guanaco_session_free(NULL);
  guanaco_tokenizer_free(NULL);
  guanaco_model_free(NULL);
  guanaco_tokenizer_free(tokenizer);
  guanaco_model_free(model);
  return failures > 0;
}
