// Repacking, once, at load: a checkpoint's weights, already in device memory, into the blocks of
// layout.h. Only whole codes, scales and zero points move; nothing is rounded.
//
// Bound by bytes: each is read and written once. Checkpoints have neighbouring outputs side by side
// and blocks have neighbouring inputs, so a thread block turns a tile of 64 outputs and 128 inputs
// round in shared memory: a thread gathers the codes of one output, its warp those of 32
// neighbours. The gather is by input, so act-order costs nothing but more reads of words that are
// in the caches.

#include "cuda_support.h"
#include "device.cuh"
#include "kernels.h"

namespace guanaco::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 64;                                  // outputs a thread block repacks
constexpr int kQuarter = kTileRows * kBlockInputs / kThreads;  // inputs a thread repacks: 32

/// The output of the checkpoint's tensor in a row of a strip of this part; -1: none, or the other
/// part's.
__host__ __device__ int source_output(const StripMap& map, int strip, int row, int outputs) {
  int output = strip * kStripOutputs + row;
  if (map.order == StripOrder::rotary) {
    const int strips = map.head_dim / kStripOutputs;
    output =
        strip / strips * map.head_dim + row / 8 * (map.head_dim / 2) + strip % strips * 8 + row % 8;
  } else if (map.order == StripOrder::gate_up) {
    output = row / 8 == map.half ? strip * 8 + row % 8 : -1;
  }
  return output < outputs ? output : -1;
}

/// Rows of a strip that one part fills, and strips that a part of so many outputs takes.
__host__ __device__ int strip_rows(const StripMap& map) {
  return map.order == StripOrder::gate_up ? kStripOutputs / 2 : kStripOutputs;
}
int strips_of(const StripMap& map, int outputs) {
  return (outputs + strip_rows(map) - 1) / strip_rows(map);
}

/// Code of input k, output n. Codes run down the inputs (reference/formats.md 1.3).
template <int kBits>
__device__ std::uint32_t load_code(const GptqSource& source, int k, int n) {
  const int bit = k * kBits, shift = bit % 32;
  const std::uint32_t* word = source.qweight + std::size_t(bit / 32) * source.outputs + n;
  std::uint32_t value = *word >> shift;
  if constexpr (kBits == 3)
    if (shift > 32 - kBits) value |= word[source.outputs] << (32 - shift);
  return value & ((1u << kBits) - 1);
}

/// Zero point of a group and output. v1 files hold it minus one, borrowed through whole words, so
/// ones are added to whole words (reference/formats.md 1.4).
template <int kBits>
__device__ int load_zero(const GptqSource& source, int group, int n) {
  constexpr int kRunCodes = kBits == 3 ? 32 : 32 / kBits, kRunWords = kBits == 3 ? 3 : 1;
  const std::size_t row_words = std::size_t(source.outputs / kRunCodes) * kRunWords;
  const std::uint32_t* words =
      source.qzeros + group * row_words + std::size_t(n / kRunCodes) * kRunWords;
  const int bit = n % kRunCodes * kBits;
  if constexpr (kBits == 3) {
    constexpr std::uint32_t kOnes[3] = {0x49249249u, 0x92492492u, 0x24924924u};
    std::uint32_t run[4] = {words[0], words[1], words[2], 0};
    if (source.v1) {
      std::uint64_t carry = 0;
      for (int i = 0; i < 3; ++i) {
        const std::uint64_t sum = std::uint64_t(run[i]) + kOnes[i] + carry;
        run[i] = std::uint32_t(sum);
        carry = sum >> 32;
      }
    }
    const std::uint32_t low = bit < 32 ? run[0] : bit < 64 ? run[1] : run[2];
    const std::uint32_t high = bit < 32 ? run[1] : bit < 64 ? run[2] : run[3];
    return int(__funnelshift_r(low, high, bit % 32) & 7u);
  } else {
    constexpr std::uint32_t kMask = (1u << kBits) - 1, kOnes = 0xffffffffu / kMask;
    const std::uint32_t word = *words + (source.v1 ? kOnes : 0);
    return int((word >> bit) & kMask);
  }
}

