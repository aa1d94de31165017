// Stage 3 for many rows: attended = softmax(q K^T / sqrt(d)) V, causal, over the pages of each
// segment's sequence. Bound by tensor cores: 4 * positions * head_dim FLOP for each row and head.
// After FlashAttention-2 (arXiv:2307.08691).
//
// A thread block has one head and 64 or 128 rows of a segment, 16 or 32 for each of its four warps.
// K and V come in tiles of 64 positions (two pages), the next tile while the present one is used.
// Scores, running softmax and outputs stay in registers: the accumulators of q K^T are, rounded to
// fp16, the left operand of the product with V.
//
// A row's query is rounded to fp16 once, scaled by a power of two of its own; the rest of its scale
// is applied to the fp32 scores. Tiles begin at multiples of 64 whatever the segment, and what a
// row may not see adds exactly nothing: a row's result does not depend on how a prompt is cut into
// passes, nor on the rows a block has.

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kPage = 32;  // positions
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

/// kDim: head_dim padded by zeros. kRowTiles: of 16 rows, in each warp.
template <int kDim, int kRowTiles>
struct Tiling {
  static constexpr int kRows = kWarps * 16 * kRowTiles;
  static constexpr int kKeys = kDim > 128 ? 32 : 64;
  /// Halves from row to row in shared memory: 16 bytes more than a row, so that 8 rows of a matrix
  /// lie in different banks. The 16 bytes behind a query hold the scale of its scores.
  static constexpr int kStride = kDim + 8;
  static constexpr int kTile = kKeys * kStride;
  static constexpr int kSharedBytes = (kRows * kStride + 2 * 2 * kTile) * int(sizeof(__half));
};

/// 16 bytes to shared memory; zeros if not `inside`, and then `from` is not read.
__device__ void copy_piece(__half* to, const __half* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

__device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Four 8 x 8 matrices of halves; lane l gives the address of row l % 8 of matrix l / 8, and gets
/// two neighbours of row l / 4 of each (transposed: of column l / 4).
__device__ void load_matrices(std::uint32_t (&words)[4], const __half* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ void load_matrices_transposed(std::uint32_t (&words)[4], const __half* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

/// 2^x by the special function unit, relative error 2^-22; 0 for minus infinity.
__device__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ std::uint32_t halves(float x, float y) {
  __half2 two = __floats2half2_rn(x, y);
  return *reinterpret_cast<std::uint32_t*>(&two);
}

/// Where a thread block's keys and values are.
template <int kDim, int kRowTiles>
struct KeyValueTiles {
  using T = Tiling<kDim, kRowTiles>;
  static constexpr int kPages = T::kKeys / kPage;
  static constexpr int kPieces = kDim / 8;  // 16-byte pieces of a padded row
  static constexpr int kStepRows =
      kThreads / kPieces;  // rows that one step of the thread block copies

  __half* const* table;
  std::size_t key_offset, value_offset;  ///< from a page to this layer's and head's K and V
  int head_dim, key_end;                 ///< positions from key_end on are read as zeros
  const __half* pages[kPages];           ///< of the next tile to copy: fetched one tile ahead

  __device__ void fetch_pages(int tile) {
    for (int p = 0; p < kPages; ++p) {
      const int page = tile * kPages + p;
      if (page * kPage < key_end) pages[p] = table[page];
    }
  }
  /// Starts copying `tile`, whose pages have been fetched.
  __device__ void copy(int tile, __half* keys, __half* values) const {
    const int piece = threadIdx.x % kPieces, first = threadIdx.x / kPieces;
#pragma unroll
    for (int row = 0; row < T::kKeys; row += kStepRows) {
      const int r = row + first;
      const bool inside = tile * T::kKeys + r < key_end && piece * 8 < head_dim;
      const __half* from =
          inside ? pages[row / kPage] + std::size_t(r % kPage) * head_dim + piece * 8 : pages[0];
      copy_piece(keys + r * T::kStride + piece * 8, from + key_offset, inside);
      copy_piece(values + r * T::kStride + piece * 8, from + value_offset, inside);
    }
  }
};

/// Rounds a warp's queries to fp16 into shared memory, with the scale of their scores behind them
/// (see Tiling).
template <int kDim, int kRowTiles>
__device__ void stage_queries(const float* query, std::size_t row_floats, int valid, int head_dim,
                              int lane, __half* staged) {
  constexpr int kStride = Tiling<kDim, kRowTiles>::kStride;
  constexpr int kFours = (kDim + 127) / 128;
  const float base = rsqrtf(float(head_dim)) * 1.44269504f;  // exp(x) = exp2(x * log2 e)
#pragma unroll 4
  for (int row = 0; row < 16 * kRowTiles; ++row) {
    float4 four[kFours];
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int d = 4 * (lane + kWarp * i);
      four[i] = row < valid && d < head_dim
                    ? *reinterpret_cast<const float4*>(query + row * row_floats + d)
                    : float4{0, 0, 0, 0};
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(four[i].x), fabsf(four[i].y)),
                                     fmaxf(fabsf(four[i].z), fabsf(four[i].w))));
    }
    largest = warp_max(largest);
    int exponent = 8;
    if (largest > 0) frexpf(largest, &exponent);
    exponent = max(exponent, -100);
    const float scale = ldexpf(1.0f, 8 - exponent);  // the largest magnitude lands in [128, 256)
    __half* to = staged + row * kStride;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int d = 4 * (lane + kWarp * i);
      if (d < kDim)
        *reinterpret_cast<uint2*>(to + d) = {halves(four[i].x * scale, four[i].y * scale),
                                             halves(four[i].z * scale, four[i].w * scale)};
    }
    if (lane == 0) *reinterpret_cast<float*>(to + kDim) = ldexpf(base, exponent - 8);
  }
}

