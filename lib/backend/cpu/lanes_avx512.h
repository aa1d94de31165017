#pragma once

// Sixteen lanes in one AVX-512 register. lanes_portable.h says what each function means.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace guanaco::cpu {
namespace {

inline constexpr int kTileRows = 8, kTilePanels = 2;  // 16 accumulators of 32 registers
inline constexpr const char* kIsaName = "AVX-512";

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};

inline Floats set(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline __mmask16 lanes_below(int n) {
  return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1);
}
inline Floats load_first(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
}
inline void store_first(float* p, Floats a, int n) {
  _mm512_mask_storeu_ps(p, lanes_below(n), a.v);
}
inline Floats load_half(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Floats load_integers(const std::int16_t* p) {
  const __m256i integers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(integers))};
}
inline Floats load_bfloat(const std::uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

inline Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats subtract(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats divide(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats smaller(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats keep_first(Floats a, int n, float rest) {
  return {_mm512_mask_blend_ps(lanes_below(n), _mm512_set1_ps(rest), a.v)};
}
inline float sum(Floats a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Floats a) {
  const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline Ints set(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store(void* p, Ints a) { _mm512_storeu_si512(p, a.v); }
inline Ints load_bytes(const std::uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints subtract(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints multiply(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline Ints bit_and(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints larger(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int n>
inline Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
inline Ints shift_right_halves(Ints a) {
  return {_mm512_srli_epi16(a.v, n)};
}
inline Ints subtract_halves(Ints a, Ints b) { return {_mm512_sub_epi16(a.v, b.v)}; }
inline Ints dot_halves(Ints c, Ints a, Ints b) { return {_mm512_dpwssd_epi32(c.v, a.v, b.v)}; }
inline std::int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a.v); }
inline std::int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a.v); }
inline void store_low_halves(std::int16_t* p, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints round(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }

}  // namespace
}  // namespace guanaco::cpu
