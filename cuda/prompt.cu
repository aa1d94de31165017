// Stages 2, 4, 5, 6 and 7 for many rows, around a plain matrix product (prompt.h): the rows become
// fp16 in the order of the packed weight, panels of the weight become fp16, and what each stage
// does with the products.
//
// Every kernel is bound by the bytes it moves, so every access is coalesced: dequantise() turns
// blocks, which lie in the order of tensor core registers, into rows through shared memory. A row
// of fp16 has its own power of two, so that no activation overflows or is lost; norms, scales and
// sums are fp32.
//
// bfloat and single weights become fp16 as well. bfloat16 has fewer digits than fp16, so that from
// 2^-14 to 65504 none is lost (below, at most 2^-25 is), while activations in bfloat16 would lose
// three binary digits. Larger weights saturate.

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace guanaco::cuda {
namespace {

constexpr DeviceLimits kPlain{};  // launches that wait for the kernel before them to end
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ std::uint32_t bits(__half2 two) { return *reinterpret_cast<std::uint32_t*>(&two); }

__device__ __half2 as_halves(std::uint32_t word) { return *reinterpret_cast<__half2*>(&word); }

__device__ std::uint32_t saturated_halves(float x, float y) {
  constexpr float kMost = 65504;
  return bits(__floats2half2_rn(fminf(fmaxf(x, -kMost), kMost), fminf(fmaxf(y, -kMost), kMost)));
}

// ---- the input

__device__ float4 times(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }

/// One thread block a row.
__global__ void __launch_bounds__(kThreads)
    prompt_input_kernel(const float* input, const float* norm, float epsilon, const int* order,
                        int inputs, int packed_inputs, __half* out, float* factors) {
  __shared__ float squares_of[kWarps], largest_of[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const float* x = input + std::size_t(blockIdx.x) * inputs;
  float squares = 0, largest = 0;
  for (int i = threadIdx.x * 4; i < inputs; i += kThreads * 4) {  // inputs are a multiple of 4
    float4 value = *reinterpret_cast<const float4*>(x + i);
    squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
    if (norm != nullptr) value = times(value, *reinterpret_cast<const float4*>(norm + i));
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(value.x), fabsf(value.y)),
                                   fmaxf(fabsf(value.z), fabsf(value.w))));
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
  if (lane == 0) {
    squares_of[warp] = squares;
    largest_of[warp] = largest;
  }
  __syncthreads();
  squares = 0;
  for (int w = 0; w < kWarps; ++w) {
    squares += squares_of[w];
    largest = fmaxf(largest, largest_of[w]);
  }

  int exponent = 8;
  if (largest > 0) frexpf(largest, &exponent);
  exponent = max(exponent, -100);                  // subnormal rows: both powers must be finite
  const float scale = ldexpf(1.0f, 8 - exponent);  // the largest magnitude lands in [128, 256)
  if (threadIdx.x == 0) {
    const float rms = norm == nullptr ? 1.0f : rsqrtf(squares / float(inputs) + epsilon);
    factors[blockIdx.x] = ldexpf(rms, exponent - 8);
  }

  __half* row = out + std::size_t(blockIdx.x) * packed_inputs;
  for (int i = threadIdx.x * 8; i < packed_inputs; i += kThreads * 8) {
    float value[8];
    if (order == nullptr) {
      for (int e = 0; e < 8; e += 4) {
        float4 four = {0, 0, 0, 0};
        if (i + e < inputs) {
          four = *reinterpret_cast<const float4*>(x + i + e);
          if (norm != nullptr) four = times(four, *reinterpret_cast<const float4*>(norm + i + e));
        }
        *reinterpret_cast<float4*>(value + e) = four;
      }
    } else {
      int from[8];
      *reinterpret_cast<int4*>(from) = *reinterpret_cast<const int4*>(order + i);
      *reinterpret_cast<int4*>(from + 4) = *reinterpret_cast<const int4*>(order + i + 4);
      for (int e = 0; e < 8; ++e) {
        value[e] = from[e] < 0 ? 0.0f : x[from[e]];
        if (norm != nullptr && from[e] >= 0) value[e] *= norm[from[e]];
      }
    }
    std::uint32_t words[4];
    for (int w = 0; w < 4; ++w)
      words[w] = bits(__floats2half2_rn(value[2 * w] * scale, value[2 * w + 1] * scale));
    *reinterpret_cast<uint4*>(row + i) = uint4{words[0], words[1], words[2], words[3]};
  }
}

// ---- the weight

/// Halves from one row of a tile to the next: 16 more than the block has inputs, so that neither
/// the writes (8 rows at a time) nor the reads meet bank conflicts.
constexpr int kTileRow = kBlockInputs + 16;

/// Codes in the bytes of a word as halves: scale * (code - zero), rounded once. The half 0x6400 +
/// code is 1024 + code.
__device__ uint2 decode_codes(std::uint32_t codes, int zero, __half scale) {
  const std::uint32_t offset = 0x64006400u | unsigned(zero) | (unsigned(zero) << 16);
  const __half2 low =
      __hsub2(as_halves(__byte_perm(codes, 0x64646464u, 0x4140)), as_halves(offset));
  const __half2 high =
      __hsub2(as_halves(__byte_perm(codes, 0x64646464u, 0x4342)), as_halves(offset));
  const __half2 both = __half2half2(scale);
  return {bits(__hmul2(low, both)), bits(__hmul2(high, both))};
}

__device__ uint2 decode_codes(std::uint32_t codes, int zero, float scale) {
  const auto value = [&](int byte) {
    return float(int((codes >> (8 * byte)) & 255u) - zero) * scale;
  };
  return {saturated_halves(value(0), value(1)), saturated_halves(value(2), value(3))};
}

/// Decodes one block into a tile of [16 outputs][kTileRow]. Called by one warp. Reads 8 bytes at a
/// time, since every second block may start in the middle of 16.
template <WeightKind kKind, typename Scale>
__device__ void decode_block(const std::uint8_t* block, int runs, int lane,
                             __half (*tile)[kTileRow]) {
  if constexpr (kKind == WeightKind::single) {
    float4 rows[kStripOutputs];
#pragma unroll
    for (int row = 0; row < kStripOutputs; ++row)
      rows[row] = __ldcs(reinterpret_cast<const float4*>(block) + row * kWarp + lane);
#pragma unroll
    for (int row = 0; row < kStripOutputs; ++row)
      *reinterpret_cast<uint2*>(&tile[row][4 * lane]) = {
          saturated_halves(rows[row].x, rows[row].y), saturated_halves(rows[row].z, rows[row].w)};
    return;
  }

  constexpr int kReads = element_bytes(kKind) / (8 * kWarp);
  constexpr bool kNibble = kKind == WeightKind::nibble;
  uint2 words[kReads];  // row g, row g + 8
#pragma unroll
  for (int n = 0; n < kReads; ++n)
    words[n] = __ldcs(reinterpret_cast<const uint2*>(block) + n * kWarp + lane);
  const std::uint8_t* scales = block + element_bytes(kKind);
  const std::uint8_t* zeros = scales + runs * kStripOutputs * int(sizeof(Scale));
#pragma unroll
  for (int n = 0; n < kReads; ++n) {
    // A chunk has 8 bytes for each (g, t), or 16: two halves.
    const int chunk = kNibble ? n : n / 2, half = kNibble ? 0 : lane % 2;
    const int g = kNibble ? lane / 4 : (n % 2) * 4 + lane / 8;
    const int t = kNibble ? lane % 4 : lane / 2 % 4;
    if constexpr (kNibble || kKind == WeightKind::byte) {
      const int quarter = chunk;  // of the block's inputs
      const int run = quarter * runs / 4;
      const auto* scale = reinterpret_cast<const Scale*>(scales) + run * kStripOutputs + 2 * g;
      int zero[2];
      if constexpr (kNibble) {
        const uint2 packed = reinterpret_cast<const uint2*>(zeros)[run];
        zero[0] = int((packed.x >> (4 * g)) & 15u);
        zero[1] = int((packed.y >> (4 * g)) & 15u);
      } else {
        zero[0] = zeros[run * kStripOutputs + g];
        zero[1] = zeros[run * kStripOutputs + g + 8];
      }
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t word = r == 0 ? words[n].x : words[n].y;
        __half* row = tile[g + 8 * r] + 32 * quarter + 4 * t;
        if constexpr (kNibble) {
          *reinterpret_cast<uint2*>(row) = decode_codes(word & 0x0f0f0f0fu, zero[r], scale[r]);
          *reinterpret_cast<uint2*>(row + 16) =
              decode_codes((word >> 4) & 0x0f0f0f0fu, zero[r], scale[r]);
        } else {
          *reinterpret_cast<uint2*>(row + 16 * half) = decode_codes(word, zero[r], scale[r]);
        }
      }
    } else {
      for (int r = 0; r < 2; ++r) {
        std::uint32_t word = r == 0 ? words[n].x : words[n].y;
        if constexpr (kKind == WeightKind::bfloat)
          word = saturated_halves(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
        *reinterpret_cast<std::uint32_t*>(tile[g + 8 * r] + 16 * chunk + 8 * half + 2 * t) = word;
      }
    }
  }
}

/// One warp a block of the weight.
template <WeightKind kKind, typename Scale>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const StreamedWeight weight, int first_strip, int strips, __half* panel) {
  __shared__ __align__(16) __half tiles[kWarps][kStripOutputs][kTileRow];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int index = blockIdx.x * kWarps + warp;
  if (index >= strips * weight.strip_blocks) return;
  const std::size_t block = std::size_t(first_strip) * weight.strip_blocks + index;
  decode_block<kKind, Scale>(weight.blocks + block * weight.block_bytes, weight.runs, lane,
                             tiles[warp]);
  __syncwarp();
  const int strip = index / weight.strip_blocks,
            column = index % weight.strip_blocks * kBlockInputs;
  const std::size_t row_halves = std::size_t(weight.strip_blocks) * kBlockInputs;
  __half* to = panel + std::size_t(strip) * kStripOutputs * row_halves + column;
#pragma unroll
  for (int i = 0; i < kStripOutputs / 2; ++i) {
    const int row = 2 * i + lane / 16, at = lane % 16 * 8;
    *reinterpret_cast<uint4*>(to + row * row_halves + at) =
        *reinterpret_cast<const uint4*>(&tiles[warp][row][at]);
  }
}

