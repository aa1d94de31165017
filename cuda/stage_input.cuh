#pragma once

// How rows become the input of a streamed linear: put in the packed order if they are not yet, and
// split into the planes that tensor core instructions take (layout.h, "The input of a linear").

#include "exchange.cuh"
#include "layout.h"
#include "weight_ring.cuh"

namespace guanaco::cuda {

/// Rows that a stage multiplies.
struct StageInput {
  const float* words;  ///< [tokens][inputs]
  const int* order;    ///< null if they are in the packed order
  unsigned parity;
  int count;  ///< rows in use
};

/// The published files: inputs in their own order, one run a block.
__device__ inline bool in_own_order(const StreamedWeight& shape, const int* order) {
  return order == nullptr && shape.run_shift() == 0 &&
         shape.inputs == shape.strip_blocks * kBlockInputs;
}

/// Splits `value` (scaled into range) and stores it as the two planes of one token's column.
/// Position p = 4 * lane of the block; `column` points at the token's high column in the record.
template <WeightKind kKind, int kColumns>
__device__ inline void store_planes(std::uint8_t* fragments, int token_column, int lane,
                                    const float (&value)[4], float inverse, int& sum) {
  auto* words = reinterpret_cast<std::uint32_t*>(fragments);
  const auto at = [&](int column, int word,
                      int t) {  // word: index among an element's instruction words
    return (((word / 4) * kColumns + column) * 4 + t) * 4 + word % 4;
  };
  if constexpr (kKind == WeightKind::nibble || kKind == WeightKind::byte) {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; 128 more puts
    // the high byte in byte 1 and the low byte, off by 128, in byte 0.
    std::uint32_t v[4];
    for (int b = 0; b < 4; ++b) v[b] = __float_as_uint(fmaf(value[b], inverse, 12583040.0f));
    const std::uint32_t high =
        __byte_perm(__byte_perm(v[0], v[1], 0x0051), __byte_perm(v[2], v[3], 0x0051), 0x5410);
    const std::uint32_t low =
        __byte_perm(__byte_perm(v[0], v[1], 0x0040), __byte_perm(v[2], v[3], 0x0040), 0x5410) ^
        0x80808080u;
    sum = int(v[0] + v[1] + v[2] + v[3] - 4 * 0x4b400080u);
    const int word = (lane / 8) * 2 + (lane % 8) / 4;
    words[at(token_column, word, lane % 4)] = high;
    words[at(token_column + 1, word, lane % 4)] = low;
  } else if constexpr (kKind == WeightKind::single) {
    reinterpret_cast<float4*>(fragments)[(token_column / 2) * 32 + lane] = {value[0], value[1],
                                                                            value[2], value[3]};
  } else {
    for (int pair = 0; pair < 2; ++pair) {
      const float x = value[2 * pair] * inverse, y = value[2 * pair + 1] * inverse;
      const int k = 4 * (lane % 4) + 2 * pair;  // in the 16 inputs of an instruction
      const int word = (lane / 4) * 2 + k / 8;
      std::uint32_t high, low;
      if constexpr (kKind == WeightKind::half) {
        const __half2 h = __floats2half2_rn(x, y);
        const float2 back = __half22float2(h);
        const __half2 l = __floats2half2_rn(x - back.x, y - back.y);
        high = *reinterpret_cast<const std::uint32_t*>(&h);
        low = *reinterpret_cast<const std::uint32_t*>(&l);
      } else {
        const __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
        const float2 back = __bfloat1622float2(h);
        const __nv_bfloat162 l = __floats2bfloat162_rn(x - back.x, y - back.y);
        high = *reinterpret_cast<const std::uint32_t*>(&h);
        low = *reinterpret_cast<const std::uint32_t*>(&l);
      }
      words[at(token_column, word, (k % 8) / 2)] = high;
      words[at(token_column + 1, word, (k % 8) / 2)] = low;
    }
  }
}

/// Largest magnitude of staged 16-bit integers; as on the CPU. Two signed bytes hold it: (32512 +
/// 128) / 256 = 127.5.
inline constexpr float kIntegerRange = 32512.0f;

/// The factor that brings values of magnitude up to `largest` into the range of the planes, and its
/// inverse.
template <WeightKind kKind>
__device__ inline void plane_scale(float largest, float& inverse, float& scale) {
  if constexpr (kKind == WeightKind::single) {
    inverse = scale = 1;
  } else if (largest == 0) {
    inverse = scale = 0;
  } else if constexpr (kKind == WeightKind::nibble || kKind == WeightKind::byte) {
    inverse = __fdividef(kIntegerRange, largest);
    scale = largest * (1 / kIntegerRange);
  } else {  // a power of two: largest lands in [512, 1024), where the low half keeps 24 bits below
            // it
    int exponent;
    frexpf(largest, &exponent);
    inverse = ldexpf(1.0f, 10 - exponent);
    scale = ldexpf(1.0f, exponent - 10);
  }
}

/// Maximum and sum over the lanes that stage one run: 32 of them, or 32 >> run_shift neighbours.
template <bool kSimple>
__device__ inline float run_max(float magnitude, int run_shift) {
  // Not negative, so ordered like its bits.
  if (kSimple) return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(magnitude)));
  return warp_max(magnitude, kWarp >> run_shift);
}
template <bool kSimple>
__device__ inline int run_sum(int value, int run_shift) {
  return kSimple ? __reduce_add_sync(~0u, value) : warp_sum(value, kWarp >> run_shift);
}