template <int kDim, int kRowTiles>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 1 : 2)
    attend_prompt_kernel(const float* query, const AttentionShape shape, int layer,
                         __half* const* const* tables, const int4* segments, float* attended) {
  using T = Tiling<kDim, kRowTiles>;
  constexpr int kWarpRows = 16 * kRowTiles;
  extern __shared__ __align__(16) __half memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int4 segment = segments[blockIdx.z];  // first row, rows, first position
  const int tile_row =
      int(gridDim.y - 1 - blockIdx.y) * T::kRows;  // the rows with most to see first
  if (tile_row >= segment.y) return;
  const int head = blockIdx.x, kv_head = head / (shape.heads / shape.kv_heads),
            dim = shape.head_dim;
  const int warp_row = tile_row + warp * kWarpRows;  // in the segment
  const int valid = min(kWarpRows, segment.y - warp_row);
  const int warp_position = segment.z + warp_row;

  __half* queries = memory + warp * kWarpRows * T::kStride;
  const auto keys = [&](int tile) {
    return memory + T::kRows * T::kStride + tile % 2 * 2 * T::kTile;
  };
  const auto values = [&](int tile) { return keys(tile) + T::kTile; };

  KeyValueTiles<kDim, kRowTiles> source;
  source.table = tables[segment.x];
  source.key_offset = layer * shape.layer_elements() + std::size_t(kv_head) * kPage * dim;
  source.value_offset = source.key_offset + std::size_t(shape.kv_heads) * kPage * dim;
  source.head_dim = dim;
  source.key_end = segment.z + min(tile_row + T::kRows, segment.y);
  const int tiles = (source.key_end + T::kKeys - 1) / T::kKeys;
  source.fetch_pages(0);
  source.copy(0, keys(0), values(0));
  source.fetch_pages(1);

  const std::size_t row_floats = std::size_t(shape.heads) * dim;
  const std::size_t origin =
      std::size_t(segment.x + warp_row) * row_floats + std::size_t(head) * dim;
  stage_queries<kDim, kRowTiles>(query + origin, row_floats, valid, dim, lane, queries);
  __syncwarp();

  float out[kRowTiles][kDim / 8][4] = {};
  float largest[kRowTiles][2], total[kRowTiles][2], factor[kRowTiles][2];  // rows g and g + 8
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[i][r] = -INFINITY;
      total[i][r] = 0;
      factor[i][r] =
          *reinterpret_cast<const float*>(queries + (16 * i + 8 * r + g) * T::kStride + kDim);
    }

  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies();
    __syncthreads();  // the tile is here for all, and all are done with the one before
    if (tile + 1 < tiles) {
      source.copy(tile + 1, keys(tile + 1), values(tile + 1));
      source.fetch_pages(tile + 2);
    }
    const int key = tile * T::kKeys;
    if (valid <= 0 || key >= warp_position + valid) continue;  // none of the warp's rows sees it

    // Scores: element (n, 2r + c) is row g + 8r, position 8n + 2t + c.
    float score[kRowTiles][T::kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
        load_matrices(a[i], queries + (16 * i + lane % 16) * T::kStride + 16 * k + lane / 16 * 8);
#pragma unroll
      for (int n = 0; n < T::kKeys / 16; ++n) {
        std::uint32_t b[4];
        load_matrices(b, keys(tile) + (16 * n + lane / 16 * 8 + lane % 8) * T::kStride + 16 * k +
                             lane / 8 % 2 * 8);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          mma_half(score[i][2 * n], a[i], b[0], b[1]);
          mma_half(score[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }

    const bool masked = key + T::kKeys - 1 > warp_position;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int seen =
            warp_position + 16 * i + 8 * r + g - key - 2 * t;  // the last position, counted from 2t
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < T::kKeys / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = score[i][n][2 * r + c];
            if (masked && 8 * n + c > seen) x = -INFINITY;
            most = fmaxf(most, x);
          }
        most = fmaxf(largest[i][r], warp_max(most, 4) * factor[i][r]);
        const float shrink = power_of_two(largest[i][r] - most);
        largest[i][r] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < T::kKeys / 8; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = score[i][n][2 * r + c];
            x = power_of_two(fmaf(x, factor[i][r], -most));
            sum += x;
          }
        total[i][r] = total[i][r] * shrink + sum;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          out[i][n][2 * r] *= shrink;
          out[i][n][2 * r + 1] *= shrink;
        }
      }