// ---- what is done with the products

__device__ float4 finished(const float* products, float factor, const float* bias) {
  float4 y = *reinterpret_cast<const float4*>(products);
  y = {y.x * factor, y.y * factor, y.z * factor, y.w * factor};
  if (bias != nullptr) y = {y.x + bias[0], y.y + bias[1], y.z + bias[2], y.w + bias[3]};
  return y;
}

/// Four pairs of outputs (rows g and g + 8 of a strip) a thread: `pair` = 2 * strip of the panel +
/// g / 4.
struct FourPairs {
  int strip, g;
  float4 first, second;

  __device__ FourPairs(int pair, int row, const float* products, const float* factors,
                       const float* bias, int first_strip, int count) {
    strip = first_strip + pair / 2;
    g = pair % 2 * 4;
    const float* from = products + (std::size_t(row) * count + pair / 2) * kStripOutputs + g;
    const float* add = bias == nullptr ? nullptr : bias + std::size_t(strip) * kStripOutputs + g;
    first = finished(from, factors[row], add);
    second = finished(from + 8, factors[row], add == nullptr ? nullptr : add + 8);
  }
};

/// Queries and keys are rotated, K and V appended; as in attention_input.cuh.
__global__ void __launch_bounds__(kThreads)
    prompt_attention_input_kernel(const float* products, const float* factors, const float* bias,
                                  int first_strip, int count, const AttentionInput out) {
  const int pair = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  if (pair >= 2 * count) return;
  FourPairs y(pair, row, products, factors, bias, first_strip, count);
  const AttentionShape& shape = out.shape;
  const int strips_a_head = shape.head_dim / kStripOutputs, half = shape.head_dim / 2;
  int head = y.strip / strips_a_head;
  const int s = y.strip % strips_a_head;
  const bool is_value = head >= shape.heads + shape.kv_heads;
  const int first = is_value ? s * kStripOutputs + y.g : s * 8 + y.g;
  const int second = first + (is_value ? 8 : half);
  if (!is_value) {
    const auto* angles =
        reinterpret_cast<const float4*>(out.rows.angles + std::size_t(row) * half + first);
    const float4 a = angles[0], b = angles[1];  // cosine, sine, cosine, sine
    const float4 low = y.first, high = y.second;
    y.first = {low.x * a.x - high.x * a.y, low.y * a.z - high.y * a.w, low.z * b.x - high.z * b.y,
               low.w * b.z - high.w * b.w};
    y.second = {high.x * a.x + low.x * a.y, high.y * a.z + low.y * a.w, high.z * b.x + low.z * b.y,
                high.w * b.z + low.w * b.w};
  }
  if (head < shape.heads) {
    float* query = out.query + (std::size_t(row) * shape.heads + head) * shape.head_dim;
    *reinterpret_cast<float4*>(query + first) = y.first;
    *reinterpret_cast<float4*>(query + second) = y.second;
    return;
  }
  head -= shape.heads;  // K heads, then V heads: as in the page
  __half* to = out.rows.append[row] + out.layer * shape.layer_elements() +
               (std::size_t(head) * 32 + out.rows.positions[row] % 32) * shape.head_dim;
  const auto store = [](__half* at, float4 four) {
    *reinterpret_cast<uint2*>(at) = {bits(__floats2half2_rn(four.x, four.y)),
                                     bits(__floats2half2_rn(four.z, four.w))};
  };
  store(to + first, y.first);
  store(to + second, y.second);
}

