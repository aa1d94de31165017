#pragma once

// Stage 3 for few rows: attended = softmax(q K^T / sqrt(d)) V over the positions of each row's
// sequence. Bound by reading K and V once.
//
// A sequence is cut into octets of 8 positions, whatever else is in the pass. The octets of a (row,
// head) are shared by up to `splits` thread blocks and in each by all warps; every warp keeps its
// own running softmax (arXiv:1805.02867), and they are joined in order: warps, then thread blocks.
// K and V of earlier passes come from the pages through the ring. Those of this pass are only being
// computed when the copies start: a warp takes them from the exchanged words and puts them, rounded
// as in the pages, into the copy.

#include "pass_shared.cuh"

namespace guanaco::cuda {

/// A warp's place in shared memory: [dim] its query, later its weighted values, and behind them its
/// largest score and sum of weights.
__device__ inline float* partial_of(float* partials, int warp, int dim) {
  return partials + warp * (dim + 4);
}

/// kDim: head_dim rounded up to 64, 128 or 256.
template <int kTokens, int kDim>
struct AttendStage {
  static constexpr int kPieces = kDim / 32;  ///< 16-byte pieces of a key for each of 4 lanes
  static constexpr int kColumns = (kDim + 127) / 128;  ///< groups of 4 values for each lane

  const PassShared<kTokens>& shared;
  const PassStage& stage;
  float* partials;
  unsigned tag;
  int warp, lane;
  Patience& patience;

  __device__ __forceinline__ const float* row_words(int row, int head) const {
    return stage.input +
           (std::size_t(row) * (shared.args.shape.heads + 2 * shared.args.shape.kv_heads) + head) *
               shared.args.shape.head_dim;
  }

  /// Puts the keys or values of this pass's rows into an octet's copy.
  __device__ __forceinline__ void patch(std::uint8_t* slot, const RowPlan& row, int octet, int head,
                                        unsigned parity) const {
    const int dim = shared.args.shape.head_dim;
    const int from = max(octet * kOctet, row.first_position);
    const int to = min(octet * kOctet + kOctet, row.position + 1);
    for (int position = from; position < to; ++position) {
      const float* words = row_words(row.first_row + position - row.first_position, head);
      for (int first = 0; first < dim; first += 4 * kWarp) {
        const int d = first + 4 * lane;
        const bool wanted = d < dim;
        const float4 value = await(wanted ? load_words(words + d) : uint4{}, words + d, wanted,
                                   parity, patience, lane);
        if (!wanted) continue;
        const __half2 pair[2] = {__floats2half2_rn(value.x, value.y),
                                 __floats2half2_rn(value.z, value.w)};
        *reinterpret_cast<uint2*>(slot + ((position - octet * kOctet) * dim + d) * 2) =
            *reinterpret_cast<const uint2*>(pair);
      }
    }
    fence_copies_after_writes();
    __syncwarp();
  }

