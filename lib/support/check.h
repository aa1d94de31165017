#pragma once

#include <cstdint>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <guanaco/error.h>

// The only ways this library throws. Messages are one line: culprit, what was expected, what was
// found.
namespace guanaco {

template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void require(bool condition, ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

/// a * b and a + b of sizes from files: false instead of wrapping round.
[[nodiscard]] inline bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}
[[nodiscard]] inline bool add(std::uint64_t a, std::uint64_t b, std::uint64_t& sum) {
  return !__builtin_add_overflow(a, b, &sum);
}

}  // namespace guanaco
