/* Sessions and generations of the C ABI on several threads, cancelled from another, freed in every
 * order.
 *
 *     capi_threads_test MODEL */
#include "capi_story.h"

#include <semaphore.h>

static void* read_model(void* unused) {
  const int rounds = is_short ? 2 : 200;
  for (int i = 0; i < rounds; ++i) {
    int32_t tokens[64];
    char text[128];
    const char* format = NULL;
    size_t count = 0, length = 0;
    int64_t value = 0;
    OK(guanaco_tokenizer_encode(tokenizer, TEXT(STORY), 1, tokens, 64, &count, error));
    CHECK(count == story_length && memcmp(tokens, story, count * sizeof *tokens) == 0);
    OK(guanaco_tokenizer_decode(tokenizer, tokens, count, text, sizeof text, &length, error));
    CHECK(length == strlen(STORY) && memcmp(text, STORY, length) == 0);
    OK(guanaco_model_info(model, GUANACO_INFO_VOCAB, &value, error));
    CHECK(value == vocab);
    OK(guanaco_model_text(model, GUANACO_TEXT_FORMAT, 0, &format, &length, error));
  }
  return unused;
}

static void* say(void* result) {
  guanaco_options* const options =
      options_of(GUANACO_OPTION_MAX_TOKENS, is_short ? 4 : 16, GUANACO_OPTION_SEED, 5, 0);
  guanaco_session* const session = session_of(model, 256);
  *(reply*)result = reply_to(session, QUESTION, options);
  guanaco_session_free(session);
  guanaco_options_free(options);
  return NULL;
}

static void test_threads(void) {
  enum { kReaders = 3, kSpeakers = 2 };
  pthread_t readers[kReaders], speakers[kSpeakers];
  reply alone, replies[kSpeakers];
  say(&alone);
  for (int i = 0; i < kSpeakers; ++i)
    REQUIRE(pthread_create(&speakers[i], NULL, say, &replies[i]) == 0);
  for (int i = 0; i < kReaders; ++i)
    REQUIRE(pthread_create(&readers[i], NULL, read_model, NULL) == 0);
  for (int i = 0; i < kReaders; ++i) pthread_join(readers[i], NULL);
  for (int i = 0; i < kSpeakers; ++i) {
    pthread_join(speakers[i], NULL);
    CHECK(same(&alone, &replies[i]));
  }
}

/* A prompt on its way, seen from two threads. */
typedef struct journey {
  guanaco_generation* generation;
  sem_t begun;
  pthread_mutex_t lock;
  uint64_t done, done_when_cancelled;
} journey;

static int32_t travel(uint64_t done, uint64_t total, void* user_data) {
  journey* const prompt = user_data;
  CHECK(total == kLong);
  pthread_mutex_lock(&prompt->lock);
  if (prompt->done == 0 && done > 0) sem_post(&prompt->begun);
  prompt->done = done;
  pthread_mutex_unlock(&prompt->lock);
  return 0;
}
static void* cancel(void* user_data) {
  journey* const prompt = user_data;
  sem_wait(&prompt->begun);
  guanaco_generation_cancel(prompt->generation);
  pthread_mutex_lock(&prompt->lock);
  prompt->done_when_cancelled = prompt->done;
  pthread_mutex_unlock(&prompt->lock);
  return NULL;
}

static void test_cancel(void) {
  static int32_t tokens[kLong];
  for (int i = 0; i < kLong; ++i) tokens[i] = 300 + i % 997;
  journey prompt = {.lock = PTHREAD_MUTEX_INITIALIZER};
  REQUIRE(sem_init(&prompt.begun, 0, 0) == 0);
  guanaco_options* const options = guanaco_options_new();
  OK(guanaco_options_on_progress(options, travel, &prompt, error));
  guanaco_session* const session = session_of(model, 2048);
  OK(guanaco_generate_tokens(session, NULL, tokens, kLong, options, &prompt.generation, error));
  guanaco_options_free(options);
  pthread_t other;
  REQUIRE(pthread_create(&other, NULL, cancel, &prompt) == 0);
  const char* text = NULL;
  size_t length = 0;
  for (int i = 0; i < 2; ++i)
    GIVES(GUANACO_CANCELLED,
          guanaco_generation_next(prompt.generation, &text, &length, NULL, NULL, error));
  pthread_join(other, NULL);
  CHECK(guanaco_generation_finish(prompt.generation) == GUANACO_FINISH_CANCELLED);
  CHECK(guanaco_generation_tokens(prompt.generation) == 0);
  CHECK(prompt.done > 0 && prompt.done <= prompt.done_when_cancelled + 16); /* a pass has 16 */
  guanaco_generation_cancel(prompt.generation);
  CHECK(guanaco_session_position(session) == 0);
  guanaco_generation_free(prompt.generation);
  OK(guanaco_session_feed(session, story, story_length, NULL, error));
  guanaco_session* const whole = fed(story, story_length);
  CHECK(same_logits(session, whole));
  guanaco_session_free(session);
  guanaco_session_free(whole);
  sem_destroy(&prompt.begun);
}