__device__ int load_group(const GptqSource& source, int k) {
  return source.group != nullptr ? source.group[k] : k / source.group_size;
}

__device__ float load_scale(const GptqSource& source, int group, int n) {
  const float scale =
      load_float(source.scales, source.scale_type, std::size_t(group) * source.outputs + n);
  if (!isfinite(scale))
    atomicMin(source.bad, BadScale(source.number) << 32 | __float_as_uint(scale));
  return scale;
}

/// Grid: [blocks of a strip][tiles of outputs]. blocks: those of the part's first strip.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    gptq_kernel(const GptqSource source, const StripMap map, const int* order,
                const StreamedWeight weight, std::uint8_t* blocks, int part_strips) {
  constexpr WeightKind kKind = kBits == 8 ? WeightKind::byte : WeightKind::nibble;
  constexpr int kWords = element_bytes(kKind) / 4;
  __shared__ __align__(16)
      std::uint32_t image[2 * kTileRows / kStripOutputs * kWords];  // elements of the tile's strips
  const int rows = strip_rows(map), tile_strips = kTileRows / rows,
            first_strip = blockIdx.y * tile_strips;
  const int column = threadIdx.x % kTileRows, quarter = threadIdx.x / kTileRows;
  const int strip = column / rows, row = column % rows + (rows < kStripOutputs ? 8 * map.half : 0);
  const int g = row % 8, r = row / 8;
  const int output = source_output(map, first_strip + strip, row, source.outputs);
  const auto address = [&](int s) {
    return blocks +
           (std::size_t(first_strip + s) * weight.strip_blocks + blockIdx.x) * weight.block_bytes;
  };
  const int position = blockIdx.x * kBlockInputs + quarter * kQuarter;
  const auto input = [&](int p) {
    return order != nullptr ? order[p] : p < source.inputs ? p : -1;
  };

#pragma unroll
  for (int t = 0; t < 4; ++t) {
    std::uint32_t code[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = input(position + i / 4 * 16 + 4 * t + i % 4);
      code[i / 4][i % 4] = k < 0 || output < 0 ? 0 : load_code<kBits>(source, k, output);
    }
    std::uint32_t word[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) word[i / 4] |= code[i / 4][i % 4] << (8 * (i % 4));
    std::uint32_t* to = image + strip * kWords;
    if constexpr (kKind == WeightKind::nibble) {
      to[((quarter * 8 + g) * 4 + t) * 2 + r] = word[0] | word[1] << 4;
    } else {
      to[((quarter * 8 + g) * 4 + t) * 4 + r] = word[0];
      to[((quarter * 8 + g) * 4 + t) * 4 + 2 + r] = word[1];
    }
  }

  const int run_quarters = 4 / weight.runs;
  if (quarter % run_quarters == 0) {  // the same for a whole warp
    const int run = quarter / run_quarters;
    int group = -1;  // that of the first position of the run that has an input
    for (int i = 0; i < run_quarters * kQuarter && group < 0; ++i) {
      const int k = input(position + i);
      if (k >= 0) group = load_group(source, k);
    }
    float scale = 0;
    int zero = 0;
    if (group >= 0 && output >= 0) {
      scale = load_scale(source, group, output);
      zero = load_zero<kBits>(source, group, output);
    }
    std::uint32_t zeros = std::uint32_t(zero) << (4 * g);  // of the eight rows that share a word
    for (int lane = 1; lane < 8; lane *= 2) zeros |= __shfl_xor_sync(~0u, zeros, lane);
    if (first_strip + strip < part_strips) {
      std::uint8_t* scales = address(strip) + element_bytes(kKind);
      std::uint8_t* after = scales + weight.runs * kStripOutputs * (weight.float_scales ? 4 : 2);
      const int at = run * kStripOutputs + 2 * g + r;
      if (weight.float_scales) {
        reinterpret_cast<float*>(scales)[at] = scale;
      } else {
        reinterpret_cast<__half*>(scales)[at] = __float2half_rn(scale);
      }
      const int zero_bytes = kKind == WeightKind::nibble ? 8 : 16;
      if constexpr (kKind == WeightKind::nibble) {
        if (g == 0) reinterpret_cast<std::uint32_t*>(after)[run * 2 + r] = zeros;
      } else {
        after[run * 16 + row] = std::uint8_t(zero);
      }
      if (run == 0 && g == 0)
        for (std::uint8_t* pad = after + weight.runs * zero_bytes;
             pad < address(strip) + weight.block_bytes; ++pad)
          *pad = 0;
    }
  }

  __syncthreads();
  for (int i = threadIdx.x; i < tile_strips * kWords / 2; i += kThreads) {
    const int s = i / (kWords / 2), pair = i % (kWords / 2);  // words of rows g and g + 8
    if (first_strip + s >= part_strips) break;
    const std::uint32_t* from = image + 2 * i;
    auto* to = reinterpret_cast<std::uint32_t*>(address(s)) + 2 * pair;
    if (rows == kStripOutputs) {
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
    } else {
      to[map.half] = from[map.half];
    }
  }
}