__device__ float swish(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

__global__ void __launch_bounds__(kThreads)
    prompt_mlp_input_kernel(const float* products, const float* factors, const float* bias,
                            int first_strip, int count, float* mlp, int ffn) {
  const int pair = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  if (pair >= 2 * count) return;
  const FourPairs y(pair, row, products, factors, bias, first_strip, count);
  const int output = y.strip * 8 + y.g;
  if (output >= ffn) return;  // ffn is a multiple of 4: it is the inputs of the next linear
  const float4 gate = y.first, up = y.second;
  *reinterpret_cast<float4*>(mlp + std::size_t(row) * ffn + output) = {
      swish(gate.x, up.x), swish(gate.y, up.y), swish(gate.z, up.z), swish(gate.w, up.w)};
}

/// One output a thread: added to the residual, or stored.
template <bool kAdd>
__global__ void __launch_bounds__(kThreads)
    prompt_output_kernel(const float* products, const float* factors, const float* bias,
                         int first_strip, int count, float* out, int outputs) {
  const int column = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  const int output = first_strip * kStripOutputs + column;
  if (column >= count * kStripOutputs || output >= outputs) return;
  float y = products[std::size_t(row) * count * kStripOutputs + column] * factors[row];
  if (bias != nullptr) y += bias[output];
  float* to = out + std::size_t(row) * outputs + output;
  *to = kAdd ? *to + y : y;
}

dim3 grid(int threads_a_row, int rows) {
  return dim3(unsigned((threads_a_row + kThreads - 1) / kThreads), unsigned(rows));
}

}  // namespace