/* ---- Freed in the wrong order, by another thread too. */

static void* free_generation(void* generation) {
  guanaco_generation_free(generation);
  return NULL;
}

static void test_free_orders(const char* path) {
  guanaco_options* const options =
      options_of(GUANACO_OPTION_MAX_TOKENS, 8, GUANACO_OPTION_TOP_K, 40, 0);
  guanaco_model* const short_lived = load(path);
  guanaco_tokenizer* words = NULL;
  guanaco_session* const session = session_of(short_lived, 256);
  guanaco_session* const spare = session_of(short_lived, 256);
  guanaco_sampler *sampler = NULL, *copy = NULL;
  guanaco_generation *generation = NULL, *second = NULL;
  OK(guanaco_model_tokenizer(short_lived, &words, error));
  OK(guanaco_sampler_new(options, &sampler, error));
  OK(guanaco_sampler_copy(sampler, &copy, error));
  OK(guanaco_generate(session, sampler, TEXT(STORY), options, &generation, error));
  OK(guanaco_generate(spare, copy, TEXT(STORY), options, &second, error));
  guanaco_model_free(short_lived);
  reply one = {"", 0}, other = {"", 0};
  const char* text = NULL;
  size_t length = 0;
  OK(guanaco_generation_next(generation, &text, &length, NULL, NULL, error));
  append(&one, text, length);
  guanaco_session_free(session);
  guanaco_sampler_free(sampler);
  guanaco_options_free(options);
  CHECK(pull(generation, &one) == GUANACO_END);
  CHECK(pull(second, &other) == GUANACO_END && same(&one, &other));
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, free_generation, generation) == 0);
  pthread_join(thread, NULL);

  /* Without its generation the session goes on after the last token. */
  guanaco_generation_free(second);
  const int64_t position = guanaco_session_position(spare);
  OK(guanaco_session_feed(spare, story + 1, 1, NULL, error));
  CHECK(guanaco_session_position(spare) == position + 2);
  guanaco_session_free(spare);
  guanaco_sampler_free(copy);
  CHECK(guanaco_tokenizer_size(words) > 0);
  guanaco_tokenizer_free(words);
}

/* A session goes on as soon as another thread has freed its generation, and is refused until then.
 */
static void test_free_beside(void) {
  for (int i = 0; i < 4; ++i) {
    guanaco_session* const session = fed(story, 2);
    guanaco_generation* generation = NULL;
    const char* text = NULL;
    size_t length = 0, known = 0;
    OK(guanaco_generate_tokens(session, NULL, story + 2, 1, NULL, &generation, error));
    OK(guanaco_generation_next(generation, &text, &length, NULL, NULL, error));
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, free_generation, generation) == 0);
    guanaco_status status;
    float logprob = 0;
    do {
      status = i == 0   ? guanaco_session_feed(session, story, 1, NULL, NULL)
               : i == 1 ? guanaco_session_score(session, story, 1, &logprob, NULL, NULL)
               : i == 2 ? guanaco_session_rewind(session, 1, NULL)
                        : guanaco_session_reuse(session, story, 2, &known, NULL);
    } while (status == GUANACO_INVALID_ARGUMENT);
    CHECK(status == GUANACO_OK);
    CHECK(guanaco_session_position(session) == (i < 2 ? 5 : 1)); /* with the token of the reply */
    pthread_join(thread, NULL);
    guanaco_session_free(session);
  }
}

int main(int argc, char** argv) {
  begin(argc, argv);
  test_threads();
  test_cancel();
  test_free_orders(argv[1]);
  test_free_beside();
  return end();
}
