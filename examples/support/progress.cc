#include "support/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace support {
namespace {

constexpr int kWidth = 30;                                // of the bar, in characters
constexpr std::chrono::milliseconds kRedraw(100);         // of the bar
constexpr std::chrono::milliseconds kBetweenLines(5000);  // where there is no terminal

}  // namespace

Progress::Progress(std::string label, std::chrono::milliseconds delay)
    : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) != 0) {
  next_ = Clock::now() + (terminal_ ? delay : std::max(delay, kBetweenLines));
}

void Progress::show(std::uint64_t done, std::uint64_t total, std::string_view note) {
  const Clock::time_point now = Clock::now();
  if (total == 0 || now < next_) return;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const int percent = static_cast<int>(share * 100);
  if (terminal_) {
    const int filled = static_cast<int>(share * kWidth);
    fmt::print(stderr, "\r{} [{:#<{}}{:.<{}}] {:3} % {}\x1b[K", label_, "", filled, "",
               kWidth - filled, percent, note);
    std::fflush(stderr);
    drawn_ = true;
  } else {
    fmt::print(stderr, "{} {} % {}\n", label_, percent, note);
  }
  next_ = now + (terminal_ ? kRedraw : kBetweenLines);
}

void Progress::clear() {
  if (!drawn_) return;
  fmt::print(stderr, "\r\x1b[K");
  drawn_ = false;
}

}  // namespace support
