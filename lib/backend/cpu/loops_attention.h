#pragma once

// Attention over the pages of one key/value head, over the lanes of the file that includes this.
//
// Pages are visited in order with a running maximum and a running sum (arXiv:1805.02867), so no
// buffer grows with the context. A query sees the same operations in the same order whoever shares
// the tile with it: the result does not depend on how a prompt was cut.

#include "backend/cpu/kernels.h"
#include "backend/cpu/loops_dense.h"
#include "backend/cpu/loops_rows.h"

namespace guanaco::cpu {
namespace {

static_assert(kPagePositions == 32, "a page is two vectors of scores");

/// The scales behind the integers of a page.
inline const float* scales_of(const std::byte* section, int head_dim) {
  return reinterpret_cast<const float*>(section + kPagePositions * head_dim * sizeof(std::int16_t));
}

template <int R>
struct Softmax {
  float maximum[R], total[R];        ///< so far
  float correction[R];               ///< of what was summed before this page
  float weights[R][kPagePositions];  ///< of this page, times the values' scales, not yet divided by
                                     ///< the total
  int valid[R];                      ///< positions of this page that the query sees
};

template <int R>
inline void score_page(const Query* queries, const std::byte* keys, const std::byte* values,
                       std::size_t page_stride, int head_dim, float scale, Softmax<R>& softmax) {
  const auto* const key = reinterpret_cast<const std::int16_t*>(keys);
  const float* const key_scales = scales_of(keys, head_dim);
  const float* const value_scales = scales_of(values, head_dim);
  Floats low[R], high[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) low[r] = high[r] = set(0.0f);
  for (int i = 0; i < head_dim; ++i) {
    // A head's share of a page is short and the next one far away: the hardware sees no stream.
    prefetch(values + i * kPagePositions * sizeof(std::int16_t));
    prefetch(keys + page_stride + i * kPagePositions * sizeof(std::int16_t));
    const Floats first = load_integers(key + i * kPagePositions);
    const Floats second = load_integers(key + i * kPagePositions + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats q = set(queries[r].query[i]);
      low[r] = fma(q, first, low[r]);
      high[r] = fma(q, second, high[r]);
    }
  }
  const Floats low_scales = multiply(load(key_scales), set(scale));
  const Floats high_scales = multiply(load(key_scales + 16), set(scale));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const int valid = softmax.valid[r], valid_high = valid > 16 ? valid - 16 : 0;
    softmax.correction[r] = 1;
    if (valid == 0) continue;
    const float nothing = -__builtin_inff();
    low[r] = keep_first(multiply(low[r], low_scales), valid, nothing);
    high[r] = keep_first(multiply(high[r], high_scales), valid_high, nothing);
    const float in_page = largest(larger(low[r], high[r]));
    const float maximum = in_page > softmax.maximum[r] ? in_page : softmax.maximum[r];
    const Floats maxima = set(maximum);
    low[r] = keep_first(exponential(subtract(low[r], maxima)), valid, 0.0f);
    high[r] = keep_first(exponential(subtract(high[r], maxima)), valid_high, 0.0f);
    float correction[16];
    store(correction, exponential(subtract(set(softmax.maximum[r]), maxima)));
    softmax.maximum[r] = maximum;
    softmax.correction[r] = correction[0];
    softmax.total[r] = softmax.total[r] * correction[0] + sum(add(low[r], high[r]));
    store(softmax.weights[r], multiply(low[r], load(value_scales)));
    store(softmax.weights[r] + 16, multiply(high[r], load(value_scales + 16)));
  }
}

/// Elements [first, first + 16 C) of every query's output; the last vector may be cut short.
template <int R, int C>
inline void add_values(const Query* queries, const std::byte* values, int head_dim, int first,
                       const Softmax<R>& softmax) {
  int common = softmax.valid[0];
  for (int r = 1; r < R; ++r) common = softmax.valid[r] < common ? softmax.valid[r] : common;
  Floats out[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      out[r][c] = multiply(load_first(queries[r].out + first + 16 * c, head_dim - first - 16 * c),
                           set(softmax.correction[r]));
  const auto* const column = reinterpret_cast<const std::int16_t*>(values) + first;
  for (int t = 0; t < common; ++t) {
    Floats value[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) value[c] = load_integers(column + t * head_dim + 16 * c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats weight = set(softmax.weights[r][t]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) out[r][c] = fma(weight, value[c], out[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int t = common; t < softmax.valid[r]; ++t)
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
        out[r][c] = fma(set(softmax.weights[r][t]), load_integers(column + t * head_dim + 16 * c),
                        out[r][c]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      store_first(queries[r].out + first + 16 * c, out[r][c], head_dim - first - 16 * c);
}

template <int R>
void attend_tile(const Query* queries, const HeadCache& cache, int head_dim) {
  constexpr int kWidth = kAccumulators / R > 4 ? 4 : kAccumulators / R > 1 ? kAccumulators / R : 1;
  const float scale = 1.0f / __builtin_sqrtf(float(head_dim));
  Softmax<R> softmax;
  int most = 0;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    softmax.maximum[r] = -__builtin_inff();
    softmax.total[r] = 0;
    if (queries[r].keys > most) most = queries[r].keys;
    for (int i = 0; i < head_dim; ++i) queries[r].out[i] = 0;
  }
  std::size_t offset = 0;
  for (int position = 0; position < most; position += kPagePositions, offset += cache.page_stride) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int left = queries[r].keys - position;
      softmax.valid[r] = left < 0 ? 0 : left > kPagePositions ? kPagePositions : left;
    }
    score_page<R>(queries, cache.keys + offset, cache.values + offset, cache.page_stride, head_dim,
                  scale, softmax);
    int first = 0;
    for (; first + 16 * kWidth <= head_dim; first += 16 * kWidth)
      add_values<R, kWidth>(queries, cache.values + offset, head_dim, first, softmax);
    for (; first < head_dim; first += 16)
      add_values<R, 1>(queries, cache.values + offset, head_dim, first, softmax);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < head_dim; ++i) queries[r].out[i] /= softmax.total[r];
}

/// As above for 1 <= count <= R.
template <int R>
void attend_up_to(const Query* queries, int count, const HeadCache& cache, int head_dim) {
  if (count == R)
    attend_tile<R>(queries, cache, head_dim);
  else if constexpr (R > 1)
    attend_up_to<R - 1>(queries, count, cache, head_dim);
}

void attend(const Query* queries, int count, const HeadCache& cache, int head_dim) {
  for (int i = 0; i < count; i += kTileRows)
    attend_up_to<kTileRows>(queries + i, count - i < kTileRows ? count - i : kTileRows, cache,
                            head_dim);
}

/// The functions above as the table of one instruction set.
inline constexpr Kernels kTable = {kIsaName, quantise, multiply_gptq, multiply_dense,
                                   rms_norm, swiglu,   attend};

}  // namespace
}  // namespace guanaco::cpu
