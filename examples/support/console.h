#pragma once

#include <atomic>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

namespace support {

/// Ctrl-C and lines of input. While one exists, SIGINT ends nothing by itself: it requests a stop
/// and wakes a read_line(). Make it before anything that starts threads, because they inherit that
/// SIGINT is blocked and leave it to this one. Members are for the thread that made it.
class Console {
 public:
  Console();
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// Forgets earlier interrupts; the next one stops this token.
  std::stop_token renew();

  /// What the next Ctrl-C stops, or the last one stopped.
  std::stop_token token() const;

  /// Whether Ctrl-C was pressed since the last renew().
  bool interrupted() const { return token().stop_requested(); }

  enum class Input { line, end, interrupted };

  /// The next line of stdin without its newline. `interrupted` is a Ctrl-C during the call.
  Input read_line(std::string& line);

 private:
  void watch();

  mutable std::mutex mutex_;
  std::stop_source stop_;  ///< guarded by mutex_
  std::atomic<bool> leaving_ = false;
  int wake_[2];         ///< a pipe that read_line() polls beside stdin
  std::string buffer_;  ///< read, but not yet given out
  std::thread watcher_;
};

}  // namespace support
