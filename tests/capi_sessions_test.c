/* Sessions and generations of the C ABI: what one call computes agrees with what the others do.
 *
 *     capi_sessions_test MODEL */
#include "capi_story.h"

#include <math.h>

static int32_t stop_in_the_middle(uint64_t done, uint64_t total, void* user_data) {
  (void)user_data;
  return done >= total / 2;
}

static void test_session(void) {
  guanaco_session* const session = session_of(model, 256);
  guanaco_session* const whole = fed(story, story_length);
  size_t count = 77;
  CHECK(guanaco_session_context(session) == 256 && guanaco_session_position(session) == 0);
  CHECK(guanaco_session_logits(session, &count) == NULL && count == 0);
  guanaco_session_tokens(session, &count);
  CHECK(count == 0);
  OK(guanaco_session_feed(session, NULL, 0, NULL, error));
  CHECK(guanaco_session_position(session) == 0);

  /* In parts, as at once. */
  OK(guanaco_session_feed(session, story, 5, NULL, error));
  OK(guanaco_session_feed(session, story + 5, story_length - 5, NULL, error));
  CHECK(guanaco_session_position(session) == (int64_t)story_length && same_logits(session, whole));
  const int32_t* const held = guanaco_session_tokens(session, &count);
  CHECK(count == story_length && memcmp(held, story, count * sizeof *held) == 0);

  /* Rewound, and fed again. */
  OK(guanaco_session_feed(session, question, question_length, NULL, error));
  OK(guanaco_session_rewind(session, (int64_t)story_length, error));
  CHECK(guanaco_session_logits(session, &count) == NULL && count == 0);
  OK(guanaco_session_rewind(session, 5, error));
  OK(guanaco_session_feed(session, story + 5, story_length - 5, NULL, error));
  CHECK(same_logits(session, whole));

  /* Reused: of the same prompt its last token is left to feed. */
  size_t known = 0;
  OK(guanaco_session_reuse(session, story, story_length, &known, error));
  CHECK(known == story_length - 1 && guanaco_session_position(session) == (int64_t)known);
  OK(guanaco_session_feed(session, story + known, 1, NULL, error));
  CHECK(same_logits(session, whole));
  int32_t other[64];
  memcpy(other, story, sizeof other);
  other[7] = other[7] == 300 ? 301 : 300;
  OK(guanaco_session_reuse(session, other, story_length, &known, error));
  CHECK(known == 7);
  OK(guanaco_session_reuse(session, NULL, 0, &known, error));
  CHECK(known == 0 && guanaco_session_position(session) == 0);

  /* Cancelled by its callback: as before. */
  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_on_progress(options, stop_in_the_middle, NULL, error));
  OK(guanaco_session_feed(session, story, story_length, NULL, error));
  GIVES(GUANACO_CANCELLED, guanaco_session_feed(session, story, story_length, options, error));
  CHECK(guanaco_session_position(session) == (int64_t)story_length && same_logits(session, whole));
  guanaco_options_free(options);
  guanaco_session_free(session);
  guanaco_session_free(whole);
}

static int32_t count_down(uint64_t done, uint64_t total, void* user_data) {
  int* const left = user_data;
  CHECK(done <= total);
  return --*left <= 0;
}

/* Whichever report of a feed or a prompt says to give up, it is cancelled, and nothing happened. */
static void test_giving_up(void) {
  int left = 1 << 30;
  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_on_progress(options, count_down, &left, error));
  guanaco_session* const session = session_of(model, 256);
  guanaco_session_feed(session, story, 20, options, NULL);
  const int reports = (1 << 30) - left;
  CHECK(reports > 4);
  for (int i = 1; i <= reports; ++i) {
    guanaco_generation* generation = NULL;
    const char* text = NULL;
    size_t length = 0;
    OK(guanaco_session_rewind(session, 0, error));
    left = i;
    GIVES(GUANACO_CANCELLED, guanaco_session_feed(session, story, 20, options, error));
    CHECK(left == 0); /* the last call */
    left = i;
    OK(guanaco_generate_tokens(session, NULL, story, 20, options, &generation, error));
    GIVES(GUANACO_CANCELLED,
          guanaco_generation_next(generation, &text, &length, NULL, NULL, error));
    CHECK(left == 0 && guanaco_generation_tokens(generation) == 0);
    guanaco_generation_free(generation);
    CHECK(guanaco_session_position(session) == 0);
  }
  guanaco_session_free(session);
  guanaco_options_free(options);
}