/// Four neighbouring packed positions, whose inputs a lane waits for. kSimple: they are neighbours
/// too; else each has an input of its own, or none.
template <bool kSimple>
struct Inputs {
  int from[kSimple ? 1 : 4];
  unsigned word[4];

  __device__ __forceinline__ void find(const StageInput& input, int inputs, int position) {
    [[maybe_unused]] const unsigned parity = input.parity;
    if constexpr (kSimple) {
      from[0] = position;
    } else {
      const int none = -1;
      int4 order = {position, position + 1, position + 2, position + 3};
      if (input.order != nullptr) {
        order = __ldg(reinterpret_cast<const int4*>(input.order + position));
      } else if (position >= inputs) {  // inputs are a multiple of 4
        order = {none, none, none, none};
      }
      from[0] = order.x;
      from[1] = order.y;
      from[2] = order.z;
      from[3] = order.w;
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = from[i] < 0 ? parity : parity ^ 1u;
    }
  }
  /// Loads what has not been seen to arrive.
  __device__ __forceinline__ void load(const float* x, unsigned parity) {
    if constexpr (kSimple) {
      const uint4 words = load_words(x + from[0]);
      word[0] = words.x;
      word[1] = words.y;
      word[2] = words.z;
      word[3] = words.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (((word[i] ^ parity) & 1u) != 0) word[i] = load_word(x + from[i]);
    }
  }
  __device__ __forceinline__ bool here(unsigned parity) const {
    return arrived({word[0], word[1], word[2], word[3]}, parity);
  }
  /// Of the first word that is late.
  __device__ __forceinline__ int late(unsigned parity) const {
    int which = 0;
#pragma unroll
    for (int i = 3; i >= 0; --i)
      if (((word[i] ^ parity) & 1u) != 0) which = kSimple ? from[0] + i : from[kSimple ? 0 : i];
    return which;
  }
};

/// Stages a warp's share of the rows: blocks of the thread block's group become records. Several
/// blocks advance together, so that one's latencies hide the others': this is what lies between the
/// stage before and this one's first product. kSimple: inputs as they lie, one run a block.
/// `row_of`: rows of the words, or null for the identity.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ __forceinline__ void stage_rows(const StageInput& input, const BlockPlan& plan,
                                           const int* row_of, std::uint8_t* records,
                                           Patience& patience, int warp, int lane) {
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kColumns = kTokens == 1 ? 2 : 8;
  constexpr int kBatch = kSimple ? 4 : 2;
  constexpr int kStride = kPassWarps / kTokens;  // a warp has one token
  const StreamedWeight& shape = plan.plan.shape;
  const int run_shift = kSimple || !kCodes ? 0 : shape.run_shift();
  const int first = plan.group * plan.plan.group_blocks;
  const int last = min(first + plan.plan.group_blocks, shape.strip_blocks);
  const int token = warp % kTokens;
  if (token >= input.count) return;
  const unsigned parity = input.parity;
  const float* x =
      input.words + std::size_t(row_of != nullptr ? row_of[token] : token) * shape.inputs;
  std::uint8_t* fragments = records;
  int column = 0;
  if constexpr (kTokens > 1) {
    fragments += (token / 4) * record_fragment_bytes<4>(kCodes);  // a set of four tokens
    column = (token % 4) * 2;
  }
  for (int start = first + warp / kTokens; start < last; start += kStride * kBatch) {
    // The last blocks of a batch may not exist: then they are the first once more.
    Inputs<kSimple> inputs[kBatch];
    const auto block_of = [&](int i) {
      const int block = start + i * kStride;
      return block < last ? block : start;
    };
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      inputs[i].find(input, shape.inputs, block_of(i) * kBlockInputs + 4 * lane);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) inputs[i].load(x, parity);
    for (int round = 0;; ++round) {
      int late = -1;
#pragma unroll
      for (int i = kBatch - 1; i >= 0; --i)
        if (!inputs[i].here(parity)) late = inputs[i].late(parity);
      if (!keep_waiting(x, late, parity, round, patience, lane)) break;
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        if (!inputs[i].here(parity)) inputs[i].load(x, parity);
    }
    float value[kBatch][4];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) value[i][e] = value_of(inputs[i].word[e]);
    float largest[kBatch], inverse[kBatch], scale[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      largest[i] = fmaxf(fmaxf(fabsf(value[i][0]), fabsf(value[i][1])),
                         fmaxf(fabsf(value[i][2]), fabsf(value[i][3])));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      largest[i] = run_max < kSimple || !kCodes > (largest[i], run_shift);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) plane_scale<kKind>(largest[i], inverse[i], scale[i]);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      int sum = 0;
      const int record = (block_of(i) - first) * record_bytes<kTokens>(kCodes);
      store_planes<kKind, kColumns>(fragments + record, column, lane, value[i], inverse[i], sum);
      if constexpr (kCodes) sum = run_sum<kSimple>(sum, run_shift);
      if ((lane & ((kWarp >> run_shift) - 1)) == 0) {
        auto* run_scales =
            reinterpret_cast<RunScale*>(records + record + record_fragment_bytes<kTokens>(kCodes));
        run_scales[((lane << run_shift) / kWarp) * kTokens + token] = {scale[i], sum};
      }
    }
  }
}

}  // namespace guanaco::cuda
