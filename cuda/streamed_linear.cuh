#pragma once

// A linear of a pass: y = W x for 1 or up to 8 tokens, bound by reading W once.
//
// Every thread block first stages the whole input for itself, as soon as its words arrive. Then its
// warps multiply their shares, and whoever adds the last piece of a strip of 16 outputs finishes
// the strip: sums of the warps, of the thread block that has the strip's tail, and of the groups
// are added in this order, always the same, and handed to the stage's epilogue.

#include "attention_input.cuh"
#include "attention_output.cuh"
#include "logits.cuh"
#include "mlp_input.cuh"
#include "multiply_piece.cuh"
#include "pass_shared.cuh"

namespace guanaco::cuda {

/// One linear stage, seen by a warp.
template <int kTokens>
struct LinearStage {
  const PassShared<kTokens>& shared;
  const PassStage& stage;
  const BlockPlan& plan;
  const std::uint8_t* records;
  const float* squares;
  unsigned tag;  ///< of packets
  int warp, lane;
  Patience& patience;
  float factors[StripSums<kTokens>::kSets];  ///< of the norm, for this lane's tokens
};

/// The norms' factors from the squares of each block. Lanes of a quad add up a quarter each.
template <int kTokens>
__device__ __forceinline__ void find_factors(LinearStage<kTokens>& linear) {
  using Sums = StripSums<kTokens>;
#pragma unroll
  for (float& factor : linear.factors) factor = 1;
  if (linear.stage.norm == nullptr) return;
  const int blocks = linear.plan.plan.shape.strip_blocks;
  const int token = kTokens == 1 ? 0 : linear.lane / 4;
  const float* squares = linear.squares + token * linear.shared.args.layout.squares_stride;
  float sum = 0;
  for (int block = linear.lane % 4; block < blocks; block += 4) sum += squares[block];
  sum = warp_sum(sum, 4);
  const float factor =
      rsqrtf(__fdividef(sum, float(linear.plan.plan.shape.inputs)) + linear.shared.args.epsilon);
#pragma unroll
  for (int set = 0; set < Sums::kSets; ++set)
    linear.factors[set] = __shfl_sync(~0u, factor, 4 * Sums::token(set, linear.lane));
}

/// What becomes of the outputs.
template <int kTokens>
__device__ __forceinline__ void finish_pair(const LinearStage<kTokens>& linear, int strip, int g,
                                            int token, float2 y, float2 addend) {
  const PassStage& stage = linear.stage;
  const PassArgs& args = linear.shared.args;
  const unsigned parity = linear.shared.parity(stage.output_buffer, stage.output_parity);
  switch (stage.kind) {
    case StageKind::attention_input:
      return rotate_and_append(stage, args, linear.shared.angles(), strip, g, token, y, parity);
    case StageKind::residual:
      return add_to_residual(stage, strip, g, token, y, addend, parity);
    case StageKind::mlp_input:
      return store_swiglu(stage, strip, g, token, y, parity);
    default:
      return store_logits(stage, args, strip, g, token, y);
  }
}

/// Finishes a strip as far as this thread block can. tail: its part of a strip that another one
/// owns.
template <int kTokens>
__device__ __forceinline__ void finish_strip(const LinearStage<kTokens>& linear,
                                             StripSums<kTokens> sums, int strip, bool tail) {
  using Sums = StripSums<kTokens>;
  constexpr int kSets = Sums::kSets;
  const BlockPlan& plan = linear.plan;
  const PassArgs& args = linear.shared.args;
  const int lane = linear.lane;
  if (!Sums::holds(lane)) return;
  const auto publish_to = [&](ulonglong2* packets) {
#pragma unroll
    for (int set = 0; set < kSets; ++set)
      send(packets + Sums::pair(set, lane), {sums.of[set][0], sums.of[set][1]}, linear.tag);
  };
  const auto add_from = [&](const ulonglong2* packets) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float2 part = receive(packets + Sums::pair(set, lane), linear.tag, linear.patience);
      sums.of[set][0] += part.x;
      sums.of[set][1] += part.y;
    }
  };
  const auto of_block = [&](unsigned block) {
    const unsigned set = linear.stage.odd_linear ? gridDim.x : 0;
    return args.strip_packets + std::size_t(set + block) * kPairs<kTokens>;
  };
  if (tail) return publish_to(of_block(blockIdx.x));
  if (plan.end < (strip + 1) * plan.width) add_from(of_block(blockIdx.x + 1));
  const auto of_group = [&](int group) {
    return args.group_packets + (linear.stage.odd_linear ? args.group_packet_count : 0) +
           (std::size_t(group) * plan.plan.shape.strips + strip) * kPairs<kTokens>;
  };
  if (plan.group < plan.plan.groups - 1) return publish_to(of_group(plan.group));
  for (int group = plan.plan.groups - 2; group >= 0; --group) add_from(of_group(group));

  const int local = strip - plan.first_strip, g = lane / 4;
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    float2 y = {sums.of[set][0] * linear.factors[set], sums.of[set][1] * linear.factors[set]};
    if (linear.stage.bias != nullptr) {
      y.x += __ldg(linear.stage.bias + strip * kStripOutputs + g);
      y.y += __ldg(linear.stage.bias + strip * kStripOutputs + g + 8);
    }
    float2 addend = {0, 0};
    if (linear.stage.kind == StageKind::residual)
      addend = linear.shared.addend()[local * kPairs<kTokens> + Sums::pair(set, lane)];
    finish_pair(linear, strip, g, Sums::token(set, lane), y, addend);
  }
}

