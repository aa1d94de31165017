#pragma once

// Sixteen lanes of plain C++: what the vector versions mean, and what runs where there are none.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "support/half.h"

namespace guanaco::cpu {
namespace {

// Products are register tiles of kTileRows rows and kTilePanels panels.
inline constexpr int kTileRows = 4, kTilePanels = 1;
inline constexpr const char* kIsaName = "portable";

struct Floats {
  float v[16];
};
struct Ints {  ///< also taken as 32 halves of 16 bits, two in a lane
  std::uint32_t v[16];
};

template <typename F>
inline Floats floats(F&& f) {
  Floats a;
  for (int i = 0; i < 16; ++i) a.v[i] = f(i);
  return a;
}
template <typename F>
inline Ints ints(F&& f) {
  Ints a;
  for (int i = 0; i < 16; ++i) a.v[i] = std::uint32_t(f(i));
  return a;
}

inline Floats set(float x) {
  return floats([&](int) { return x; });
}
inline Floats load(const float* p) {
  return floats([&](int i) { return p[i]; });
}
inline void store(float* p, Floats a) { std::memcpy(p, a.v, sizeof a.v); }
/// The first n <= 16 lanes from memory, 0 in the others.
inline Floats load_first(const float* p, int n) {
  return floats([&](int i) { return i < n ? p[i] : 0.0f; });
}
inline void store_first(float* p, Floats a, int n) {
  for (int i = 0; i < n && i < 16; ++i) p[i] = a.v[i];
}
inline Floats load_half(const std::uint16_t* p) {
  return floats([&](int i) { return half_to_float(p[i]); });
}
inline Floats load_integers(const std::int16_t* p) {
  return floats([&](int i) { return float(p[i]); });
}
inline Floats load_bfloat(const std::uint16_t* p) {
  return floats([&](int i) { return bfloat_to_float(p[i]); });
}

inline Floats add(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] + b.v[i]; });
}
inline Floats subtract(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] - b.v[i]; });
}
inline Floats multiply(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats divide(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] / b.v[i]; });
}
/// a * b + c, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) {
  return floats([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
/// b where either is NaN.
inline Floats larger(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Floats smaller(Floats a, Floats b) {
  return floats([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
/// The first n lanes of a, `rest` in the others.
inline Floats keep_first(Floats a, int n, float rest) {
  return floats([&](int i) { return i < n ? a.v[i] : rest; });
}
/// As a tree: lanes i and i + 8 first, then i and i + 4, ...
inline float sum(Floats a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float largest(Floats a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline Ints set(std::int32_t x) {
  return ints([&](int) { return x; });
}
inline Ints load_ints(const void* p) {
  Ints a;
  std::memcpy(a.v, p, sizeof a.v);
  return a;
}
inline void store(void* p, Ints a) { std::memcpy(p, a.v, sizeof a.v); }
inline Ints load_bytes(const std::uint8_t* p) {
  return ints([&](int i) { return p[i]; });
}
inline Ints add(Ints a, Ints b) {
  return ints([&](int i) { return a.v[i] + b.v[i]; });
}
inline Ints subtract(Ints a, Ints b) {
  return ints([&](int i) { return a.v[i] - b.v[i]; });
}
inline Ints multiply(Ints a, Ints b) {
  return ints([&](int i) { return a.v[i] * b.v[i]; });
}
inline Ints bit_and(Ints a, Ints b) {
  return ints([&](int i) { return a.v[i] & b.v[i]; });
}
inline Ints larger(Ints a, Ints b) {
  return ints([&](int i) { return std::int32_t(a.v[i]) > std::int32_t(b.v[i]) ? a.v[i] : b.v[i]; });
}
template <int n>
inline Ints shift_left(Ints a) {
  return ints([&](int i) { return a.v[i] << n; });
}
template <int n>
inline Ints shift_right_halves(Ints a) {
  constexpr std::uint32_t kKept = 0xffffu >> n;
  return ints([&](int i) { return (a.v[i] >> n) & (kKept | kKept << 16); });
}
inline Ints subtract_halves(Ints a, Ints b) {
  return ints([&](int i) {
    return ((a.v[i] - b.v[i]) & 0xffffu) | ((a.v[i] & 0xffff0000u) - (b.v[i] & 0xffff0000u));
  });
}
/// c + a.low * b.low + a.high * b.high in each lane, halves signed.
inline Ints dot_halves(Ints c, Ints a, Ints b) {
  return ints([&](int i) {
    const std::int32_t low = std::int16_t(a.v[i]) * std::int16_t(b.v[i]);
    const std::int32_t high = std::int16_t(a.v[i] >> 16) * std::int16_t(b.v[i] >> 16);
    return c.v[i] + std::uint32_t(low) + std::uint32_t(high);
  });
}
inline std::int32_t largest(Ints a) {
  std::int32_t result = std::int32_t(a.v[0]);
  for (std::uint32_t lane : a.v) result = std::int32_t(lane) > result ? std::int32_t(lane) : result;
  return result;
}
inline std::int32_t sum(Ints a) {
  std::uint32_t result = 0;
  for (std::uint32_t lane : a.v) result += lane;
  return std::int32_t(result);
}
inline void store_low_halves(std::int16_t* p, Ints a) {
  for (int i = 0; i < 16; ++i) p[i] = std::int16_t(a.v[i]);
}

inline Floats to_floats(Ints a) {
  return floats([&](int i) { return float(std::int32_t(a.v[i])); });
}
/// To nearest even, for |a| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
inline Ints round(Floats a) {
  return ints(
      [&](int i) { return std::bit_cast<std::uint32_t>(a.v[i] + 12582912.0f) - 0x4b400000u; });
}
inline Ints as_ints(Floats a) { return std::bit_cast<Ints>(a); }
inline Floats as_floats(Ints a) { return std::bit_cast<Floats>(a); }

}  // namespace
}  // namespace guanaco::cpu
