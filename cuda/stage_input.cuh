#pragma once

// How rows become the input of a streamed linear: normed, put in the packed order, and split into
// the planes that tensor core instructions take (layout.h, "The input of a linear").

#include "device.cuh"
#include "kernels.h"
#include "layout.h"

namespace guanaco::cuda {

/// The published files: inputs in their own order, one run a block, fp16 scales.
__device__ inline bool is_simple(const StreamedWeight& weight) {
  return weight.order == nullptr && weight.run_shift() == 0 && !weight.float_scales &&
         weight.inputs == weight.strip_blocks * kBlockInputs;
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

/// Stages every `stride`th block from `first` of one token's input x (times the norm's weights, if
/// any). Called by one warp; adds the squares of x to `squares`. Loads of several blocks are under
/// way together: this is what a kernel does between the end of the one before and its first
/// product. kSimple: inputs in their own order, one run a block.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ inline void stage_blocks(const LinearArgs& args, const float* x, int token, int first,
                                    int stride, std::uint8_t* records, int lane, float factor,
                                    float& squares) {
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kColumns = kTokens == 1 ? 2 : 8;
  constexpr int kBatch = kSimple ? 5 : 2;
  const StreamedWeight& weight = args.weight;
  const int run_shift = kSimple || !kCodes ? 0 : weight.run_shift();
  std::uint8_t* fragments = records;
  int column = 0;
  if constexpr (kTokens > 1) {
    fragments += (token / 4) * record_fragment_bytes<4>(kCodes);  // a set of four tokens
    column = (token % 4) * 2;
  }
  for (int start = first; start < weight.strip_blocks; start += stride * kBatch) {
    float4 value[kBatch], norm[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int block = start + i * stride, position = block * kBlockInputs + 4 * lane;
      value[i] = {0, 0, 0, 0};
      norm[i] = {1, 1, 1, 1};
      if (block >= weight.strip_blocks) continue;
      if (kSimple || weight.order == nullptr) {
        if (!kSimple && position >= weight.inputs) continue;  // inputs are a multiple of 4
        value[i] = *reinterpret_cast<const float4*>(x + position);
        if (args.norm != nullptr) norm[i] = *reinterpret_cast<const float4*>(args.norm + position);
      } else {
        const int4 from = *reinterpret_cast<const int4*>(weight.order + position);
        const auto gather = [&](float& to, float& weight_to, int source) {
          if (source < 0) return;
          to = x[source];
          if (args.norm != nullptr) weight_to = args.norm[source];
        };
        gather(value[i].x, norm[i].x, from.x);
        gather(value[i].y, norm[i].y, from.y);
        gather(value[i].z, norm[i].z, from.z);
        gather(value[i].w, norm[i].w, from.w);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int block = start + i * stride;
      if (block >= weight.strip_blocks) break;
      float v[4] = {value[i].x, value[i].y, value[i].z, value[i].w};
      for (const float element : v) squares += element * element;
      v[0] *= norm[i].x;
      v[1] *= norm[i].y;
      v[2] *= norm[i].z;
      v[3] *= norm[i].w;
      float largest = 0;
      for (const float element : v) largest = fmaxf(largest, fabsf(element));
      largest = run_max < kSimple || !kCodes > (largest, run_shift);
      float inverse, scale;
      plane_scale<kKind>(largest, inverse, scale);
      if constexpr (kKind == WeightKind::single)
        for (float& element : v) element *= factor;
      int sum = 0;
      const int record = block * record_bytes<kTokens>(kCodes);
      store_planes<kKind, kColumns>(fragments + record, column, lane, v, inverse, sum);
      if constexpr (kCodes) sum = run_sum<kSimple>(sum, run_shift);
      if ((lane & ((kWarp >> run_shift) - 1)) == 0) {
        auto* run_scales =
            reinterpret_cast<RunScale*>(records + record + record_fragment_bytes<kTokens>(kCodes));
        run_scales[((lane << run_shift) / kWarp) * kTokens + token] = {scale * factor, sum};
      }
    }
  }
}

}  // namespace guanaco::cuda