/// Takes a warp's sum of `count` pieces of a strip, and finishes the strip if they were the last.
template <int kTokens>
__device__ __forceinline__ void leave_part(const LinearStage<kTokens>& linear,
                                           StripSums<kTokens>& sums, int portion, int strip,
                                           bool first_of_share, int count) {
  using Sums = StripSums<kTokens>;
  const BlockPlan& plan = linear.plan;
  const PassShared<kTokens>& shared = linear.shared;
  const bool tail = portion == 0;
  const int lane = linear.lane, begin = strip * plan.width;
  const int all = tail ? plan.middle - plan.begin : min(plan.width, plan.end - begin);
  if (count < all) {
    // Other warps have pieces too. The last to arrive adds all parts in the order of the warps.
    float2* part = shared.part(linear.warp, tail ? 0 : first_of_share ? 1 : 2);
    if (Sums::holds(lane))
#pragma unroll
      for (int set = 0; set < Sums::kSets; ++set)
        part[Sums::pair(set, lane)] = {sums.of[set][0], sums.of[set][1]};
    __syncwarp();
    int before = 0;
    int* arrived = shared.arrived() + (tail ? 0 : 1 + strip - plan.first_strip);
    if (lane == 0) before = arrive_at(arrived, count);
    before = __shfl_sync(~0u, before, 0);
    __syncwarp();  // what lane 0 may see of other warps' parts, all may
    if (before + count < all) return;
    if (lane == 0) *arrived = 0;
    // Lane w looks whether warp w had a part: its share overlaps the strip's pieces here.
    const int from = tail ? plan.begin : begin, to = from + all;
    int index = -1;
    if (lane < kPassWarps) {
      const Share& share = plan.shares[portion][lane];
      if (share.count > 0 && share.begin < to && share.begin + share.count > from)
        index = tail ? 0 : share.strip == strip ? 1 : 2;
    }
    sums.clear();
#pragma unroll
    for (int w = 0; w < kPassWarps; ++w) {
      const int of_warp = __shfl_sync(~0u, index, w);
      if (of_warp < 0 || !Sums::holds(lane)) continue;
      const float2* other = shared.part(w, of_warp);
#pragma unroll
      for (int set = 0; set < Sums::kSets; ++set) {
        const float2 value = other[Sums::pair(set, lane)];
        sums.of[set][0] += value.x;
        sums.of[set][1] += value.y;
      }
    }
  }
  finish_strip(linear, sums, strip, tail);
}

/// A warp's shares of the linear, as their copies arrive.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ __forceinline__ void multiply_shares(const LinearStage<kTokens>& linear, Ring& ring) {
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kPieces = kKind == WeightKind::half || kKind == WeightKind::bfloat ? 4 : 1;
  constexpr int kRecord = record_bytes<kTokens>(kCodes);
  const BlockPlan& plan = linear.plan;
  const StreamedWeight& shape = plan.plan.shape;
  const int width = plan.width, piece_bytes = plan.plan.piece_bytes;
  const int copy_pieces = plan.plan.copy_pieces;
  const bool one_group = plan.plan.groups == 1;
  const int lane = linear.lane;
  StripSums<kTokens> sums;
#pragma unroll 1
  for (int portion = 0; portion < 2; ++portion) {
    const Share share = plan.shares[portion][linear.warp];
    int remaining = share.count, strip = share.strip, column = share.column, count = 0;
    bool first = true;
    sums.clear();
    // A copy begins at the source's place in 16 bytes.
    const auto place = [&](int in_strip, int at) {
      return int(reinterpret_cast<std::uintptr_t>(plan.address(linear.stage.blocks, in_strip, at)) &
                 15u);
    };
    int offset = place(strip, column);
#pragma unroll 1
    while (remaining > 0) {
      int pieces = min(copy_pieces, remaining);
      if (!one_group) pieces = min(pieces, width - column);
      remaining -= pieces;
      const std::uint8_t* piece = ring.wait() + offset;
      offset = (offset + pieces * piece_bytes) & 15;
#pragma unroll 1
      do {
        int run = min(pieces, width - column);  // of one strip
        const std::uint8_t* record = linear.records + column / kPieces * kRecord;
        int quarter = column % kPieces;
        pieces -= run;
        column += run;
        count += run;
        if constexpr (kCodes) {
          // Two together, so that one's latencies hide the other's.
#pragma unroll 1
          for (; run >= 2; run -= 2) {
            multiply_pieces<kKind, kTokens, kSimple, 2>(piece, piece_bytes, record, 0, shape, lane,
                                                        sums.of);
            piece += 2 * piece_bytes;
            record += 2 * kRecord;
          }
        }
#pragma unroll 1
        for (; run > 0; --run) {
          multiply_pieces<kKind, kTokens, kSimple, 1>(piece, piece_bytes, record, quarter, shape,
                                                      lane, sums.of);
          piece += piece_bytes;
          if (++quarter == kPieces) {
            quarter = 0;
            record += kRecord;
          }
        }
        const bool strip_ends = column == width;
        if (strip_ends || (remaining | pieces) == 0) {
          leave_part(linear, sums, portion, strip, first, count);
          sums.clear();
          first = false;
          count = 0;
          if (strip_ends) {
            column = 0;
            ++strip;
            if (!one_group) offset = place(strip, 0);
          }
        }
      } while (pieces > 0);
      ring.release();
    }
  }
}

