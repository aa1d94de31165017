#pragma once

// How rows become the input of a streamed linear: normed, put in the packed order, and split into
// the planes that tensor core instructions take (layout.h, "The input of a linear").

#include "exchange.cuh"
#include "layout.h"
#include "weight_ring.cuh"

namespace guanaco::cuda {

/// Rows that a stage multiplies.
struct StageInput {
  const float* words;  ///< [tokens][inputs]
  const int* order;
  const float* norm;
  unsigned parity;
  bool plain;  ///< written by an earlier kernel: nothing to wait for
  int count;   ///< rows in use
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

/// The inputs at four packed positions from `position`, and the norm's weights for them.
__device__ __forceinline__ float4 gather(const StageInput& input, const float* x, int position,
                                         float4& norm, Patience& patience, int lane) {
  const int4 order = __ldg(reinterpret_cast<const int4*>(input.order + position));
  const int from[4] = {order.x, order.y, order.z, order.w};
  unsigned found[4] = {};
  float weights[4] = {0, 0, 0, 0};
  // As await() does for neighbouring words.
  for (int round = 0;; ++round) {
    int late = -1;
#pragma unroll
    for (int i = 3; i >= 0; --i) {
      if (from[i] < 0) continue;
      if (round == 0 || ((found[i] ^ input.parity) & 1u) != 0) found[i] = load_word(x + from[i]);
      if (((found[i] ^ input.parity) & 1u) != 0) late = from[i];
    }
    if (round == 0 && input.norm != nullptr)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (from[i] >= 0) weights[i] = __ldg(input.norm + from[i]);
    const unsigned who = __ballot_sync(~0u, late >= 0);
    if (who == 0) break;
    patience.lost = __any_sync(~0u, patience.lost);  // as in await()
    if (patience.lost) break;
    if (lane == __ffs(int(who)) - 1)
      for (int i = 0; ((load_word(x + late) ^ input.parity) & 1u) != 0 && i < Patience::kPolls;
           ++i) {
      }
    __syncwarp();
    patience.lost = round == Patience::kRounds;
  }
  if (input.norm != nullptr) norm = {weights[0], weights[1], weights[2], weights[3]};
  float value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) value[i] = from[i] >= 0 ? value_of(found[i]) : 0.0f;
  return {value[0], value[1], value[2], value[3]};
}

/// Stages a warp's share of the rows: blocks of the thread block's group become records, and of all
/// blocks the sum of squares is kept if there is a norm: squares[token][block]. Loads of several
/// blocks are under way together, and each is asked for again until it has arrived: this is what
/// lies between the stage before and this one's first product. kSimple: inputs in their own order,
/// one run a block. `row_of`: rows of the words, or null for the identity.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ __forceinline__ void stage_rows(const StageInput& input, const BlockPlan& plan,
                                           const int* row_of, std::uint8_t* records, float* squares,
                                           int squares_stride, Patience& patience_in, int warp,
                                           int lane) {
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kColumns = kTokens == 1 ? 2 : 8;
  constexpr int kBatch = kSimple ? 3 : 2;
  constexpr int kStride = kPassWarps / kTokens;  // a warp has one token
  const StreamedWeight& shape = plan.plan.shape;
  const int run_shift = kSimple || !kCodes ? 0 : shape.run_shift();
  const int group_first = plan.group * plan.plan.group_blocks;
  const int group_last = min(group_first + plan.plan.group_blocks, shape.strip_blocks);
  const bool normed = input.norm != nullptr;
  const int first = normed ? 0 : group_first, last = normed ? shape.strip_blocks : group_last;
  const int token = warp % kTokens;
  if (token >= input.count) return;
  Patience none{true};
  Patience& patience = input.plain ? none : patience_in;
  const float* x =
      input.words + std::size_t(row_of != nullptr ? row_of[token] : token) * shape.inputs;
  std::uint8_t* fragments = records;
  int column = 0;
  if constexpr (kTokens > 1) {
    fragments += (token / 4) * record_fragment_bytes<4>(kCodes);  // a set of four tokens
    column = (token % 4) * 2;
  }
  for (int start = first + warp / kTokens; start < last; start += kStride * kBatch) {
    float4 norm[kBatch];
    uint4 words[kBatch];
    const auto is_simple = [&] { return kSimple || input.order == nullptr; };
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int block = start + i * kStride, position = block * kBlockInputs + 4 * lane;
      norm[i] = {1, 1, 1, 1};
      words[i] = {};
      if (block >= last || !is_simple()) continue;
      if (!kSimple && position >= shape.inputs) continue;  // inputs are a multiple of 4
      words[i] = load_words(x + position);
      if (normed) norm[i] = __ldg(reinterpret_cast<const float4*>(input.norm + position));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int block = start + i * kStride, position = block * kBlockInputs + 4 * lane;
      if (block >= last) break;
      float4 value;
      if (is_simple()) {
        const bool wanted = kSimple || position < shape.inputs;
        value = await(words[i], x + position, wanted, input.parity, patience, lane);
        if (!wanted) value = {0, 0, 0, 0};
      } else {
        value = gather(input, x, position, norm[i], patience, lane);
      }
      float v[4] = {value.x, value.y, value.z, value.w};
      if (normed) {
        float square = 0;
        for (const float element : v) square += element * element;
        square = warp_sum(square);
        if (lane == 0) squares[token * squares_stride + block] = square;
        if (block < group_first || block >= group_last) continue;
      }
      v[0] *= norm[i].x;
      v[1] *= norm[i].y;
      v[2] *= norm[i].z;
      v[3] *= norm[i].w;
      float largest = 0;
      for (const float element : v) largest = fmaxf(largest, fabsf(element));
      largest = run_max < kSimple || !kCodes > (largest, run_shift);
      float inverse, scale;
      plane_scale<kKind>(largest, inverse, scale);
      int sum = 0;
      const int record = (block - group_first) * record_bytes<kTokens>(kCodes);
      store_planes<kKind, kColumns>(fragments + record, column, lane, v, inverse, sum);
      if constexpr (kCodes) sum = run_sum<kSimple>(sum, run_shift);
      if ((lane & ((kWarp >> run_shift) - 1)) == 0) {
        auto* run_scales =
            reinterpret_cast<RunScale*>(records + record + record_fragment_bytes<kTokens>(kCodes));
        run_scales[((lane << run_shift) / kWarp) * kTokens + token] = {scale, sum};
      }
    }
  }
}

}  // namespace guanaco::cuda
