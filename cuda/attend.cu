// Stage 3 for few rows: attended = softmax(q K^T / sqrt(d)) V over the pages of each row's
// sequence. Bound by reading K and V once.
//
// A sequence is cut into chunks of 128 positions, whatever else is in the pass, and a thread block
// takes one (row, head, chunk) at a time: each of its four warps has one page of 32 positions,
// loads all of the page's K and V before it needs any, and keeps its own softmax; the four are
// joined in order. The last thread block to finish a (row, head) joins its chunks in order
// (arXiv:1805.02867 for the running softmax).

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kPage = 32;
constexpr int kWarps = kChunkTokens / kPage;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostDim = 256;

__device__ void unpack(const uint4& packed, float (&values)[8]) {
  const auto* pairs = reinterpret_cast<const __half2*>(&packed);
  for (int i = 0; i < 4; ++i) {
    const float2 two = __half22float2(pairs[i]);
    values[2 * i] = two.x;
    values[2 * i + 1] = two.y;
  }
}

/// kDim: head_dim rounded up to a multiple of 64, so that loads have static counts.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    attend_kernel(const float* query, AttentionShape shape, int layer, PassRows rows,
                  AttendScratch scratch, float* attended) {
  constexpr int kPieces = kDim / 64;            // 16-byte pieces of a K row for each of 8 lanes
  constexpr int kColumns = (kDim + 127) / 128;  // 16-byte pieces of a V row for each of 16 lanes
  __shared__ float q[kDim];
  __shared__ float weights[kWarps][kPage];
  __shared__ float outputs[kWarps][kDim];
  __shared__ float largest_of[kWarps], sum_of[kWarps];
  __shared__ bool last;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, dim = shape.head_dim;
  launch_dependents();
  wait_for_predecessors();

  const int group = shape.heads / shape.kv_heads;
  const int count = *rows.count;
  int total = 0;
  for (int row = 0; row < count; ++row)
    total += (rows.positions[row] / kChunkTokens + 1) * shape.heads;
  for (int unit = blockIdx.x; unit < total; unit += gridDim.x) {
    int row = 0, rest = unit, chunks = 0, position = 0;
    for (;; ++row) {
      position = rows.positions[row];
      chunks = position / kChunkTokens + 1;
      if (rest < chunks * shape.heads) break;
      rest -= chunks * shape.heads;
    }
    // Heads that share K and V are neighbours, so that L2 serves all but the first.
    const int kv_head = rest / (chunks * group), chunk = (rest / group) % chunks;
    const int head = kv_head * group + rest % group;
    const std::size_t row_head = std::size_t(row) * shape.heads + head;

    __syncthreads();                                        // the shared arrays are free again
    const float factor = rsqrtf(float(dim)) * 1.44269504f;  // exp(x) = exp2(x * log2 e)
    for (int i = threadIdx.x; i < kDim; i += kThreads)
      q[i] = i < dim ? query[row_head * dim + i] * factor : 0.0f;
    __syncthreads();

    const int first = chunk * kChunkTokens + warp * kPage;
    float largest = -INFINITY, sum = 0;
    float out[kColumns][8] = {};
    if (first <= position) {
      const __half* page = rows.tables[row][first / kPage] + layer * shape.layer_elements();
      const auto* keys = reinterpret_cast<const uint4*>(page + std::size_t(kv_head) * kPage * dim);
      const auto* values = reinterpret_cast<const uint4*>(
          page + std::size_t(shape.kv_heads + kv_head) * kPage * dim);
      const int row_pieces = dim / 8;
      // Lane (s, p) = (lane / 8, lane % 8) takes pieces p, p + 8, ... of keys s, s + 4, ...
      uint4 key[8][kPieces];
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < kPieces; ++j) {
          const int piece = lane % 8 + 8 * j;
          key[i][j] = piece < row_pieces ? keys[(i * 4 + lane / 8) * row_pieces + piece]
                                         : uint4{0, 0, 0, 0};
        }
      // Lane (s, p) = (lane / 16, lane % 16) takes pieces p, p + 16 of values s, s + 2, ...
      uint4 value[16][kColumns];
#pragma unroll
      for (int i = 0; i < 16; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int piece = lane % 16 + 16 * j;
          value[i][j] = piece < row_pieces ? values[(i * 2 + lane / 16) * row_pieces + piece]
                                           : uint4{0, 0, 0, 0};
        }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float score = 0;
#pragma unroll
        for (int j = 0; j < kPieces; ++j) {
          float k[8];
          unpack(key[i][j], k);
          const float* part = q + (lane % 8 + 8 * j) * 8;
          for (int e = 0; e < 8; ++e) score += k[e] * part[e];
        }
        score = warp_sum(score, 8);
        if (lane % 8 == 0) weights[warp][i * 4 + lane / 8] = score;
      }
      __syncwarp();
      const float score = first + lane <= position ? weights[warp][lane] : -INFINITY;
      largest = warp_max(score);
      const float weight = exp2f(score - largest);
      sum = warp_sum(weight);
      __syncwarp();
      weights[warp][lane] = weight;
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int token = i * 2 + lane / 16;
        const float p = weights[warp][token];
        const bool inside = first + token <= position;  // what lies behind may be anything, NaN too
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float v[8];
          unpack(value[i][j], v);
          for (int e = 0; e < 8; ++e) out[j][e] += inside ? p * v[e] : 0.0f;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      for (int e = 0; e < 8; ++e) {
        const float both = out[j][e] + __shfl_xor_sync(~0u, out[j][e], 16);
        const int d = (lane % 16 + 16 * j) * 8 + e;
        if (lane < 16 && d < kDim) outputs[warp][d] = both;
      }
    if (lane == 0) {
      largest_of[warp] = largest;
      sum_of[warp] = sum;
    }
    __syncthreads();

    float most = largest_of[0];  // page 0 of a chunk always has a position
    for (int w = 1; w < kWarps; ++w) most = fmaxf(most, largest_of[w]);
    float all = 0, shares[kWarps];
    for (int w = 0; w < kWarps; ++w) {
      shares[w] = exp2f(largest_of[w] - most);
      all += sum_of[w] * shares[w];
    }
    float* partial = scratch.partial + (row_head * scratch.chunks + chunk) * (dim + 2);
    for (int d = threadIdx.x; d < dim; d += kThreads) {
      float joined = 0;
      for (int w = 0; w < kWarps; ++w) joined += outputs[w][d] * shares[w];
      if (chunks == 1) {
        attended[row_head * dim + d] = joined / all;
      } else {
        partial[2 + d] = joined;
      }
    }
    if (chunks == 1) continue;
    if (threadIdx.x == 0) {
      partial[0] = most;
      partial[1] = all;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(scratch.arrived + row_head, 1u) == unsigned(chunks) - 1;
    __syncthreads();
    if (!last) continue;
    __threadfence();
    const float* parts = scratch.partial + row_head * scratch.chunks * (dim + 2);
    float top = -INFINITY;
    for (int c = 0; c < chunks; ++c) top = fmaxf(top, __ldcg(parts + c * (dim + 2)));
    float weight = 0;
    for (int c = 0; c < chunks; ++c)
      weight += __ldcg(parts + c * (dim + 2) + 1) * exp2f(__ldcg(parts + c * (dim + 2)) - top);
    for (int d = threadIdx.x; d < dim; d += kThreads) {
      float joined = 0;
      for (int c = 0; c < chunks; ++c)
        joined +=
            __ldcg(parts + c * (dim + 2) + 2 + d) * exp2f(__ldcg(parts + c * (dim + 2)) - top);
      attended[row_head * dim + d] = joined / weight;
    }
    if (threadIdx.x == 0) scratch.arrived[row_head] = 0;
  }
}

}  // namespace

void attend(const float* query, const AttentionShape& shape, int layer, const PassRows& rows,
            int most_rows, const AttendScratch& scratch, float* attended,
            const DeviceLimits& limits, cudaStream_t stream) {
  const auto launch = [&]<int kDim>() {
    // Enough thread blocks for one row at any depth; more rows share them.
    const int units = most_rows * shape.heads * scratch.chunks;
    launch_kernel(attend_kernel<kDim>, dim3(unsigned(min(units, 2 * limits.multiprocessors))),
                  kThreads, 0, limits, stream, query, shape, layer, rows, scratch, attended);
  };
  if (shape.head_dim <= 64) return launch.template operator()<64>();
  if (shape.head_dim <= 128) return launch.template operator()<128>();
  if (shape.head_dim <= 192) return launch.template operator()<192>();
  return launch.template operator()<kMostDim>();
}

}  // namespace guanaco::cuda
