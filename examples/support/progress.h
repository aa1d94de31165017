#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace support {

/// How far something is, on stderr: a bar on a terminal, now and then a line elsewhere. What takes
/// less than `delay` shows nothing.
class Progress {
 public:
  explicit Progress(std::string label,
                    std::chrono::milliseconds delay = std::chrono::milliseconds(0));
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `note` goes behind the percentage.
  void show(std::uint64_t done, std::uint64_t total, std::string_view note = {});

  /// Takes the bar away, so that other text can be written.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::string label_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point next_;  ///< when to write again
};

}  // namespace support