void prompt_input(const float* input, const float* norm, float epsilon,
                  const StreamedWeight& weight, int rows, __half* out, float* factors,
                  cudaStream_t stream) {
  launch_kernel(prompt_input_kernel, dim3(unsigned(rows)), kThreads, 0, kPlain, stream, input, norm,
                epsilon, weight.order, weight.inputs, weight.strip_blocks * kBlockInputs, out,
                factors);
}

void dequantise(const StreamedWeight& weight, int first, int count, __half* panel,
                cudaStream_t stream) {
  const auto launch = [&]<WeightKind kKind, typename Scale>() {
    const int blocks = count * weight.strip_blocks;
    launch_kernel(dequantise_kernel<kKind, Scale>, dim3(unsigned((blocks + kWarps - 1) / kWarps)),
                  kThreads, 0, kPlain, stream, weight, first, count, panel);
  };
  switch (weight.kind) {
    case WeightKind::nibble:
      return weight.float_scales ? launch.template operator()<WeightKind::nibble, float>()
                                 : launch.template operator()<WeightKind::nibble, __half>();
    case WeightKind::byte:
      return weight.float_scales ? launch.template operator()<WeightKind::byte, float>()
                                 : launch.template operator()<WeightKind::byte, __half>();
    case WeightKind::half:
      return launch.template operator()<WeightKind::half, __half>();
    case WeightKind::bfloat:
      return launch.template operator()<WeightKind::bfloat, __half>();
    case WeightKind::single:
      return launch.template operator()<WeightKind::single, __half>();
  }
}

void prompt_attention_input(const float* products, const float* factors, const float* bias,
                            int first, int count, int rows, const AttentionInput& out,
                            cudaStream_t stream) {
  launch_kernel(prompt_attention_input_kernel, grid(2 * count, rows), kThreads, 0, kPlain, stream,
                products, factors, bias, first, count, out);
}

void prompt_mlp_input(const float* products, const float* factors, const float* bias, int first,
                      int count, int rows, float* mlp, int ffn, cudaStream_t stream) {
  launch_kernel(prompt_mlp_input_kernel, grid(2 * count, rows), kThreads, 0, kPlain, stream,
                products, factors, bias, first, count, mlp, ffn);
}

void prompt_residual(const float* products, const float* factors, const float* bias, int first,
                     int count, int rows, float* residual, int hidden, cudaStream_t stream) {
  launch_kernel(prompt_output_kernel<true>, grid(count * kStripOutputs, rows), kThreads, 0, kPlain,
                stream, products, factors, bias, first, count, residual, hidden);
}

void prompt_logits(const float* products, const float* factors, const float* bias, int first,
                   int count, int rows, float* logits, int vocab, cudaStream_t stream) {
  launch_kernel(prompt_output_kernel<false>, grid(count * kStripOutputs, rows), kThreads, 0, kPlain,
                stream, products, factors, bias, first, count, logits, vocab);
}

}  // namespace guanaco::cuda
