#pragma once

// What becomes of the sums of a linear's units. Finishing warps wait for the strips of their thread
// block, while others go on: sums of the units, also of those that another thread block has, are
// added in an order that is always the same, and handed to the stage's epilogue.

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
  unsigned tag;  ///< of packets
  int lane;
  Patience& patience;
  float factors[StripSums<kTokens>::kSets];  ///< of the norm, for this lane's tokens

  /// Whether outputs are final here: not only a group's part of them.
  __device__ __forceinline__ bool has_last_group() const {
    return plan.group == plan.plan.groups - 1;
  }
};

/// What a strip's outputs need besides the sums: looked at early, so that it is there once the
/// warps have joined theirs.
template <int kTokens>
struct Outputs {
  static constexpr int kSets = StripSums<kTokens>::kSets;
  int place[2] = {};               ///< of rows g and g + 8
  float norm[2] = {1, 1};          ///< of the RMSNorm that follows
  unsigned addend[kSets][2] = {};  ///< words of the residual stream, as first seen

  __device__ __forceinline__ void look_for(const LinearStage<kTokens>& linear, int strip) {
    const PassStage& stage = linear.stage;
    if (!StripSums<kTokens>::holds(linear.lane) || !linear.has_last_group()) return;
    const int g = linear.lane / 4;
    const bool mlp = stage.kind == StageKind::mlp_input;
    const int first = strip * (mlp ? 8 : kStripOutputs) + g;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int output = first + 8 * row;
      place[row] = output;
      if (output >= stage.width || (mlp && row > 0)) continue;
      if (stage.place != nullptr) place[row] = __ldg(stage.place + output);
      if (stage.norm != nullptr) norm[row] = __ldg(stage.norm + output);
    }
    if (stage.kind != StageKind::residual) return;
#pragma unroll
    for (int set = 0; set < kSets; ++set)
#pragma unroll
      for (int row = 0; row < 2; ++row)
        if (has_addend(linear, strip, set, row))
          addend[set][row] = load_word(addend_of(linear, strip, set) + 8 * row);
  }
  /// Rows g and g + 8 of the residual stream.
  __device__ __forceinline__ float2 await_addend(const LinearStage<kTokens>& linear, int strip,
                                                 int set) const {
    const PassStage& stage = linear.stage;
    const unsigned parity = linear.shared.parity(stage.addend_buffer, stage.addend_parity);
    float value[2] = {};
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (has_addend(linear, strip, set, row))
        value[row] = await(addend_of(linear, strip, set) + 8 * row, addend[set][row], parity,
                           linear.patience);
    return {value[0], value[1]};
  }

 private:
  /// Where a lane's numbers of a strip lie in the residual stream; row g, 8 further row g + 8.
  __device__ static const float* addend_of(const LinearStage<kTokens>& linear, int strip, int set) {
    const int token = StripSums<kTokens>::token(set, linear.lane);
    return linear.stage.addend + std::size_t(token) * linear.stage.width + strip * kStripOutputs +
           linear.lane / 4;
  }
  __device__ static bool has_addend(const LinearStage<kTokens>& linear, int strip, int set,
                                    int row) {
    return StripSums<kTokens>::token(set, linear.lane) < linear.shared.args.rows.count &&
           strip * kStripOutputs + linear.lane / 4 + 8 * row < linear.stage.width;
  }
};

/// What becomes of the outputs.
template <int kTokens>
__device__ __forceinline__ void finish_pair(const LinearStage<kTokens>& linear,
                                            const Outputs<kTokens>& outputs, int strip, int set,
                                            float2 y) {
  using Sums = StripSums<kTokens>;
  const PassStage& stage = linear.stage;
  const PassArgs& args = linear.shared.args;
  const unsigned parity = linear.shared.parity(stage.output_buffer, stage.output_parity);
  const int g = linear.lane / 4, token = Sums::token(set, linear.lane);
  switch (stage.kind) {
    case StageKind::attention_input:
      return rotate_and_append(stage, args, linear.shared.angles(), strip, g, token, y, parity);
    case StageKind::residual: {
      const float2 addend = outputs.await_addend(linear, strip, set);
      return publish_residual(stage, strip, g, token, {addend.x + y.x, addend.y + y.y},
                              {outputs.norm[0], outputs.norm[1]},
                              {outputs.place[0], outputs.place[1]}, parity, Sums::kLanes);
    }
    case StageKind::mlp_input:
      return store_swiglu(stage, strip, g, token, y, outputs.place[0], parity);
    default:
      return store_logits(stage, args, strip, g, token, y);
  }
}