#pragma unroll
    for (int k = 0; k < T::kKeys / 16; ++k) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float(&from)[4] = score[i][2 * k + w / 2];
          a[i][w] = halves(from[w % 2 * 2], from[w % 2 * 2 + 1]);
        }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        std::uint32_t b[4];
        load_matrices_transposed(
            b, values(tile) + (16 * k + lane % 16) * T::kStride + 16 * n + lane / 16 * 8);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          mma_half(out[i][2 * n], a[i], b[0], b[1]);
          mma_half(out[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = 1.0f / warp_sum(total[i][r], 4);
      const int row = 16 * i + 8 * r + g;
      if (row >= valid) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        if (8 * n < dim)
          *reinterpret_cast<float2*>(attended + origin + row * row_floats + 8 * n + 2 * t) = {
              out[i][n][2 * r] * inverse, out[i][n][2 * r + 1] * inverse};
    }
}

}  // namespace

void attend_prompt(const float* query, const AttentionShape& shape, int layer, const PassRows& rows,
                   const int4* segments, int segment_count, int most_segment_rows, float* attended,
                   const DeviceLimits& limits, cudaStream_t stream) {
  const auto launch = [&]<int kDim, int kRowTiles>() {
    using T = Tiling<kDim, kRowTiles>;
    DeviceLimits plain = limits;
    plain.dependent_launch = false;  // the kernel starts when the one before it has ended
    const dim3 blocks(unsigned(shape.heads),
                      unsigned((most_segment_rows + T::kRows - 1) / T::kRows),
                      unsigned(segment_count));
    launch_kernel(attend_prompt_kernel<kDim, kRowTiles>, blocks, kThreads, T::kSharedBytes, plain,
                  stream, query, shape, layer, rows.tables, segments, attended);
  };
  if (shape.head_dim <= 64) return launch.template operator()<64, 1>();
  if (shape.head_dim > 128) return launch.template operator()<256, 1>();
  // Tiles of 128 rows read K and V half as often, if they are enough to fill the device.
  using Large = Tiling<128, 2>;
  const long long large_tiles =
      (long long)(segment_count)*shape.heads * (most_segment_rows / Large::kRows);
  if (Large::kSharedBytes <= limits.shared_bytes_block && large_tiles >= 2 * limits.multiprocessors)
    return launch.template operator()<128, 2>();
  return launch.template operator()<128, 1>();
}

}  // namespace guanaco::cuda
