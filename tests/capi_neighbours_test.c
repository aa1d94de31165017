/* The library in a process that has another copy of what it depends on in its global scope, opened
 * as c.h says and otherwise. Linked with nothing of it.
 *
 *     capi_neighbours_test LIBGUANACO FOREIGN_PROTOBUF MODEL */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <guanaco/c.h>

enum { WORKS = 0, REFUSED = 1, WRONG = 2, NO_SYMBOL = 3, NO_FOREIGN = 4 };

static void* of(void* library, const char* name) {
  void* const found = dlsym(library, name);
  if (found == NULL) _exit(NO_SYMBOL);
  return found;
}

/* Loads the model's tokenizer and encodes with it: WORKS. Refused as the README says: REFUSED. */
static int use(const char* file, int flags, const char* model) {
  void* const library = dlopen(file, flags);
  if (library == NULL) {
    fprintf(stderr, "dlopen: %s\n", dlerror());
    return WRONG;
  }
  guanaco_status (*load)(const char*, size_t, guanaco_tokenizer**, guanaco_error*);
  guanaco_status (*encode)(const guanaco_tokenizer*, const char*, size_t, int32_t, int32_t*, size_t,
                           size_t*, guanaco_error*);
  *(void**)&load = of(library, "guanaco_tokenizer_load");
  *(void**)&encode = of(library, "guanaco_tokenizer_encode");
  char path[4096];
  snprintf(path, sizeof path, "%s/tokenizer.model", model);
  guanaco_tokenizer* tokenizer = NULL;
  guanaco_error error;
  const guanaco_status status = load(path, strlen(path), &tokenizer, &error);
  if (status == GUANACO_UNSUPPORTED && strstr(error.message, "RTLD_DEEPBIND") != NULL &&
      strstr(error.message, "tokenizer.model: sentencepiece met another protobuf") != NULL &&
      strchr(error.message, '\n') == NULL)
    return REFUSED;
  if (status != GUANACO_OK) {
    fprintf(stderr, "%d: %s\n", (int)status, error.message);
    return WRONG;
  }
  int32_t tokens[16];
  size_t count = 0;
  if (encode(tokenizer, "The sky", 7, 1, tokens, 16, &count, &error) != GUANACO_OK || count < 2)
    return WRONG;
  return WORKS;
}

static int status_of_child(const char** arguments, int flags) {
  const pid_t child = fork();
  if (child == 0) {
    if (dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL) == NULL) _exit(NO_FOREIGN);
    _exit(use(arguments[1], flags, arguments[3]));
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, const char** argv) {
  if (argc != 4) return 2;
  const int without = status_of_child(argv, RTLD_NOW | RTLD_LOCAL);
  if (without == WORKS) {
    printf("[skipped] this sentencepiece's protobuf does not meet another one\n");
    return 0;
  }
  if (without != REFUSED) {
    printf("without RTLD_DEEPBIND: expected %d, found %d\n", REFUSED, without);
    return 1;
  }
  const int with = status_of_child(argv, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  if (with != WORKS) printf("with RTLD_DEEPBIND: expected %d, found %d\n", WORKS, with);
  return with != WORKS;
}