/// Sums of the units of a strip that `block` works on for the thread block before: [units][pairs].
template <int kTokens>
__device__ __forceinline__ ulonglong2* strip_packets(const LinearStage<kTokens>& linear,
                                                     unsigned block) {
  const PassArgs& args = linear.shared.args;
  const unsigned set = linear.stage.odd_linear ? gridDim.x : 0;
  return args.strip_packets + std::size_t(set + block) * args.layout.strip_units * kPairs<kTokens>;
}
/// A strip of the thread block before: hands over the sums of the units.
template <int kTokens>
__device__ __forceinline__ void send_tail(const LinearStage<kTokens>& linear, int slot,
                                          UnitRange units) {
  ulonglong2* const packets = strip_packets(linear, blockIdx.x);
  const float2* const parts = linear.shared.part(slot, units.begin);
  for (int i = linear.lane; i < units.count() * kPairs<kTokens>; i += kWarp)
    send(packets + i, parts[i], linear.tag);
}
/// Gathers those that the next thread block works on for this one.
template <int kTokens>
__device__ __forceinline__ void receive_tail(const LinearStage<kTokens>& linear, UnitRange units) {
  const ulonglong2* const packets = strip_packets(linear, blockIdx.x + 1);
  float2* const parts = linear.shared.tail_part(units.begin);
  constexpr int kLooks = 4;  // under way together
  const int pairs = units.count() * kPairs<kTokens>;
  for (int first = linear.lane; first - linear.lane < pairs; first += kLooks * kWarp) {
    ulonglong2 seen[kLooks];
#pragma unroll
    for (int i = 0; i < kLooks; ++i) seen[i] = look(packets + min(first + i * kWarp, pairs - 1));
#pragma unroll
    for (int i = 0; i < kLooks; ++i)
      if (const int pair = first + i * kWarp; pair < pairs)
        parts[pair] = receive(packets + pair, seen[i], linear.tag, linear.patience);
  }
}

/// Finishes a strip, if this thread block has its last group; else hands its sums over.
template <int kTokens>
__device__ __forceinline__ void finish_strip(const LinearStage<kTokens>& linear,
                                             StripSums<kTokens> sums, int strip,
                                             const Outputs<kTokens>& outputs) {
  using Sums = StripSums<kTokens>;
  constexpr int kSets = Sums::kSets;
  const BlockPlan& plan = linear.plan;
  const PassArgs& args = linear.shared.args;
  const int lane = linear.lane;
  if (!Sums::holds(lane)) return;
  const auto of_group = [&](int group) {
    return args.group_packets + (linear.stage.odd_linear ? args.group_packet_count : 0) +
           (std::size_t(group) * plan.plan.shape.strips + strip) * kPairs<kTokens>;
  };
  if (!linear.has_last_group()) {
#pragma unroll
    for (int set = 0; set < kSets; ++set)
      send(of_group(plan.group) + Sums::pair(set, lane), {sums.of[set][0], sums.of[set][1]},
           linear.tag);
    return;
  }
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
      for (int set = 0; set < kSets; ++set) {
        if (i > last) continue;
        const float2 part = receive(of_group(last - i) + Sums::pair(set, lane), seen[i][set],
                                    linear.tag, linear.patience);
        sums.of[set][0] += part.x;
        sums.of[set][1] += part.y;
      }
  }

#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    float2 y = {sums.of[set][0] * linear.factors[set], sums.of[set][1] * linear.factors[set]};
    if (linear.stage.bias != nullptr) {
      y.x += __ldg(linear.stage.bias + strip * kStripOutputs + lane / 4);
      y.y += __ldg(linear.stage.bias + strip * kStripOutputs + lane / 4 + 8);
    }
    finish_pair(linear, outputs, strip, set, y);
  }
}

