#include "support/bandwidth.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace support {
namespace {

constexpr std::size_t kBytes = std::size_t{512} << 20;
constexpr int kPasses = 5;

// 64 bytes: one cache line, added as the widest vectors the instruction set has.
using Line = std::uint64_t __attribute__((vector_size(64)));

// Four independent sums, so that the loop waits for memory and not for its own additions.
[[gnu::always_inline]] inline std::uint64_t add_lines(const Line* lines, std::size_t count) {
  Line a{}, b{}, c{}, d{};
  for (std::size_t i = 0; i + 4 <= count; i += 4) {
    a += lines[i];
    b += lines[i + 1];
    c += lines[i + 2];
    d += lines[i + 3];
  }
  const Line total = a + b + c + d;
  return total[0] + total[1] + total[2] + total[3] + total[4] + total[5] + total[6] + total[7];
}

// Narrow loads reach less than the machine can read, so the instruction set is picked at run time.
using Sum = std::uint64_t (*)(const Line*, std::size_t);
std::uint64_t sum_portable(const Line* lines, std::size_t count) { return add_lines(lines, count); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] std::uint64_t sum_avx2(const Line* lines, std::size_t count) {
  return add_lines(lines, count);
}
[[gnu::target("avx512f")]] std::uint64_t sum_avx512(const Line* lines, std::size_t count) {
  return add_lines(lines, count);
}
Sum pick_sum() {
  if (__builtin_cpu_supports("avx512f")) return sum_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_avx2;
  return sum_portable;
}
#else
Sum pick_sum() { return sum_portable; }
#endif

}  // namespace

double measure_read_bandwidth(int threads) {
  using Clock = std::chrono::steady_clock;
  const std::size_t each = kBytes / sizeof(Line) / threads;
  const Sum sum = pick_sum();
  const auto buffer = std::make_unique_for_overwrite<Line[]>(each * threads);

  std::vector<Clock::time_point> marks;  // between passes, written while all threads wait
  std::barrier meet(threads, [&]() noexcept { marks.push_back(Clock::now()); });
  marks.reserve(kPasses + 1);
  std::vector<std::uint64_t> sums(threads);
  {
    std::vector<std::jthread> workers;
    workers.reserve(threads);
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        Line* const mine = buffer.get() + t * each;
        std::fill_n(mine, each, Line{} + static_cast<std::uint64_t>(t));  // the pages' first touch
        meet.arrive_and_wait();
        for (int pass = 0; pass < kPasses; ++pass) {
          sums[t] += sum(mine, each);
          meet.arrive_and_wait();
        }
      });
    }
  }
  // Uses the sums, without which the compiler might not read at all.
  if (sums[0] == 1) return 0;

  Clock::duration best = marks[1] - marks[0];
  for (std::size_t i = 2; i < marks.size(); ++i) best = std::min(best, marks[i] - marks[i - 1]);
  return static_cast<double>(each * threads * sizeof(Line)) /
         std::chrono::duration<double>(best).count();
}

}  // namespace support
