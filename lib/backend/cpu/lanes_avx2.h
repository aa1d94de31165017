#pragma once

// Sixteen lanes in two AVX registers. lanes_portable.h says what each function means.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace guanaco::cpu {
namespace {

inline constexpr int kTileRows = 4, kTilePanels = 1;  // 8 accumulators of 16 registers
inline constexpr const char* kIsaName = "AVX2";

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};

inline Floats set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline Ints lanes_below(int n) {
  const __m256i count = _mm256_set1_epi32(n);
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
inline Floats load_first(const float* p, int n) {
  const Ints mask = lanes_below(n);
  return {_mm256_maskload_ps(p, mask.a), _mm256_maskload_ps(p + 8, mask.b)};
}
inline void store_first(float* p, Floats x, int n) {
  const Ints mask = lanes_below(n);
  _mm256_maskstore_ps(p, mask.a, x.a);
  _mm256_maskstore_ps(p + 8, mask.b, x.b);
}
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Floats load_half(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
inline Floats load_integers(const std::int16_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load_128(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load_128(p + 8)))};
}
inline Floats load_bfloat(const std::uint16_t* p) {
  const __m256i a = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16);
  const __m256i b = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p + 8)), 16);
  return {_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)};
}

inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats subtract(Floats x, Floats y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline Floats multiply(Floats x, Floats y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Floats divide(Floats x, Floats y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Floats larger(Floats x, Floats y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
inline Floats smaller(Floats x, Floats y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
inline Floats keep_first(Floats x, int n, float rest) {
  const Ints mask = lanes_below(n);
  return {_mm256_blendv_ps(_mm256_set1_ps(rest), x.a, _mm256_castsi256_ps(mask.a)),
          _mm256_blendv_ps(_mm256_set1_ps(rest), x.b, _mm256_castsi256_ps(mask.b))};
}
inline float sum(Floats x) {
  const __m256 b = _mm256_add_ps(x.a, x.b);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Floats x) {
  const __m256 b = _mm256_max_ps(x.a, x.b);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }

inline Ints set(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints load_ints(const void* p) {
  const __m256i* words = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
inline void store(void* p, Ints x) {
  __m256i* words = static_cast<__m256i*>(p);
  _mm256_storeu_si256(words, x.a);
  _mm256_storeu_si256(words + 1, x.b);
}
inline Ints load_bytes(const std::uint8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints subtract(Ints x, Ints y) {
  return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
inline Ints multiply(Ints x, Ints y) {
  return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
}
inline Ints bit_and(Ints x, Ints y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
inline Ints larger(Ints x, Ints y) {
  return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
template <int n>
inline Ints shift_left(Ints x) {
  return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
template <int n>
inline Ints shift_right_halves(Ints x) {
  return {_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)};
}
inline Ints subtract_halves(Ints x, Ints y) {
  return {_mm256_sub_epi16(x.a, y.a), _mm256_sub_epi16(x.b, y.b)};
}
inline Ints dot_halves(Ints z, Ints x, Ints y) {
  return {_mm256_add_epi32(z.a, _mm256_madd_epi16(x.a, y.a)),
          _mm256_add_epi32(z.b, _mm256_madd_epi16(x.b, y.b))};
}
inline std::int32_t largest(Ints x) {
  const __m256i b = _mm256_max_epi32(x.a, x.b);
  const __m128i c = _mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i d = _mm_max_epi32(c, _mm_unpackhi_epi64(c, c));
  return _mm_cvtsi128_si32(_mm_max_epi32(d, _mm_shuffle_epi32(d, 1)));
}
inline std::int32_t sum(Ints x) {
  const __m256i b = _mm256_add_epi32(x.a, x.b);
  const __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i d = _mm_add_epi32(c, _mm_unpackhi_epi64(c, c));
  return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 1)));
}
inline void store_low_halves(std::int16_t* p, Ints x) {
  const __m256i mixed = _mm256_packs_epi32(x.a, x.b);  // quarters in the order 0 2 1 3
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}

inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Ints round(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
inline Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

}  // namespace
}  // namespace guanaco::cpu