/// Grid: [blocks of a strip][strips]. A thread: one row, eight inputs.
template <int kBits>
__global__ void __launch_bounds__(kThreads)
    gptq_single_kernel(const GptqSource source, const StripMap map, const StreamedWeight weight,
                       std::uint8_t* blocks) {
  const int strip = blockIdx.y, row = threadIdx.x % kStripOutputs;
  if (map.order == StripOrder::gate_up && row / 8 != map.half) return;
  const int inside = threadIdx.x / kStripOutputs * 8, first = blockIdx.x * kBlockInputs + inside;
  const int output = source_output(map, strip, row, source.outputs);
  float value[8] = {};
  for (int i = 0; i < 8 && output >= 0 && first + i < source.inputs; ++i) {
    const int group = load_group(source, first + i);
    value[i] =
        load_scale(source, group, output) * float(int(load_code<kBits>(source, first + i, output)) -
                                                  load_zero<kBits>(source, group, output));
  }
  auto* to =
      reinterpret_cast<float4*>(blocks + (std::size_t(strip) * weight.strip_blocks + blockIdx.x) *
                                             weight.block_bytes) +
      (row * kBlockInputs + inside) / 4;
  to[0] = {value[0], value[1], value[2], value[3]};
  to[1] = {value[4], value[5], value[6], value[7]};
}

/// Rows [first_row, end_row) of a weight [outputs, inputs].
struct DenseRows {
  const void* values;
  int type, first_row, end_row;
};

/// Grid: [blocks of a strip][strips]. A thread: the 16 bytes of one lane in one chunk, or those of
/// them whose rows there are.
__global__ void __launch_bounds__(kThreads)
    dense_kernel(const DenseRows source, const StripMap map, const StreamedWeight weight,
                 std::uint8_t* blocks, int first_strip) {
  const int strip = first_strip + blockIdx.y, chunk = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto* values = static_cast<const std::uint16_t*>(source.values);
  std::uint32_t word[4] = {};
  bool mine[4];
  for (int i = 0; i < 4; ++i) {
    const int output = source_output(map, strip, lane / 4 + i % 2 * 8, source.end_row);
    const int input = blockIdx.x * kBlockInputs + chunk * 16 + i / 2 * 8 + lane % 4 * 2;
    mine[i] = output >= source.first_row;
    if (mine[i] && input < weight.inputs)
      word[i] = *reinterpret_cast<const std::uint32_t*>(
          values + std::size_t(output - source.first_row) * weight.inputs + input);
  }
  auto* to =
      reinterpret_cast<std::uint32_t*>(
          blocks + (std::size_t(strip) * weight.strip_blocks + blockIdx.x) * weight.block_bytes) +
      threadIdx.x * 4;
  if (mine[0] && mine[1]) {
    *reinterpret_cast<uint4*>(to) = {word[0], word[1], word[2], word[3]};
  } else {
    for (int i = 0; i < 4; ++i)
      if (mine[i]) to[i] = word[i];
  }
}