static void test_many(void) {
  guanaco_session* const alone[] = {fed(story, story_length), fed(question, question_length)};
  guanaco_session* const sessions[] = {session_of(model, 256), session_of(model, 256),
                                       session_of(model, 256)};
  const int32_t* const tokens[] = {story, question, NULL};
  const size_t counts[] = {story_length, question_length, 0};
  OK(guanaco_session_feed_many(NULL, NULL, NULL, 0, NULL, error));
  OK(guanaco_session_feed_many(sessions, tokens, counts, 3, NULL, error));
  CHECK(same_logits(sessions[0], alone[0]) && same_logits(sessions[1], alone[1]));
  CHECK(guanaco_session_position(sessions[2]) == 0);

  /* All or nothing. */
  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_on_progress(options, stop_in_the_middle, NULL, error));
  GIVES(GUANACO_CANCELLED, guanaco_session_feed_many(sessions, tokens, counts, 3, options, error));
  CHECK(same_logits(sessions[0], alone[0]) && same_logits(sessions[1], alone[1]));
  CHECK(guanaco_session_position(sessions[1]) == (int64_t)question_length);
  guanaco_options_free(options);
  for (int i = 0; i < 3; ++i) guanaco_session_free(sessions[i]);
  for (int i = 0; i < 2; ++i) guanaco_session_free(alone[i]);
}

static double log_probability(const guanaco_session* session, int32_t token) {
  size_t count = 0;
  const float* const logits = guanaco_session_logits(session, &count);
  REQUIRE(token >= 0 && (size_t)token < count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += exp((double)logits[i]);
  return (double)logits[token] - log(sum);
}

static void test_score(void) {
  guanaco_session* const session = session_of(model, 256);
  guanaco_session* const single = session_of(model, 256);
  float whole[64], parts[64];
  OK(guanaco_session_score(session, NULL, 0, NULL, NULL, error));
  OK(guanaco_session_score(session, story, story_length, whole, NULL, error));
  OK(guanaco_session_rewind(session, 0, error));
  OK(guanaco_session_score(session, story, 6, parts, NULL, error));
  OK(guanaco_session_score(session, story + 6, story_length - 6, parts + 6, NULL, error));
  CHECK(whole[0] == 0);
  double sum = 0, sum_of_parts = 0, sum_of_logits = 0;
  for (size_t i = 0; i < story_length; ++i) {
    if (i > 0) sum_of_logits += log_probability(single, story[i]);
    OK(guanaco_session_feed(single, story + i, 1, NULL, error));
    CHECK(whole[i] <= 0 && isfinite(whole[i]));
    sum += (double)whole[i];
    sum_of_parts += (double)parts[i];
  }
  CHECK(sum < 0 && fabs(sum - sum_of_parts) < 1e-4 && fabs(sum - sum_of_logits) < 1e-3);
  CHECK(same_logits(session, single));

  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_on_progress(options, stop_in_the_middle, NULL, error));
  GIVES(GUANACO_CANCELLED,
        guanaco_session_score(session, story, story_length, parts, options, error));
  for (size_t i = 0; i < story_length; ++i) CHECK(parts[i] == 0);
  CHECK(same_logits(session, single));
  guanaco_options_free(options);
  guanaco_session_free(session);
  guanaco_session_free(single);
}

