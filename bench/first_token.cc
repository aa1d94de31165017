#include "first_token.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <system_error>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>

extern char** environ;

namespace bench {
namespace {

using namespace guanaco;
using Clock = std::chrono::steady_clock;

/// A pipe, closed with its owner.
struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() {
    if (pipe(ends) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    for (const int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  ~Pipe() {
    close_writing();
    close(ends[0]);
  }
  Pipe(const Pipe&) = delete;

  void close_writing() {
    if (ends[1] >= 0) close(ends[1]);
    ends[1] = -1;
  }
};

}  // namespace

double first_token_seconds(const std::filesystem::path& folder, const std::string& device,
                           int threads) {
  std::vector<std::string> words = {
      "guanaco-bench", "--first-token", "--model",   folder.string(),
      "--device",      device,          "--threads", std::to_string(threads)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  Pipe pipe;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe.ends[1], STDOUT_FILENO);
  const auto start = Clock::now();
  pid_t child = 0;
  const int failed =
      posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) throw std::system_error(failed, std::generic_category(), "posix_spawn");
  pipe.close_writing();
  char byte = 0;
  const bool came = read(pipe.ends[0], &byte, 1) == 1;
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0 || !came)
    throw Error(ErrorCode::internal,
                fmt::format("a process that loads {} and decodes a token failed", folder.string()));
  return seconds;
}

void first_token(const std::filesystem::path& folder, const ModelOptions& options) {
  const Model model = Model::load(folder, options);
  Session session(model, {.context = 64});
  const TokenId token = 3;
  session.generate({&token, 1}, Sampler({.temperature = 0})).next();
  std::puts("");
  std::fflush(stdout);
}

}  // namespace bench