/// Grid: [blocks of a strip][strips]. A thread: one row, eight inputs.
__global__ void __launch_bounds__(kThreads)
    dense_single_kernel(const DenseRows source, const StripMap map, const StreamedWeight weight,
                        std::uint8_t* blocks, int first_strip) {
  const int strip = first_strip + blockIdx.y, row = threadIdx.x / 16, inside = threadIdx.x % 16 * 8;
  const int output = source_output(map, strip, row, source.end_row);
  if (output < source.first_row) return;
  const std::size_t from = std::size_t(output - source.first_row) * weight.inputs;
  auto* to =
      reinterpret_cast<float*>(blocks + (std::size_t(strip) * weight.strip_blocks + blockIdx.x) *
                                            weight.block_bytes) +
      row * kBlockInputs + inside;
  for (int i = 0; i < 8; ++i) {
    const int input = blockIdx.x * kBlockInputs + inside + i;
    to[i] = input < weight.inputs ? load_float(source.values, source.type, from + input) : 0.0f;
  }
}

std::uint8_t* part_blocks(const StripMap& map, const StreamedWeight& weight) {
  return const_cast<std::uint8_t*>(weight.blocks) +
         std::size_t(map.first_strip) * weight.strip_blocks * weight.block_bytes;
}

}  // namespace

void repack_gptq(const GptqSource& source, const StripMap& map, const int* order,
                 StreamedWeight weight, cudaStream_t stream) {
  const int strips = strips_of(map, source.outputs), tile_strips = kTileRows / strip_rows(map);
  const dim3 grid(unsigned(weight.strip_blocks),
                  unsigned((strips + tile_strips - 1) / tile_strips));
  const auto kernel = source.bits == 2   ? gptq_kernel<2>
                      : source.bits == 3 ? gptq_kernel<3>
                      : source.bits == 4 ? gptq_kernel<4>
                                         : gptq_kernel<8>;
  kernel<<<grid, kThreads, 0, stream>>>(source, map, order, weight, part_blocks(map, weight),
                                        strips);
  check(cudaGetLastError(), "repack_gptq");
}

void repack_gptq_single(const GptqSource& source, const StripMap& map, StreamedWeight weight,
                        cudaStream_t stream) {
  const dim3 grid(unsigned(weight.strip_blocks), unsigned(strips_of(map, source.outputs)));
  const auto kernel = source.bits == 2   ? gptq_single_kernel<2>
                      : source.bits == 3 ? gptq_single_kernel<3>
                      : source.bits == 4 ? gptq_single_kernel<4>
                                         : gptq_single_kernel<8>;
  kernel<<<grid, kThreads, 0, stream>>>(source, map, weight, part_blocks(map, weight));
  check(cudaGetLastError(), "repack_gptq_single");
}

void repack_dense(const void* rows_of_weight, int type, int first_row, int rows,
                  const StripMap& map, StreamedWeight weight, cudaStream_t stream) {
  const DenseRows source{rows_of_weight, type, first_row, first_row + rows};
  // Strips that hold any of the rows: a rotary head is spread over all of its strips.
  const int unit = map.order == StripOrder::rotary ? map.head_dim : strip_rows(map);
  const int unit_strips = unit / strip_rows(map);
  const int first = first_row / unit * unit_strips,
            end = ((first_row + rows - 1) / unit + 1) * unit_strips;
  const dim3 grid(unsigned(weight.strip_blocks), unsigned(end - first));
  const auto kernel = weight.kind == WeightKind::single ? dense_single_kernel : dense_kernel;
  kernel<<<grid, kThreads, 0, stream>>>(source, map, weight, part_blocks(map, weight), first);
  check(cudaGetLastError(), "repack_dense");
}

}  // namespace guanaco::cuda
