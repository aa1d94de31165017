/* A tour of the C ABI, and of what happens when something goes wrong. Every language has this
 * program: all print the same. Where the others throw, or collect what is forgotten, this one gives
 * up, or frees. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <guanaco/c.h>

static const char kPrompt[] =
    "### Human: What are the benefits of regular exercise? ### Assistant:";
enum { MOST = 256 }; /* tokens or bytes of anything here */

static guanaco_error error;

static guanaco_status must(guanaco_status status) {
  if (status >= 0) return status;
  fprintf(stderr, "check: %s\n", error.message);
  exit(1);
}
static void show_tokens(const int32_t* tokens, size_t count) {
  for (size_t i = 0; i < count; ++i) printf(" %d", (int)tokens[i]);
}

/* Options are made where they are needed: with_int(with_float(NULL, ...), ...). */
static guanaco_options* with_int(guanaco_options* options, guanaco_option option, int64_t value) {
  if (!options) options = guanaco_options_new();
  must(guanaco_options_set_int(options, option, value, &error));
  return options;
}
static guanaco_options* with_float(guanaco_options* options, guanaco_option option, double value) {
  if (!options) options = guanaco_options_new();
  must(guanaco_options_set_float(options, option, value, &error));
  return options;
}
static guanaco_sampler* sampler(guanaco_options* options) {
  guanaco_sampler* made = NULL;
  must(guanaco_sampler_new(options, &made, &error));
  guanaco_options_free(options);
  return made;
}

/* What the headers of the files tell before anything is loaded. */
static void show_files(const char* path) {
  guanaco_inspection* found = NULL;
  int64_t layers = 0;
  const char* text = NULL;
  size_t length = 0;
  must(guanaco_inspect(path, strlen(path), NULL, &found, &error));
  must(guanaco_inspection_info(found, GUANACO_INFO_LAYERS, &layers, &error));
  must(guanaco_inspection_text(found, GUANACO_TEXT_FORMAT, 0, &text, &length, &error));
  printf("inspect: %d layers, %.*s\n", (int)layers, (int)length, text);
  guanaco_inspection_free(found);

  guanaco_options* options = with_int(NULL, GUANACO_OPTION_CONTEXT, 64);
  uint64_t bytes[GUANACO_MEMORY_DEVICE + 1];
  must(
      guanaco_estimate(path, strlen(path), options, bytes, sizeof bytes / sizeof bytes[0], &error));
  printf("estimate: %llu bytes of weights, %llu of a session\n",
         (unsigned long long)bytes[GUANACO_MEMORY_WEIGHTS],
         (unsigned long long)bytes[GUANACO_MEMORY_SESSION]);
  guanaco_options_free(options);
}

static void show_stream(void) {
  const char* parts[] = {"The \xffsky\xc3", "\xbc #", "## Human"};
  guanaco_options* options = guanaco_options_new();
  guanaco_stream* stream = NULL;
  const char* text = NULL;
  size_t length = 0;
  must(guanaco_options_add_stop(options, "###", 3, &error));
  must(guanaco_stream_new(options, &stream, &error));
  printf("stream:");
  for (int i = 0; i < 3; ++i) {
    must(guanaco_stream_push(stream, parts[i], strlen(parts[i]), &text, &length, &error));
    printf(" [%.*s]", (int)length, text);
  }
  must(guanaco_stream_finish(stream, &text, &length, &error));
  printf(" [%.*s] stop %d\n", (int)length, text, (int)guanaco_stream_stop(stream));
  guanaco_stream_free(stream);
  guanaco_options_free(options);
}

static void show_chat(void) {
  const char* question = "What colour is the sky?";
  guanaco_chat* chat = NULL;
  const char* text = NULL;
  size_t length = 0;
  must(guanaco_chat_new("guanaco", 7, &chat, &error));
  must(guanaco_chat_add(chat, GUANACO_ROLE_USER, question, strlen(question), &error));
  must(guanaco_chat_render(chat, &text, &length, &error));
  printf("chat: %.*s\nstops:", (int)length, text);
  for (size_t i = 0; must(guanaco_chat_stop(chat, i, &text, &length, &error)) == GUANACO_OK; ++i)
    printf(" [%.*s]", (int)length, text);
  printf("\n");
  guanaco_chat_free(chat);
}