/// Residual stages add to what this thread block's strips hold already: fetched while the input is
/// still on its way. By all threads.
template <int kTokens>
__device__ __forceinline__ void fetch_addend(const LinearStage<kTokens>& linear) {
  const BlockPlan& plan = linear.plan;
  const PassStage& stage = linear.stage;
  const unsigned parity = linear.shared.parity(stage.addend_buffer, stage.addend_parity);
  if (plan.group < plan.plan.groups - 1) return;
  const int strips = (plan.end - plan.middle + plan.width - 1) / plan.width;
  for (int i = threadIdx.x; i < strips * kPairs<kTokens>; i += kPassThreads) {
    const int strip = plan.first_strip + i / kPairs<kTokens>, pair = i % kPairs<kTokens>;
    const int lane = StripSums<kTokens>::lane_of(pair), g = lane / 4;
    const int token = StripSums<kTokens>::token(pair / kWarp, lane);
    const float* row = stage.addend + std::size_t(token) * stage.width + strip * kStripOutputs + g;
    float2 addend = {0, 0};
    if (token < linear.shared.args.rows.count) {
      if (strip * kStripOutputs + g < stage.width) addend.x = await(row, parity, linear.patience);
      if (strip * kStripOutputs + g + 8 < stage.width)
        addend.y = await(row + 8, parity, linear.patience);
    }
    linear.shared.addend()[i] = addend;
  }
}

template <int kTokens>
__device__ __forceinline__ void run_linear(const PassShared<kTokens>& shared,
                                           const PassStage& stage, int stage_index, int which,
                                           Ring& ring, Patience& patience, int warp, int lane) {
  const PassArgs& args = shared.args;
  const BlockPlan& plan = shared.plans()[stage.plan];
  const StreamedWeight& shape = plan.plan.shape;
  LinearStage<kTokens> linear{shared,
                              stage,
                              plan,
                              shared.records(which),
                              shared.squares(which),
                              args.tag + unsigned(stage_index),
                              warp,
                              lane,
                              patience,
                              {}};
  if (kTokens > 1) sync_computing();  // the records of the stage before are used up
  if (stage.kind == StageKind::residual) fetch_addend(linear);
  const bool logits = stage.kind == StageKind::logits;
  const StageInput input{stage.input,       stage.order,
                         stage.norm,        shared.parity(stage.input_buffer, stage.input_parity),
                         stage.plain_input, logits ? args.rows.logits_count : args.rows.count};
  const auto stage_with = [&]<WeightKind kKind, bool kSimple>() {
    stage_rows<kKind, kTokens, kSimple>(input, plan, logits ? args.rows.logits_rows : nullptr,
                                        shared.records(which), shared.squares(which),
                                        args.layout.squares_stride, patience, warp, lane);
  };
  const auto run = [&]<WeightKind kKind>() {
    if (in_own_order(shape, stage.order)) {
      stage_with.template operator()<kKind, true>();
    } else {
      stage_with.template operator()<kKind, false>();
    }
    sync_computing();
    find_factors(linear);
    if ((kKind == WeightKind::nibble && shape.block_bytes != kSimpleNibbleBytes) ||
        (kKind == WeightKind::byte && (shape.runs > 1 || shape.float_scales))) {
      multiply_shares<kKind, kTokens, false>(linear, ring);
    } else {
      multiply_shares<kKind, kTokens, true>(linear, ring);
    }
  };
  switch (shape.kind) {
    case WeightKind::nibble:
      return run.template operator()<WeightKind::nibble>();
    case WeightKind::byte:
      return run.template operator()<WeightKind::byte>();
    case WeightKind::half:
      return run.template operator()<WeightKind::half>();
    case WeightKind::bfloat:
      return run.template operator()<WeightKind::bfloat>();
    case WeightKind::single:
      return run.template operator()<WeightKind::single>();
  }
}

}  // namespace guanaco::cuda