/// Sums of some units of a strip, in a fixed order: four chains, whose additions do not wait for
/// each other. part_of: where a unit's sums lie.
template <int kTokens, typename PartOf>
__device__ __forceinline__ StripSums<kTokens> add_some_parts(UnitRange units, int lane,
                                                             const PartOf& part_of) {
  using Sums = StripSums<kTokens>;
  constexpr int kChains = 4;
  Sums sums;
  sums.clear();
  if constexpr (kTokens == 1) {  // a chain for each lane of a quad
    for (int unit = units.begin + lane % kChains; unit < units.end; unit += kChains) {
      const float2 value = part_of(unit)[lane / kChains];
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
        const float2* part = part_of(begin + i);
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

/// Sums of all units of a strip's group: of the last `sum_units`, then with those before, as if
/// each `sum_units` of them were a group of its own. Units from `own` on are the next thread
/// block's.
template <int kTokens>
__device__ __forceinline__ StripSums<kTokens> add_parts(const PassShared<kTokens>& shared,
                                                        const BlockPlan& plan, int slot, int own,
                                                        int lane) {
  const auto part_of = [&](int unit) {
    return unit < own ? shared.part(slot, unit) : shared.tail_part(unit);
  };
  const int step = plan.plan.sum_units;
  int begin = (plan.strip_units - 1) / step * step;
  StripSums<kTokens> sums = add_some_parts<kTokens>({begin, plan.strip_units}, lane, part_of);
  while ((begin -= step) >= 0) {
    const StripSums<kTokens> more = add_some_parts<kTokens>({begin, begin + step}, lane, part_of);
#pragma unroll
    for (int set = 0; set < StripSums<kTokens>::kSets; ++set)
#pragma unroll
      for (int row = 0; row < 2; ++row) sums.of[set][row] += more.of[set][row];
  }
  return sums;
}

/// Linears that finishing warps and the gathering warp have come to, of those that have such a
/// thing.
struct Gathered {
  unsigned factors = 0, tails = 0;
};

/// What outputs of this thread block's strips will need from memory.
template <int kTokens>
__device__ __forceinline__ void prefetch_for_outputs(const LinearStage<kTokens>& linear) {
  const PassStage& stage = linear.stage;
  const int outputs = stage.kind == StageKind::mlp_input ? kStripOutputs / 2 : kStripOutputs;
  const int first = linear.plan.first_strip * outputs + linear.lane * outputs;
  if (linear.lane >= linear.plan.strip_count || first >= stage.width) return;
  if (stage.norm != nullptr) prefetch(stage.norm + first);
  if (stage.place != nullptr) prefetch(stage.place + first);
}

/// Factors of the norm, 1 / sqrt(mean of squares + epsilon): each finishing warp finds those of
/// every kFinishWarps-th token, for both.
template <int kTokens>
__device__ __forceinline__ void find_factors(const LinearStage<kTokens>& linear, int which) {
  const PassShared<kTokens>& shared = linear.shared;
  const PassStage& stage = linear.stage;
  const PassArgs& args = shared.args;
  const int lane = linear.lane;
  const bool logits = stage.kind == StageKind::logits;
  const int tokens = logits ? args.rows.logits_count : args.rows.count;
  const int squares = squares_of(args.hidden);
  const unsigned parity = shared.parity(stage.input_buffer, stage.input_parity);
  constexpr int kTogether = kTokens == 1 ? 1 : 2, kLooks = 4;  // under way together
#pragma unroll 1
  for (int token = which; token < kTokens; token += kTogether * kFinishWarps) {
    const float* rows[kTogether];
    float sums[kTogether] = {};
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {  // tokens that are not in use are the first once more
      const int own = token + r * kFinishWarps < tokens ? token + r * kFinishWarps : 0;
      rows[r] =
          stage.squares + (logits ? args.rows.logits_rows[own] : own) * squares_stride(args.hidden);
    }
    for (int first = 4 * lane; first - 4 * lane < squares; first += kLooks * 4 * kWarp) {
      uint4 seen[kTogether][kLooks];
#pragma unroll
      for (int r = 0; r < kTogether; ++r)
#pragma unroll
        for (int i = 0; i < kLooks; ++i) {
          const int at = first + i * 4 * kWarp;
          seen[r][i] = look(rows[r] + at, at < squares, parity);
        }
#pragma unroll
      for (int r = 0; r < kTogether; ++r)
#pragma unroll
        for (int i = 0; i < kLooks; ++i) {
          const int at = first + i * 4 * kWarp;
          const int count = min(max(squares - at, 0), 4);  // behind the last is nothing to wait for
          const float4 four = await(seen[r][i], rows[r] + at, parity, linear.patience, lane, count);
          sums[r] += ((count > 0 ? four.x : 0.0f) + (count > 1 ? four.y : 0.0f)) +
                     ((count > 2 ? four.z : 0.0f) + (count > 3 ? four.w : 0.0f));
        }
    }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      const float sum = warp_sum(sums[r]);
      if (lane == 0 && token + r * kFinishWarps < kTokens)
        shared.factors(stage.odd_linear)[token + r * kFinishWarps] =
            rsqrtf(__fdividef(sum, float(args.hidden)) + args.epsilon);
    }
  }
  __syncwarp();
}

/// Brings the tail of the last strip to the other sums, for both warps.
template <int kTokens>
__device__ __forceinline__ void gather_tail(const LinearStage<kTokens>& linear,
                                            const Gathered& gathered) {
  const PassShared<kTokens>& shared = linear.shared;
  wait_for(shared.tails_used(), gathered.tails - 1);
  receive_tail(linear, linear.plan.tail());
  __syncwarp();
  if (linear.lane == 0) store_release(shared_address(shared.tails_there()), gathered.tails);
}

/// Finishes the strips of a linear that are this warp's: every kFinishWarps-th of all.
template <int kTokens>
__device__ __forceinline__ void finish_linear(LinearStage<kTokens>& linear, unsigned strips_before,
                                              int which, Gathered& gathered) {
  const BlockPlan& plan = linear.plan;
  const PassShared<kTokens>& shared = linear.shared;
  if (linear.stage.squares != nullptr) ++gathered.factors;
  if (plan.tail().count() > 0) ++gathered.tails;
  prefetch_for_outputs(linear);
  if (linear.stage.squares != nullptr) {
    find_factors(linear, which);
    if (linear.lane == 0)
      store_release(shared_address(shared.factors_there() + which), gathered.factors);
  }
  const int first_index = int((unsigned(which) - strips_before) % kFinishWarps);
  // After its first strip, which may be the tail that the thread block before waits for.
  const bool gathers = first_index == 0 && plan.tail().count() > 0;
  if (gathers && plan.strip_count == 1) gather_tail(linear, gathered);
  for (int i = first_index; i < plan.strip_count; i += kFinishWarps) {
    const int strip = plan.first_strip + i;
    const UnitRange units = plan.units_of(strip);
    const bool others = units.begin > 0;  // the strip is the thread block's before
    const bool shares = units.end < plan.strip_units;
    Outputs<kTokens> outputs;
    if (!others) outputs.look_for(linear, strip);
    if (i == first_index) {
#pragma unroll
      for (int set = 0; set < StripSums<kTokens>::kSets; ++set) linear.factors[set] = 1;
      if (linear.stage.squares != nullptr) {
#pragma unroll
        for (int warp = 0; warp < kFinishWarps; ++warp)
          wait_for(shared.factors_there() + warp, gathered.factors);
#pragma unroll
        for (int set = 0; set < StripSums<kTokens>::kSets; ++set)
          linear.factors[set] =
              shared.factors(linear.stage.odd_linear)[StripSums<kTokens>::token(set, linear.lane)];
      }
    }
    const StripSlot slot(shared, strips_before + unsigned(i));
    slot.wait_until_full();
    StripSums<kTokens> sums;
    if (others) {
      send_tail(linear, slot.index, units);
    } else {
      if (shares) wait_for(shared.tails_there(), gathered.tails);
      sums = add_parts(shared, plan, slot.index, units.end, linear.lane);
    }
    __syncwarp();
    if (linear.lane == 0) {
      slot.free();
      if (!others && shares) store_release(shared_address(shared.tails_used()), gathered.tails);
    }
    if (!others) finish_strip(linear, sums, strip, outputs);
    if (gathers && i == 0 && plan.strip_count > 1) gather_tail(linear, gathered);
  }
}

}  // namespace guanaco::cuda