  /// A warp's octets of one (row, head); leaves its partial result.
  __device__ __forceinline__ void run_unit(const AttendUnit& unit, Ring& ring) const {
    const AttentionShape& shape = shared.args.shape;
    const RowPlan& row = shared.rows()[unit.row];
    const unsigned parity = shared.parity(stage.input_buffer, stage.input_parity);
    const int dim = shape.head_dim, pieces = dim / 8;
    const int key_head = shape.heads + unit.head / (shape.heads / shape.kv_heads);
    // Lane (s, c) = (lane / 4, lane % 4) takes pieces c, c + 4, ... of key s; those of odd keys in
    // another order, so that eight lanes meet no bank twice.
    const int c = lane % 4, swap = kPieces > 1 ? lane / 4 % 2 : 0;
    const auto piece_of = [&](int j) { return c + 4 * (j ^ swap); };
    const float factor = rsqrtf(float(dim)) * 1.44269504f;  // exp(x) = exp2(x * log2 e)
    float* const partial = partial_of(partials, warp, dim);
    if (unit.begin < unit.end) {
      const float* query = row_words(unit.row, unit.head);
      for (int first = 0; first < dim; first += 4 * kWarp) {
        const int d = first + 4 * lane;
        const bool wanted = d < dim;
        const float4 q = await(wanted ? load_words(query + d) : uint4{}, query + d, wanted, parity,
                               patience, lane);
        if (!wanted) continue;
        *reinterpret_cast<float4*>(partial + d) = {q.x * factor, q.y * factor, q.z * factor,
                                                   q.w * factor};
      }
      __syncwarp();
    }

    float largest = -INFINITY, sum = 0;
    float out[kColumns][4] = {};
#pragma unroll 1
    for (int octet = unit.begin; octet < unit.end; ++octet) {
      const int valid = min(kOctet, row.position + 1 - octet * kOctet);
      const bool fresh = octet * kOctet + valid > row.first_position;
      std::uint8_t* slot = ring.wait();
      if (fresh) patch(slot, row, octet, key_head, parity);
      float score = 0;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        if (piece_of(j) >= pieces) continue;
        const uint4 packed = reinterpret_cast<const uint4*>(slot)[lane / 4 * pieces + piece_of(j)];
        const auto* pairs = reinterpret_cast<const __half2*>(&packed);
        const auto* q = reinterpret_cast<const float4*>(partial + piece_of(j) * 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 four = q[i];
          const float2 low = __half22float2(pairs[2 * i]), high = __half22float2(pairs[2 * i + 1]);
          score += four.x * low.x + four.y * low.y + four.z * high.x + four.w * high.y;
        }
      }
      ring.release();
      score += __shfl_xor_sync(~0u, score, 1);
      score += __shfl_xor_sync(~0u, score, 2);
      if (lane / 4 >= valid) score = -INFINITY;
      float most = score;
      for (int offset = 4; offset < kWarp; offset *= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
      most = fmaxf(most, largest);
      const float shrink = exp2f(largest - most), weight = exp2f(score - most);
      largest = most;
      sum = sum * shrink + weight;
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        for (int e = 0; e < 4; ++e) out[j][e] *= shrink;

      slot = ring.wait();
      if (fresh) patch(slot, row, octet, key_head + shape.kv_heads, parity);
#pragma unroll
      for (int s = 0; s < kOctet; ++s) {
        const float p = __shfl_sync(~0u, weight, 4 * s);
        if (s >= valid) continue;  // what lies there may be anything, NaN too
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int d = 4 * (lane + kWarp * j);
          if (d >= dim) continue;
          const uint2 packed = *reinterpret_cast<const uint2*>(slot + (s * dim + d) * 2);
          const float2 low = __half22float2(reinterpret_cast<const __half2&>(packed.x));
          const float2 high = __half22float2(reinterpret_cast<const __half2&>(packed.y));
          out[j][0] += p * low.x;
          out[j][1] += p * low.y;
          out[j][2] += p * high.x;
          out[j][3] += p * high.y;
        }
      }
      ring.release();
    }
    for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    __syncwarp();  // the query has been read
    if (lane == 0) {
      partial[dim] = largest;
      partial[dim + 1] = sum;
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      for (int e = 0; e < 4; ++e)
        if (const int d = 4 * (lane + kWarp * j) + e; d < dim) partial[d] = out[j][e];
  }

  /// Joins what the warps have, and the other thread blocks' parts; each thread one value.
  __device__ __forceinline__ void join(const AttendUnit& unit) const {
    const PassArgs& args = shared.args;
    const int dim = args.shape.head_dim, d = threadIdx.x;
    if (d >= dim) return;
    float most = -INFINITY, sum = 0, value = 0;
    for (int w = 0; w < kPassWarps; ++w) most = fmaxf(most, partial_of(partials, w, dim)[dim]);
    for (int w = 0; w < kPassWarps; ++w) {
      const float* partial = partial_of(partials, w, dim);
      const float share = exp2f(partial[dim] - most);
      sum += partial[dim + 1] * share;
      value += partial[d] * share;
    }
    const auto packets = [&](int split) {
      const std::size_t row_head = std::size_t(unit.row) * args.shape.heads + unit.head;
      return args.split_packets + (row_head * args.splits + split) * (dim + 2);
    };
    if (unit.split > 0) {
      unsigned long long* out = packets(unit.split);
      send(out + 2 + d, value, tag);
      if (d == 0) {
        send(out, most, tag);
        send(out + 1, sum, tag);
      }
      return;
    }
    for (int split = 1; split < unit.splits; ++split) {
      const unsigned long long* from = packets(split);
      const float other = receive(from, tag, patience);
      const float other_sum = receive(from + 1, tag, patience);
      const float other_value = receive(from + 2 + d, tag, patience);
      const float top = fmaxf(most, other);
      const float mine = exp2f(most - top), theirs = exp2f(other - top);
      sum = sum * mine + other_sum * theirs;
      value = value * mine + other_value * theirs;
      most = top;
    }
    publish(stage.output + std::size_t(unit.row) * stage.width + unit.head * dim + d, value / sum,
            shared.parity(stage.output_buffer, stage.output_parity));
  }

  __device__ __forceinline__ void run(Ring& ring) const {
    const PassArgs& args = shared.args;
    AttendUnit unit;
    if (kTokens > 1) sync_computing();  // the records are used up: partials lie in their place
    for (int index = blockIdx.x;
         find_unit<kTokens>(shared.rows(), args.rows.count, args.shape.heads, index, warp, unit);
         index += gridDim.x) {
      if (unit.row >= args.rows.count) {  // nobody reads these words, but every use writes all
        const unsigned parity = shared.parity(stage.output_buffer, stage.output_parity);
        for (int i = threadIdx.x; i < stage.width; i += kPassThreads)
          publish(stage.output + std::size_t(unit.row) * stage.width + i, 0.0f, parity);
        continue;
      }
      run_unit(unit, ring);
      sync_computing();
      join(unit);
      sync_computing();
    }
  }
};

}  // namespace guanaco::cuda
