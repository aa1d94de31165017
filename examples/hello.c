/* Asks one question and prints the answer while it is being written. */
#include <stdio.h>
#include <string.h>

#include <guanaco/c.h>

/* Starts a reply to a question that is put in the shape, and ends at the stop texts, of Guanaco. */
static guanaco_status ask(guanaco_session* session, const char* question,
                          guanaco_generation** reply, guanaco_error* error) {
  guanaco_options* options = guanaco_options_new(); /* NULL is an error of what sets them */
  guanaco_chat* chat = NULL;
  const char* text = NULL;
  size_t length = 0;

  guanaco_status status = guanaco_options_set_int(options, GUANACO_OPTION_SEED, 7, error);
  if (status == GUANACO_OK) status = guanaco_chat_new("guanaco", 7, &chat, error);
  for (size_t i = 0; status == GUANACO_OK; ++i) {
    status = guanaco_chat_stop(chat, i, &text, &length, error);
    if (status == GUANACO_OK) status = guanaco_options_add_stop(options, text, length, error);
  }
  if (status == GUANACO_END) /* of the stop texts */
    status = guanaco_chat_add(chat, GUANACO_ROLE_USER, question, strlen(question), error);
  if (status == GUANACO_OK) status = guanaco_chat_render(chat, &text, &length, error);
  if (status == GUANACO_OK)
    status = guanaco_generate(session, NULL, text, length, options, reply, error);

  guanaco_chat_free(chat);
  guanaco_options_free(options);
  return status;
}

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "examples/models/tiny-guanaco";
  guanaco_model* model = NULL;
  guanaco_session* session = NULL;
  guanaco_generation* reply = NULL;
  guanaco_error error;

  guanaco_status status = guanaco_model_load(path, strlen(path), NULL, &model, &error);
  if (status == GUANACO_OK) status = guanaco_session_new(model, NULL, &session, &error);
  if (status == GUANACO_OK) status = ask(session, "What colour is the sky?", &reply, &error);
  while (status == GUANACO_OK) {
    const char* text = NULL;
    size_t length = 0;
    status = guanaco_generation_next(reply, &text, &length, NULL, NULL, &error);
    if (length > 0) fwrite(text, 1, length, stdout);
    fflush(stdout);
  }
  if (status < 0)
    fprintf(stderr, "hello: %s\n", error.message);
  else
    putchar('\n');

  guanaco_generation_free(reply); /* the order does not matter, and NULL does nothing */
  guanaco_session_free(session);
  guanaco_model_free(model);
  return status < 0 ? 1 : 0;
}
