/* What tests of sessions share: a model, two texts and their tokens. */
#ifndef CAPI_STORY_H
#define CAPI_STORY_H

#include "capi_check.h"

#define STORY "Once upon a time there was a king who had three daughters, and the youngest of them"
#define QUESTION "### Human: What are the benefits of regular exercise?\n### Assistant:"
enum { kLong = 1500 };

static guanaco_model* model;
static guanaco_tokenizer* tokenizer;
static int32_t story[64], question[64]; /* tokens of STORY and QUESTION */
static size_t story_length, question_length;
static int64_t vocab;
static int is_short; /* for valgrind: short replies, few rounds */

/* Whether the session's logits are those of another. */
static inline int same_logits(const guanaco_session* a, const guanaco_session* b) {
  size_t m = 0, n = 0;
  const float* const left = guanaco_session_logits(a, &m);
  const float* const right = guanaco_session_logits(b, &n);
  return m == (size_t)vocab && n == m && memcmp(left, right, m * sizeof *left) == 0;
}

/* A session that holds these tokens. */
static inline guanaco_session* fed(const int32_t* tokens, size_t count) {
  guanaco_session* const session = session_of(model, 256);
  OK(guanaco_session_feed(session, tokens, count, NULL, error));
  return session;
}

static inline void begin(int argc, char** argv) {
  REQUIRE(argc == 2);
  is_short = getenv("GUANACO_SHORT") != NULL;
  model = load(argv[1]);
  OK(guanaco_model_tokenizer(model, &tokenizer, error));
  OK(guanaco_model_info(model, GUANACO_INFO_VOCAB, &vocab, error));
  OK(guanaco_tokenizer_encode(tokenizer, TEXT(STORY), 1, story, 64, &story_length, error));
  OK(guanaco_tokenizer_encode(tokenizer, TEXT(QUESTION), 1, question, 64, &question_length, error));
  REQUIRE(story_length > 16 && question_length > 8);
}
static inline int end(void) {
  guanaco_tokenizer_free(tokenizer);
  guanaco_model_free(model);
  return failures > 0;
}

#endif
