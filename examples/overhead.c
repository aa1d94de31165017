/* What it costs to pull a token: the time of guanaco_generation_next() alone, once
 * guanaco_generation_step() has computed it. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <guanaco/c.h>

enum { TOKENS = 400 };

static double microseconds(const struct timespec* begin, const struct timespec* end) {
  return 1e6 * (double)(end->tv_sec - begin->tv_sec) +
         1e-3 * (double)(end->tv_nsec - begin->tv_nsec);
}
static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

/* Greedily, and on past the end of the text, so that there are as many tokens as asked for. */
static guanaco_status set(guanaco_options* options, guanaco_error* error) {
  guanaco_status status = guanaco_options_set_int(options, GUANACO_OPTION_CONTEXT, 600, error);
  if (status == GUANACO_OK)
    status = guanaco_options_set_int(options, GUANACO_OPTION_MAX_TOKENS, TOKENS, error);
  if (status == GUANACO_OK)
    status = guanaco_options_set_int(options, GUANACO_OPTION_STOP_AT_END_OF_TEXT, 0, error);
  if (status == GUANACO_OK)
    status = guanaco_options_set_float(options, GUANACO_OPTION_TEMPERATURE, 0, error);
  return status;
}

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "examples/models/tiny-guanaco";
  const char* prompt = "Once upon a time";
  guanaco_options* options = guanaco_options_new();
  guanaco_model* model = NULL;
  guanaco_session* session = NULL;
  guanaco_generation* reply = NULL;
  guanaco_error error;
  double times[TOKENS];
  size_t count = 0;

  guanaco_status status = set(options, &error);
  if (status == GUANACO_OK) status = guanaco_model_load(path, strlen(path), NULL, &model, &error);
  if (status == GUANACO_OK) status = guanaco_session_new(model, options, &session, &error);
  if (status == GUANACO_OK)
    status = guanaco_generate(session, NULL, prompt, strlen(prompt), options, &reply, &error);
  while (status == GUANACO_OK && count < TOKENS) {
    struct timespec begin, end;
    const char* text = NULL;
    size_t length = 0;
    status = guanaco_generation_step(&reply, 1, &error);
    if (status != GUANACO_OK) break;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    status = guanaco_generation_next(reply, &text, &length, NULL, NULL, &error);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (status == GUANACO_OK) times[count++] = microseconds(&begin, &end);
  }
  if (status < 0) {
    fprintf(stderr, "overhead: %s\n", error.message);
  } else if (count > 0) {
    qsort(times, count, sizeof times[0], compare);
    printf("C: %.2f us a token\n", times[count / 2]);
  }

  guanaco_generation_free(reply);
  guanaco_session_free(session);
  guanaco_model_free(model);
  guanaco_options_free(options);
  return status < 0 ? 1 : 0;
}
