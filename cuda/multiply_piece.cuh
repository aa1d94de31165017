#pragma once

// The product of a piece of weights and its staged inputs, on tensor cores. Weights are the A
// operand, as they lie in memory; two columns of B are one token (layout.h).

#include "device.cuh"
#include "layout.h"

namespace guanaco::cuda {

/// kCount neighbouring pieces of a strip (a piece is a block, or `quarter` of one for halves and
/// bfloats) times the staged tokens, added to `sums`: [set of tokens][row g, row g + 8] in lane
/// (g, t) for token 4 * set + t (one token: only t = 0). kSimple: one run a block and fp16 scales,
/// as the published files have, and no padding; else all is looked up.
template <WeightKind kKind, int kTokens, bool kSimple, int kCount>
__device__ __forceinline__ void multiply_pieces(const std::uint8_t* pieces,
                                                [[maybe_unused]] int any_piece_bytes,
                                                const std::uint8_t* records,
                                                [[maybe_unused]] int quarter,
                                                const StreamedWeight& weight, int lane,
                                                float (&sums)[kTokens == 1 ? 1 : 2][2]) {
  constexpr int kSets = kTokens == 1 ? 1 : 2;
  constexpr int kColumns = kTokens == 1 ? 2 : 8;
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  static_assert(kCodes || kCount == 1);
  const int g = lane / 4, t = lane % 4;
  const int piece_bytes =
      kSimple && kKind == WeightKind::nibble ? kSimpleNibbleBytes : any_piece_bytes;
  // One token has two columns; the others repeat them, and nobody looks at their sums.
  const auto fragment = [&](int piece, int set, int quad) {
    constexpr int kQuads = kCodes ? 2 : 4;
    return reinterpret_cast<const uint4*>(
        records + piece * record_bytes<kTokens>(
                              kCodes))[((set * kQuads + quad) * kColumns + g % kColumns) * 4 + t];
  };

  if constexpr (kCodes) {
    const int run_shift = kSimple ? 0 : weight.run_shift(), runs = 1 << run_shift;
    const bool float_scales = !kSimple && weight.float_scales;
    int products[kCount][kSets][4] = {};
    if constexpr (kSimple && kKind == WeightKind::nibble) {
      // The high nibbles are multiplied where they stand, as 16 times their value, and summed up on
      // their own: 16 * low + high is 16 times the product.
      int highs[kCount][kSets][4] = {};
#pragma unroll
      for (int pair = 0; pair < 2; ++pair)  // 64 inputs, two instructions
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const auto* block = reinterpret_cast<const uint2*>(pieces + i * piece_bytes);
          const uint2 first = block[2 * pair * kWarp + lane];
          const uint2 second = block[(2 * pair + 1) * kWarp + lane];
          const std::uint32_t words[4] = {first.x, first.y, second.x, second.y};
          std::uint32_t low[4], high[4];
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            low[w] = words[w] & 0x0f0f0f0fu;
            high[w] = words[w] & 0xf0f0f0f0u;
          }
#pragma unroll
          for (int set = 0; set < kSets; ++set) {
            const uint4 x = fragment(i, set, pair);
            mma_u8s8(products[i][set], low, x.x, x.z);
            mma_u8s8(highs[i][set], high, x.y, x.w);
          }
        }
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const std::uint8_t* scales = pieces + i * piece_bytes + element_bytes(kKind);
        const float2 scale = __half22float2(reinterpret_cast<const __half2*>(scales)[g]);
        const uint2 zeros = *reinterpret_cast<const uint2*>(scales + kStripOutputs * 2);
        const int zero0 = int((zeros.x >> (4 * g)) & 15u), zero1 = int((zeros.y >> (4 * g)) & 15u);
        const auto* run_scales = reinterpret_cast<const RunScale*>(
            records + i * record_bytes<kTokens>(kCodes) + record_fragment_bytes<kTokens>(kCodes));
#pragma unroll
        for (int set = 0; set < kSets; ++set) {
          const RunScale x = run_scales[kTokens == 1 ? 0 : set * 4 + t];
          const int(&low)[4] = products[i][set];
          const int(&high)[4] = highs[i][set];
          // Within 2^31: codes and zero points up to 15, 128 inputs up to 32512 in magnitude.
          const int first = (low[0] * 256 + low[1] - zero0 * x.sum) * 16 + high[0] * 256 + high[1];
          const int second = (low[2] * 256 + low[3] - zero1 * x.sum) * 16 + high[2] * 256 + high[3];
          const float factor = x.scale * (1.0f / 16);
          sums[set][0] += float(first) * (scale.x * factor);
          sums[set][1] += float(second) * (scale.y * factor);
        }
      }
    } else {
      uint4 b[kCount][kSets];
#pragma unroll
      for (int m = 0; m < 4; ++m) {  // 32 inputs an instruction
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const std::uint8_t* block = pieces + i * piece_bytes;
          std::uint32_t a[4];
          if constexpr (kKind == WeightKind::nibble) {
            const uint2 rows = reinterpret_cast<const uint2*>(block)[m * kWarp + lane];
            a[0] = rows.x & 0x0f0f0f0fu;
            a[1] = rows.y & 0x0f0f0f0fu;
            a[2] = (rows.x >> 4) & 0x0f0f0f0fu;
            a[3] = (rows.y >> 4) & 0x0f0f0f0fu;
          } else {
            const uint4 chunk = reinterpret_cast<const uint4*>(block)[m * kWarp + lane];
            a[0] = chunk.x;
            a[1] = chunk.y;
            a[2] = chunk.z;
            a[3] = chunk.w;
          }
#pragma unroll
          for (int set = 0; set < kSets; ++set) {
            if (m % 2 == 0) b[i][set] = fragment(i, set, m / 2);
            const uint4& words = b[i][set];
            mma_u8s8(products[i][set], a, m % 2 == 0 ? words.x : words.z,
                     m % 2 == 0 ? words.y : words.w);
          }
        }
        if (m < 3 && (kSimple || (((m + 1) << run_shift) & 3) != 0)) continue;  // the run goes on
        const int run = (m << run_shift) >> 2;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const std::uint8_t* scales = pieces + i * piece_bytes + element_bytes(kKind);
          const std::uint8_t* zeros = scales + runs * kStripOutputs * (float_scales ? 4 : 2);
          float2 scale;
          if (float_scales) {
            scale = reinterpret_cast<const float2*>(scales)[run * 8 + g];
          } else {
            scale = __half22float2(reinterpret_cast<const __half2*>(scales)[run * 8 + g]);
          }
          int zero0, zero1;
          if constexpr (kKind == WeightKind::nibble) {
            const uint2 packed = reinterpret_cast<const uint2*>(zeros)[run];
            zero0 = int((packed.x >> (4 * g)) & 15u);
            zero1 = int((packed.y >> (4 * g)) & 15u);
          } else {
            zero0 = zeros[run * 16 + g];
            zero1 = zeros[run * 16 + 8 + g];
          }
          const auto* run_scales = reinterpret_cast<const RunScale*>(
              records + i * record_bytes<kTokens>(kCodes) + record_fragment_bytes<kTokens>(kCodes));
#pragma unroll
          for (int set = 0; set < kSets; ++set) {
            const RunScale x = run_scales[run * kTokens + (kTokens == 1 ? 0 : set * 4 + t)];
            int(&d)[4] = products[i][set];
            sums[set][0] += float(d[0] * 256 + d[1] - zero0 * x.sum) * (scale.x * x.scale);
            sums[set][1] += float(d[2] * 256 + d[3] - zero1 * x.sum) * (scale.y * x.scale);
            d[0] = d[1] = d[2] = d[3] = 0;
          }
        }
      }
    }
  } else if constexpr (kKind == WeightKind::single) {
    // fp32 files: lane (g, t) multiplies a quarter of the inputs of rows g and g + 8, then the quad
    // adds up.
    const auto* rows = reinterpret_cast<const float4*>(pieces);
    const auto* x = reinterpret_cast<const float4*>(records);
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      float products[2] = {};
      for (int i = t; i < 32; i += 4) {
        const float4 v = x[token * 32 + i];
        for (int r = 0; r < 2; ++r) {
          const float4 w = rows[(g + 8 * r) * 32 + i];
          products[r] += w.x * v.x + w.y * v.y + w.z * v.z + w.w * v.w;
        }
      }
      for (int r = 0; r < 2; ++r) {
        const float sum = warp_sum(products[r], 4);
        if (kTokens == 1 || t == token % 4) sums[token / 4][r] += sum;
      }
    }
  } else {
    float products[kSets][4] = {};
    uint4 words[kSets];
#pragma unroll
    for (int set = 0; set < kSets; ++set) words[set] = fragment(0, set, quarter);
#pragma unroll
    for (int m = 0; m < 2; ++m) {  // 16 inputs an instruction
      // Pieces of 1024 bytes follow each other, so that copies of them are aligned to 16.
      const uint4 chunk = reinterpret_cast<const uint4*>(pieces)[m * kWarp + lane];
      const std::uint32_t a[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const std::uint32_t b0 = m == 0 ? words[set].x : words[set].z,
                            b1 = m == 0 ? words[set].y : words[set].w;
        if constexpr (kKind == WeightKind::half) {
          mma_half(products[set], a, b0, b1);
        } else {
          mma_bfloat(products[set], a, b0, b1);
        }
      }
    }
    const auto* run_scales =
        reinterpret_cast<const RunScale*>(records + record_fragment_bytes<kTokens>(kCodes));
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float scale = run_scales[kTokens == 1 ? 0 : set * 4 + t].scale;
      sums[set][0] += scale * (products[set][0] + products[set][1]);
      sums[set][1] += scale * (products[set][2] + products[set][3]);
    }
  }
}

}  // namespace guanaco::cuda