static void test_replies(void) {
  const int most = is_short ? 6 : 24;
  guanaco_options* const options =
      options_of(GUANACO_OPTION_MAX_TOKENS, most, GUANACO_OPTION_SEED, 7, 0);
  guanaco_session* const session = session_of(model, 256);
  const reply first = reply_to(session, QUESTION, options);
  OK(guanaco_session_rewind(session, 0, error));
  const reply again = reply_to(session, QUESTION, options);
  CHECK(first.length > 0 && same(&first, &again));

  /* The same with a sampler of one's own and a prompt of tokens. The pieces of its tokens are its
   * text, and their log-probabilities are what score() gives them. */
  guanaco_sampler* sampler = NULL;
  guanaco_generation* generation = NULL;
  OK(guanaco_sampler_new(options, &sampler, error));
  OK(guanaco_session_rewind(session, 0, error));
  OK(guanaco_options_set_int(options, GUANACO_OPTION_DROP_LEADING_SPACE, 0, error));
  OK(guanaco_generate_tokens(session, sampler, question, question_length, options, &generation,
                             error));
  guanaco_sampler_free(sampler);
  CHECK(guanaco_session_position(session) == 0);
  CHECK(guanaco_generation_finish(generation) == GUANACO_FINISH_NONE);
  reply text = {"", 0}, pieces = {"", 0};
  int32_t tokens[64];
  float logprobs[64], scores[64];
  size_t count = 0;
  for (;;) {
    const char* piece = NULL;
    size_t length = 0;
    int32_t token = 77;
    float logprob = 77;
    const guanaco_status status =
        guanaco_generation_next(generation, &piece, &length, &token, &logprob, NULL);
    CHECK(status >= 0);
    if (status != GUANACO_OK) {
      CHECK(piece == NULL && length == 0 && token == 0 && logprob == 0);
      break;
    }
    append(&text, piece, length);
    if (token < 0) continue;
    OK(guanaco_tokenizer_piece(tokenizer, token, &piece, &length, error));
    append(&pieces, piece, length);
    logprobs[count] = logprob;
    tokens[count++] = token;
    CHECK(guanaco_generation_tokens(generation) == (int64_t)count);
  }
  CHECK(guanaco_generation_finish(generation) == GUANACO_FINISH_MAX_TOKENS);
  CHECK(count == (size_t)most);
  CHECK(same(&text, &pieces));
  CHECK(text.length == first.length + (text.text[0] == ' ') &&
        memcmp(text.text + (text.text[0] == ' '), first.text, first.length) == 0);
  for (int i = 0; i < 2; ++i) CHECK(pull(generation, &text) == GUANACO_END);
  guanaco_generation_free(generation);
  OK(guanaco_session_rewind(session, (int64_t)question_length, error));
  OK(guanaco_session_score(session, tokens, count, scores, NULL, error));
  for (size_t i = 0; i < count; ++i) CHECK(fabsf(scores[i] - logprobs[i]) < 1e-3f);

  /* A stop text ends a reply and is not in it. */
  char stop[8] = "";
  memcpy(stop, first.text + first.length / 2, 4);
  OK(guanaco_options_add_stop(options, stop, 4, error));
  OK(guanaco_session_rewind(session, 0, error));
  reply stopped = {"", 0};
  OK(guanaco_generate(session, NULL, TEXT(QUESTION), options, &generation, error));
  CHECK(pull(generation, &stopped) == GUANACO_END);
  CHECK(guanaco_generation_finish(generation) == GUANACO_FINISH_STOP_TEXT);
  CHECK(stopped.length < first.length && strstr(stopped.text, stop) == NULL);
  guanaco_generation_free(generation);
  guanaco_options_free(options);

  /* Nor is the white space before it, unless that was asked for. */
  const char* const word = strrchr(first.text, ' ') + 1;
  for (int trim = 0; trim <= 1; ++trim) {
    guanaco_options* const trimming =
        options_of(GUANACO_OPTION_MAX_TOKENS, most, GUANACO_OPTION_SEED, 7,
                   GUANACO_OPTION_TRIM_BEFORE_STOP, trim, 0);
    OK(guanaco_options_add_stop(trimming, TEXT(word), error));
    OK(guanaco_session_rewind(session, 0, error));
    const reply cut = reply_to(session, QUESTION, trimming);
    CHECK(cut.length > 0 && (cut.text[cut.length - 1] == ' ') == !trim);
    CHECK(memcmp(cut.text, first.text, cut.length) == 0);
    guanaco_options_free(trimming);
  }
  guanaco_session_free(session);

  /* A full context ends a reply. */
  guanaco_session* const small = session_of(model, (int)question_length + 4);
  OK(guanaco_generate(small, NULL, TEXT(QUESTION), NULL, &generation, error));
  CHECK(pull(generation, &text) == GUANACO_END);
  CHECK(guanaco_generation_finish(generation) == GUANACO_FINISH_CONTEXT_FULL);
  CHECK(guanaco_generation_tokens(generation) == 5);
  guanaco_generation_free(generation);
  guanaco_session_free(small);
}

static void test_steps(void) {
  static const char* const prompts[] = {QUESTION, STORY};
  guanaco_options* const options =
      options_of(GUANACO_OPTION_MAX_TOKENS, is_short ? 4 : 20, GUANACO_OPTION_SEED, 3, 0);
  guanaco_session* sessions[2];
  guanaco_generation* generations[2] = {NULL, NULL};
  reply alone[2], together[2] = {{"", 0}, {"", 0}};
  for (int i = 0; i < 2; ++i) {
    sessions[i] = session_of(model, 256);
    alone[i] = reply_to(sessions[i], prompts[i], options);
    OK(guanaco_session_rewind(sessions[i], 0, error));
    OK(guanaco_generate(sessions[i], NULL, TEXT(prompts[i]), options, &generations[i], error));
  }
  OK(guanaco_generation_step(NULL, 0, error));
  for (int going = 3; going != 0;) {
    OK(guanaco_generation_step(generations, 2, error));
    for (int i = 0; i < 2; ++i) {
      const char* text = NULL;
      size_t length = 0;
      if (guanaco_generation_next(generations[i], &text, &length, NULL, NULL, NULL) == GUANACO_OK)
        append(&together[i], text, length);
      else
        going &= ~(1 << i);
    }
  }
  for (int i = 0; i < 2; ++i) {
    CHECK(alone[i].length > 0 && same(&alone[i], &together[i]));
    guanaco_generation_free(generations[i]);
    guanaco_session_free(sessions[i]);
  }
  guanaco_options_free(options);
}

int main(int argc, char** argv) {
  begin(argc, argv);
  test_session();
  test_giving_up();
  test_many();
  test_score();
  test_replies();
  test_steps();
  return end();
}
