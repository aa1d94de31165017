#include "support/console.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace support {
namespace {

sigset_t interrupt_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

// A thread that waits for the signal, instead of a handler: it may lock, and a stop_source may be
// used in it.
Console::Console() {
  if (pipe(wake_) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  for (const int end : wake_) {
    fcntl(end, F_SETFL, O_NONBLOCK);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  const sigset_t set = interrupt_signal();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  watcher_ = std::thread([this] { watch(); });
}

Console::~Console() {
  leaving_ = true;
  pthread_kill(watcher_.native_handle(), SIGINT);
  watcher_.join();
  close(wake_[0]);
  close(wake_[1]);
}

void Console::watch() {
  const sigset_t set = interrupt_signal();
  for (;;) {
    int signal = 0;
    sigwait(&set, &signal);
    if (leaving_) return;
    const std::lock_guard lock(mutex_);
    stop_.request_stop();
    // A full pipe is as good as a written one.
    [[maybe_unused]] const auto written = write(wake_[1], "", 1);
  }
}

std::stop_token Console::renew() {
  const std::lock_guard lock(mutex_);
  stop_ = std::stop_source();
  return stop_.get_token();
}

std::stop_token Console::token() const {
  const std::lock_guard lock(mutex_);
  return stop_.get_token();
}

Console::Input Console::read_line(std::string& line) {
  char bytes[4096];
  const auto drain = [&] {
    bool any = false;
    while (read(wake_[0], bytes, sizeof bytes) > 0) any = true;
    return any;
  };
  drain();  // what stopped a reply is not meant for this line
  for (;;) {
    if (const auto end = buffer_.find('\n'); end != std::string::npos) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return Input::line;
    }
    pollfd sources[] = {{STDIN_FILENO, POLLIN, 0}, {wake_[0], POLLIN, 0}};
    if (poll(sources, 2, -1) < 0 && errno != EINTR)
      throw std::system_error(errno, std::generic_category(), "poll");
    if (drain()) return Input::interrupted;
    if (sources[0].revents == 0) continue;
    const ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
    if (count > 0) {
      buffer_.append(bytes, count);
    } else if (count == 0 || errno != EINTR) {
      line = std::move(buffer_);
      buffer_.clear();
      return line.empty() ? Input::end : Input::line;
    }
  }
}

}  // namespace support