/* Gives the tokens of the prompt. */
static size_t show_texts(const guanaco_tokenizer* tokenizer, int32_t* prompt) {
  const char* bad = "\xff\xff\xff\xff\xff\xff"; /* each counts as U+FFFD */
  int32_t tokens[MOST];
  char text[MOST];
  size_t count = 0, others = 0, length = 0;
  must(guanaco_tokenizer_encode(tokenizer, kPrompt, strlen(kPrompt), 1, prompt, MOST, &count,
                                &error));
  printf("encode:");
  show_tokens(prompt, count);
  must(guanaco_tokenizer_decode(tokenizer, prompt, count, text, MOST, &length, &error));
  printf("\ndecode: %.*s\nbad bytes:", (int)length, text);
  must(guanaco_tokenizer_encode(tokenizer, bad, strlen(bad), 1, tokens, MOST, &others, &error));
  show_tokens(tokens, others);
  must(guanaco_tokenizer_decode(tokenizer, tokens + others - 3, 2, text, MOST, &length, &error));
  printf("\nhalf a character: [%.*s]\n", (int)length, text);
  show_stream();
  show_chat();
  return count;
}

static int choose(guanaco_sampler* sampler, const guanaco_session* session) {
  size_t count = 0;
  const float* logits = guanaco_session_logits(session, &count);
  int32_t token = -1;
  must(guanaco_sampler_sample(sampler, logits, count, &token, &error));
  return (int)token;
}

static void show_choices(guanaco_session* session, int32_t likeliest) {
  guanaco_sampler *seeded = sampler(with_int(with_float(NULL, GUANACO_OPTION_TEMPERATURE, 1),
                                             GUANACO_OPTION_SEED, 7)),
                  *copy = NULL;
  printf("sampler:");
  for (int i = 0; i < 8; ++i) printf(" %d", choose(seeded, session));
  must(guanaco_sampler_copy(seeded, &copy, &error));
  const int drawn = choose(seeded, session);
  printf("\nits copy: %d %d\n", drawn, choose(copy, session));
  guanaco_sampler_free(seeded);
  guanaco_sampler_free(copy);
  guanaco_sampler* penal = sampler(with_float(with_float(NULL, GUANACO_OPTION_TEMPERATURE, 0),
                                              GUANACO_OPTION_REPETITION_PENALTY, 100));
  must(guanaco_sampler_accept(penal, &likeliest, 1, &error));
  printf("accept: %d\n", choose(penal, session));
  guanaco_sampler_free(penal);
}

/* Sessions by hand: feeding, scoring, going back, choosing. */
static void show_tokens_and_scores(guanaco_session* session, guanaco_session* other,
                                   const int32_t* prompt, size_t count) {
  guanaco_sampler* greedy = sampler(with_float(NULL, GUANACO_OPTION_TEMPERATURE, 0));
  float scores[MOST];
  int32_t longer[MOST];
  size_t length = 0;
  must(guanaco_session_score(session, prompt, count, scores, NULL, &error));
  printf("surprise:");
  for (size_t i = 1; i < count; ++i) printf(" %.3f", -scores[i]);
  printf("\nnext: %d\n", choose(greedy, session));

  must(guanaco_session_rewind(session, 9, &error));
  const int32_t* held = guanaco_session_tokens(session, &length);
  printf("rewind: %d of %d holds", (int)guanaco_session_position(session),
         (int)guanaco_session_context(session));
  show_tokens(held, length);
  memcpy(longer, prompt, 4 * sizeof prompt[0]);
  memcpy(longer + 4, prompt, count * sizeof prompt[0]);
  must(guanaco_session_reuse(session, longer, 4 + count, &length, &error));
  printf("\nreuse: %d\n", (int)length);

  must(guanaco_session_feed(session, prompt + 4, count - 4, NULL, &error));
  const int likeliest = choose(greedy, session);
  printf("feed: %d then %d\n", (int)guanaco_session_position(session), likeliest);
  must(guanaco_session_rewind(session, 4, &error));
  guanaco_session* const sessions[] = {session, other};
  const int32_t* const tokens[] = {prompt + 4, prompt};
  const size_t counts[] = {count - 4, count};
  must(guanaco_session_feed_many(sessions, tokens, counts, 2, NULL, &error));
  printf("feed many:");
  for (int i = 0; i < 2; ++i)
    printf(" %d then %d", (int)guanaco_session_position(sessions[i]), choose(greedy, sessions[i]));
  printf("\n");
  guanaco_sampler_free(greedy);
  show_choices(session, likeliest);
}

