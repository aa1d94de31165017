#pragma once

// What becomes of the sums of a linear's units. Finishing warps wait for the strips of their thread
// block, while others go on: sums of the units, of the thread block that has the strip's tail, and
// of the groups are added in this order, always the same, and handed to the stage's epilogue.

#include "attention_input.cuh"
#include "attention_output.cuh"
#include "exchange.cuh"
#include "logits.cuh"
#include "mlp_input.cuh"
#include "pass_shared.cuh"

namespace guanaco::cuda {

/// One linear stage, seen by a warp that finishes strips.
template <int kTokens>
struct LinearStage {
  const PassShared<kTokens>& shared;
  const PassStage& stage;
  const BlockPlan& plan;
  const float* squares;
  unsigned tag;  ///< of packets
  int lane;
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
  // squares_stride is a multiple of 16, with zeros behind the last block.
  float4 sums = {0, 0, 0, 0};
  for (int block = 4 * (linear.lane % 4); block < blocks; block += 16) {
    const float4 four = *reinterpret_cast<const float4*>(squares + block);
    sums = {sums.x + four.x, sums.y + four.y, sums.z + four.z, sums.w + four.w};
  }
  const float sum = warp_sum((sums.x + sums.y) + (sums.z + sums.w), 4);
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

/// What a strip's sums are joined with from outside of the thread block: looked at early, so that
/// it is there once the warps have joined theirs.
template <int kTokens>
struct Outside {
  static constexpr int kSets = StripSums<kTokens>::kSets;
  ulonglong2 tail[kSets];     ///< the next thread block's part of the strip
  unsigned addend[kSets][2];  ///< words of the residual stream
};

template <int kTokens>
__device__ __forceinline__ ulonglong2* strip_packets(const LinearStage<kTokens>& linear,
                                                     unsigned block) {
  const unsigned set = linear.stage.odd_linear ? gridDim.x : 0;
  return linear.shared.args.strip_packets + std::size_t(set + block) * kPairs<kTokens>;
}
__device__ __forceinline__ bool has_tail_elsewhere(const BlockPlan& plan, int strip) {
  return plan.end < (strip + 1) * plan.strip_units;
}
/// Where a lane's numbers of a strip lie in the residual stream; [row g], 8 further [row g + 8].
template <int kTokens>
__device__ __forceinline__ const float* addend_of(const LinearStage<kTokens>& linear, int strip,
                                                  int set) {
  const int token = StripSums<kTokens>::token(set, linear.lane);
  return linear.stage.addend + std::size_t(token) * linear.stage.width + strip * kStripOutputs +
         linear.lane / 4;
}
/// Whether the residual stream has row g + 8 * row of a strip.
template <int kTokens>
__device__ __forceinline__ bool has_addend(const LinearStage<kTokens>& linear, int strip, int set,
                                           int row) {
  return StripSums<kTokens>::token(set, linear.lane) < linear.shared.args.rows.count &&
         strip * kStripOutputs + linear.lane / 4 + 8 * row < linear.stage.width;
}

template <int kTokens>
__device__ __forceinline__ void look_outside(const LinearStage<kTokens>& linear, int strip,
                                             Outside<kTokens>& outside) {
  using Sums = StripSums<kTokens>;
  const BlockPlan& plan = linear.plan;
  if (!Sums::holds(linear.lane)) return;
  if (has_tail_elsewhere(plan, strip))
#pragma unroll
    for (int set = 0; set < Sums::kSets; ++set)
      outside.tail[set] =
          look(strip_packets(linear, blockIdx.x + 1) + Sums::pair(set, linear.lane));
  if (linear.stage.kind == StageKind::residual && plan.group == plan.plan.groups - 1)
#pragma unroll
    for (int set = 0; set < Sums::kSets; ++set)
      for (int row = 0; row < 2; ++row)
        if (has_addend(linear, strip, set, row))
          outside.addend[set][row] = load_word(addend_of(linear, strip, set) + 8 * row);
}

/// Finishes a strip as far as this thread block can. tail: its part of a strip that another one
/// owns.
template <int kTokens>
__device__ __forceinline__ void finish_strip(const LinearStage<kTokens>& linear,
                                             StripSums<kTokens> sums, int strip, bool tail,
                                             const Outside<kTokens>& outside) {
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
  const auto add = [&](int set, float2 part) {
    sums.of[set][0] += part.x;
    sums.of[set][1] += part.y;
  };
  if (tail) return publish_to(strip_packets(linear, blockIdx.x));
  if (has_tail_elsewhere(plan, strip))
#pragma unroll
    for (int set = 0; set < kSets; ++set)
      add(set, receive(strip_packets(linear, blockIdx.x + 1) + Sums::pair(set, lane),
                       outside.tail[set], linear.tag, linear.patience));
  const auto of_group = [&](int group) {
    return args.group_packets + (linear.stage.odd_linear ? args.group_packet_count : 0) +
           (std::size_t(group) * plan.plan.shape.strips + strip) * kPairs<kTokens>;
  };
  if (plan.group < plan.plan.groups - 1) return publish_to(of_group(plan.group));
  // Looks for several groups are under way together.
  constexpr int kLooks = kTokens == 1 ? 4 : 1;
  for (int last = plan.plan.groups - 2; last >= 0; last -= kLooks) {
    ulonglong2 seen[kLooks][kSets];
#pragma unroll
    for (int i = 0; i < kLooks; ++i)
#pragma unroll
      for (int set = 0; set < kSets; ++set)
        if (i <= last) seen[i][set] = look(of_group(last - i) + Sums::pair(set, lane));
#pragma unroll
    for (int i = 0; i < kLooks; ++i)
#pragma unroll
      for (int set = 0; set < kSets; ++set)
        if (i <= last)
          add(set, receive(of_group(last - i) + Sums::pair(set, lane), seen[i][set], linear.tag,
                           linear.patience));
  }

  const int g = lane / 4;
  const unsigned parity =
      linear.shared.parity(linear.stage.addend_buffer, linear.stage.addend_parity);
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    float2 y = {sums.of[set][0] * linear.factors[set], sums.of[set][1] * linear.factors[set]};
    if (linear.stage.bias != nullptr) {
      y.x += __ldg(linear.stage.bias + strip * kStripOutputs + g);
      y.y += __ldg(linear.stage.bias + strip * kStripOutputs + g + 8);
    }
    float addend[2] = {0, 0};
    if (linear.stage.kind == StageKind::residual)
#pragma unroll
      for (int row = 0; row < 2; ++row)
        if (has_addend(linear, strip, set, row))
          addend[row] = await(addend_of(linear, strip, set) + 8 * row, outside.addend[set][row],
                              parity, linear.patience);
    finish_pair(linear, strip, g, Sums::token(set, lane), y, {addend[0], addend[1]});
  }
}

/// Sums of the units of a strip, in a fixed order: four chains, whose additions do not wait for
/// each other.
template <int kTokens>
__device__ __forceinline__ StripSums<kTokens> add_parts(const PassShared<kTokens>& shared, int slot,
                                                        UnitRange units, int lane) {
  using Sums = StripSums<kTokens>;
  constexpr int kChains = 4;
  Sums sums;
  sums.clear();
  if constexpr (kTokens == 1) {  // a chain for each lane of a quad
    for (int unit = units.begin + lane % kChains; unit < units.end; unit += kChains) {
      const float2 value = shared.part(slot, unit)[lane / kChains];
      sums.of[0][0] += value.x;
      sums.of[0][1] += value.y;
    }
    sums.of[0][0] = warp_sum(sums.of[0][0], kChains);
    sums.of[0][1] = warp_sum(sums.of[0][1], kChains);
  } else {
    float2 chains[kChains][Sums::kSets] = {};
#pragma unroll 1
    for (int begin = units.begin; begin < units.end; begin += kChains)
#pragma unroll
      for (int i = 0; i < kChains; ++i) {
        if (begin + i >= units.end) continue;
        const float2* part = shared.part(slot, begin + i);
#pragma unroll
        for (int set = 0; set < Sums::kSets; ++set) {
          const float2 value = part[Sums::pair(set, lane)];
          chains[i][set].x += value.x;
          chains[i][set].y += value.y;
        }
      }
#pragma unroll
    for (int set = 0; set < Sums::kSets; ++set) {
      const auto sum = [&](float float2::*row) {  // as warp_sum adds
        return (chains[0][set].*row + chains[2][set].*row) +
               (chains[1][set].*row + chains[3][set].*row);
      };
      sums.of[set][0] = sum(&float2::x);
      sums.of[set][1] = sum(&float2::y);
    }
  }
  return sums;
}

/// Finishes the strips of a linear that are this warp's: every kFinishWarps-th of all.
template <int kTokens>
__device__ __forceinline__ void finish_linear(LinearStage<kTokens>& linear, unsigned strips_before,
                                              int which) {
  const BlockPlan& plan = linear.plan;
  const PassShared<kTokens>& shared = linear.shared;
  bool first = true;
  for (int i = int((unsigned(which) - strips_before) % kFinishWarps); i < plan.strip_count;
       i += kFinishWarps) {
    const int strip = plan.first_strip + i;
    const UnitRange units = plan.units_of(strip);
    const bool tail = units.begin > 0;
    Outside<kTokens> outside{};
    if (!tail) look_outside(linear, strip, outside);
    const StripSlot slot(shared, strips_before + unsigned(i));
    slot.wait_until_full();
    if (first) find_factors(linear);  // now the input is staged
    first = false;
    const StripSums<kTokens> sums = add_parts(shared, slot.index, units, linear.lane);
    __syncwarp();
    if (linear.lane == 0) slot.free();
    finish_strip(linear, sums, strip, tail, outside);
  }
}

}  // namespace guanaco::cuda
