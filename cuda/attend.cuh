#pragma once

// Stage 3 for few rows: attended = softmax(q K^T / sqrt(d)) V over the positions of each row's
// sequence. Bound by reading K and V once.
//
// A sequence is cut into octets of 8 positions, whatever else is in the pass. The octets of a (row,
// head) are shared by up to `splits` thread blocks, and in each the warps take them in turn; every
// warp keeps its own running softmax (arXiv:1805.02867), and they are joined in the order of the
// warps' first octets, then of thread blocks.
// K and V of earlier passes come from the pages through the ring. Those of this pass are only being
// computed when the copies start: a warp takes them from the exchanged words and puts them, rounded
// as in the pages, into the copy.

#include "pass_shared.cuh"

namespace guanaco::cuda {

/// Shared memory of the warp that takes octets `turn`, turn + 16, ...: [dim] its query, later its
/// weighted values, and behind them its largest score and sum of weights.
__device__ inline float* partial_of(float* partials, int turn, int dim) {
  return partials + turn * (dim + 4);
}

/// kDim: head_dim rounded up to 64, 128 or 256.
template <int kTokens, int kDim>
struct AttendStage {
  static constexpr int kPieces = kDim / 32;  ///< 16-byte pieces of a key for each of 4 lanes
  static constexpr int kColumns = (kDim + 127) / 128;  ///< groups of 4 values for each lane

  /// Whether a row's own key and value are looked at together with its query: one trip to L2.
  static constexpr bool kLooksEarly = kTokens == 1 && kColumns == 1;

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

  /// Puts the keys or values of this pass's rows into an octet's copy. early: what a look at those
  /// of the unit's row found, if kLooksEarly.
  __device__ __forceinline__ void patch(std::uint8_t* slot, const RowPlan& row, int octet, int head,
                                        unsigned parity, const uint4& early) const {
    const int dim = shared.args.shape.head_dim;
    const int from = max(octet * kOctet, row.first_position);
    const int to = min(octet * kOctet + kOctet, row.position + 1);
    for (int position = from; position < to; ++position) {
      const float* words = row_words(row.first_row + position - row.first_position, head);
      for (int first = 0; first < dim; first += 4 * kWarp) {
        const int d = first + 4 * lane;
        const bool wanted = d < dim, own = kLooksEarly && position == row.position;
        const float4 value =
            await(own ? early : look(words + d, wanted, parity), words + d, parity, patience, lane);
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

  /// A warp's octets of a part; leaves its partial result.
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
    const int octets = unit.end - unit.begin;
    float* const partial = partial_of(partials, ring.ahead(), dim);
    uint4 early[2] = {};  // the row's own key and value
    if (ring.ahead() < octets) {
      const int key = 4 * lane;
      if constexpr (kLooksEarly)
        for (int i = 0; i < 2; ++i)
          early[i] =
              look(row_words(unit.row, key_head + i * shape.kv_heads) + key, key < dim, parity);
      const float* query = row_words(unit.row, unit.head);
      for (int first = 0; first < dim; first += 4 * kWarp) {
        const int d = first + 4 * lane;
        const bool wanted = d < dim;
        const float4 q = await(look(query + d, wanted, parity), query + d, parity, patience, lane);
        if (!wanted) continue;
        *reinterpret_cast<float4*>(partial + d) = {q.x * factor, q.y * factor, q.z * factor,
                                                   q.w * factor};
      }
      __syncwarp();
    }

    float largest = -INFINITY, sum = 0;
    float out[kColumns][4] = {};
#pragma unroll 1
    while (ring.ahead() < octets) {
      const int octet = unit.begin + ring.ahead();
      const int valid = min(kOctet, row.position + 1 - octet * kOctet);
      const bool fresh = octet * kOctet + valid > row.first_position;
      std::uint8_t* slot = ring.wait();
      if (fresh) patch(slot, row, octet, key_head, parity, early[0]);
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

      slot += kOctet * dim * sizeof(__half);
      if (fresh) patch(slot, row, octet, key_head + shape.kv_heads, parity, early[1]);
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
    ring.end_stage(octets);
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
  /// place: of the thread's value.
  __device__ __forceinline__ void join(const AttendUnit& unit, int place) const {
    const PassArgs& args = shared.args;
    const int dim = args.shape.head_dim, d = threadIdx.x;
    if (d - lane >= dim) return;  // the rest of a warp that has a value helps
    // Lane w looks at what the warp of turn w has.
    const float* part = partial_of(partials, lane % kPassWarps, dim);
    float most = warp_max(part[dim], kPassWarps);
    const float share = exp2f(part[dim] - most);
    float sum = warp_sum(part[dim + 1] * share, kPassWarps), value = 0;
#pragma unroll
    for (int w = 0; w < kPassWarps; ++w)
      value += partial_of(partials, w, dim)[min(d, dim - 1)] * __shfl_sync(~0u, share, w);
    if (d >= dim) return;
    const auto packets = [&](int split) {
      const std::size_t row_head = std::size_t(unit.row) * args.shape.heads + unit.head;
      return args.split_packets + (row_head * args.splits + split) * (dim + 2);
    };
    if (unit.split > 0) {
      unsigned long long* out = packets(unit.split);
      send(out + 2 + d, value, tag);
      if (d == 0) send(reinterpret_cast<ulonglong2*>(out), {most, sum}, tag);
      return;
    }
    for (int split = 1; split < unit.splits; ++split) {
      const unsigned long long* from = packets(split);
      const auto* head = reinterpret_cast<const ulonglong2*>(from);
      const ulonglong2 seen = look(head);
      const float other_value = receive(from + 2 + d, tag, patience);
      const float2 other = receive(head, seen, tag, patience);  // largest score and sum
      const float top = fmaxf(most, other.x);
      const float mine = exp2f(most - top), theirs = exp2f(other.x - top);
      sum = sum * mine + other.y * theirs;
      value = value * mine + other_value * theirs;
      most = top;
    }
    publish(stage.output + std::size_t(unit.row) * stage.width + place, value / sum,
            shared.parity(stage.output_buffer, stage.output_parity));
  }

  __device__ __forceinline__ void run(Ring& ring) const {
    const PassArgs& args = shared.args;
    AttendUnit unit;
    sync_computing();  // the records are used up: partials lie in their place
    for (int index = blockIdx.x;
         find_unit<kTokens>(shared.rows(), args.rows.count, args.shape.heads, index, unit);
         index += gridDim.x) {
      if (unit.row >= args.rows.count) {  // nobody reads these words, but every use writes all
        const unsigned parity = shared.parity(stage.output_buffer, stage.output_parity);
        for (int i = threadIdx.x; i < stage.width; i += kPassThreads)
          publish(stage.output + std::size_t(unit.row) * stage.width + i, 0.0f, parity);
        continue;
      }
      const int dim = args.shape.head_dim;
      const int output = unit.head * dim + min(int(threadIdx.x), dim - 1);
      const int place = stage.place != nullptr ? __ldg(stage.place + output) : output;
      run_unit(unit, ring);
      sync_computing();
      join(unit, place);
      sync_computing();
    }
  }
};

}  // namespace guanaco::cuda