static void show_replies(guanaco_session* session, guanaco_session* other, const int32_t* prompt,
                         size_t count) {
  guanaco_options* options =
      with_int(with_float(NULL, GUANACO_OPTION_TEMPERATURE, 0), GUANACO_OPTION_MAX_TOKENS, 8);
  guanaco_generation* reply = NULL;
  const char* piece = NULL;
  char text[MOST] = "";
  size_t length = 0;
  int32_t token = 0;
  float logprob = 0;
  double sum = 0;
  must(guanaco_session_rewind(session, 0, &error));
  must(guanaco_session_rewind(other, 0, &error));
  must(guanaco_generate_tokens(session, NULL, prompt, count, options, &reply, &error));
  printf("reply:");
  while (must(guanaco_generation_next(reply, &piece, &length, &token, &logprob, &error)) ==
         GUANACO_OK) {
    printf(" %d", (int)token);
    strncat(text, piece, length);
    sum += logprob;
  }
  printf(" finish %d\nits text: %s, %.3f\n", (int)guanaco_generation_finish(reply), text, sum);
  guanaco_generation_free(reply);
  guanaco_options_free(options);

  guanaco_generation* two[2];
  options = with_int(NULL, GUANACO_OPTION_SEED, 1);
  guanaco_sampler* seeded = sampler(with_int(NULL, GUANACO_OPTION_SEED, 1));
  must(guanaco_session_rewind(session, 0, &error));
  must(guanaco_generate(session, NULL, kPrompt, strlen(kPrompt), options, &two[0], &error));
  must(guanaco_generate(other, seeded, kPrompt, strlen(kPrompt), NULL, &two[1], &error));
  guanaco_options_free(options);
  guanaco_sampler_free(seeded);
  must(guanaco_generation_step(two, 2, &error));
  printf("step:");
  for (int i = 0; i < 2; ++i) {
    must(guanaco_generation_next(two[i], &piece, &length, NULL, NULL, &error));
    printf(" [%.*s]", (int)length, piece);
  }
  for (int i = 0; i < 2; ++i) {
    printf(" %d", (int)guanaco_generation_tokens(two[i]));
    guanaco_generation_free(two[i]);
  }
  printf("\n");
}

static int32_t give_up(uint64_t done, uint64_t total, void* user_data) {
  (void)done, (void)total, (void)user_data;
  return 1;
}
static void fail(guanaco_status status) {
  if (status < 0) printf("error: %d %s\n", (int)status, error.message);
}

static void show_failures(guanaco_session* session, guanaco_session* other, const int32_t* prompt,
                          size_t count) {
  const int32_t many[80] = {0};
  guanaco_model* model = NULL;
  guanaco_options* options = guanaco_options_new();
  guanaco_generation* reply = NULL;
  const char* text = NULL;
  size_t length = 0;
  must(guanaco_session_rewind(session, 0, &error));
  fail(guanaco_model_load("no/such/folder", 14, NULL, &model, &error));
  fail(guanaco_session_feed(session, many, 80, NULL, &error));
  fail(guanaco_options_set_float(options, GUANACO_OPTION_TOP_P, 2, &error));

  must(guanaco_options_on_progress(options, give_up, NULL, &error));
  const int status = must(guanaco_session_feed(session, prompt, count, options, &error));
  const int position = (int)guanaco_session_position(session);
  printf("thrown by progress: enough, position %d\n", position);
  printf("thrown by log: enough, position %d\n", position);
  printf("given up: status %d, position %d\n", status, position);

  must(guanaco_generate_tokens(session, NULL, prompt, count, options, &reply, &error));
  must(guanaco_generation_next(reply, &text, &length, NULL, NULL, &error));
  printf("cancelled: [%.*s] finish %d\n", (int)length, text, (int)guanaco_generation_finish(reply));
  guanaco_generation_free(reply);
  guanaco_options_free(options);
  must(guanaco_generate_tokens(session, NULL, prompt, count, NULL, &reply, &error));
  must(guanaco_generation_next(reply, &text, &length, NULL, NULL, &error));
  guanaco_generation_free(reply);
  must(guanaco_session_rewind(session, 0, &error));
  printf("forgotten: position %d\n", (int)guanaco_session_position(session));
  guanaco_session_free(other);
  if (guanaco_session_rewind(NULL, 0, &error) == GUANACO_INVALID_ARGUMENT)
    printf("closed: refused\n");
}

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "examples/models/tiny-guanaco";
  guanaco_model* model = NULL;
  guanaco_tokenizer* tokenizer = NULL;
  guanaco_session *session = NULL, *other = NULL;
  int32_t prompt[MOST];
  printf("version: %s\n", guanaco_version());
  show_files(path);
  must(guanaco_model_load(path, strlen(path), NULL, &model, &error));
  must(guanaco_model_tokenizer(model, &tokenizer, &error));
  const size_t count = show_texts(tokenizer, prompt);
  guanaco_options* options = with_int(NULL, GUANACO_OPTION_CONTEXT, 64);
  must(guanaco_session_new(model, options, &session, &error));
  must(guanaco_session_new(model, options, &other, &error));
  guanaco_options_free(options);
  guanaco_tokenizer_free(tokenizer);
  guanaco_model_free(model);
  printf("model closed, sessions go on\n");
  show_tokens_and_scores(session, other, prompt, count);
  show_replies(session, other, prompt, count);
  show_failures(session, other, prompt, count);
  guanaco_session_free(session);
  return 0;
}
