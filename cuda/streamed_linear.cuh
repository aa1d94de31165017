#pragma once

// A linear of a pass: y = W x for 1 or up to 8 tokens, bound by reading W once.
//
// Every thread block first stages its group's input for itself, as soon as its words arrive. Then
// its warps take units of its range in turn, and leave their sums for the warps that finish strips
// (finish_strips.cuh).

#include "multiply_piece.cuh"
#include "pass_shared.cuh"
#include "stage_input.cuh"

namespace guanaco::cuda {

/// A thread block's units of the linear, as their copies arrive: every warp those that are its own.
/// strips_before: strips of the linears before.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ __forceinline__ void multiply_units(const PassShared<kTokens>& shared,
                                               const BlockPlan& plan, const std::uint8_t* records,
                                               unsigned strips_before, Ring& ring, int lane) {
  using Sums = StripSums<kTokens>;
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kPieces = kKind == WeightKind::half || kKind == WeightKind::bfloat ? 4 : 1;
  constexpr int kRecord = record_bytes<kTokens>(kCodes);
  const StreamedWeight& shape = plan.plan.shape;
  const int piece_bytes = plan.plan.piece_bytes;
  const int units = plan.end - plan.begin;
  UnitPlace at(plan, ring.ahead());
#pragma unroll 1
  while (ring.ahead() < units) {
    const int column = at.column(plan);
    int run = at.pieces(plan);
    const std::uint8_t* record = records + column / kPieces * kRecord;
    const std::uint8_t* piece = ring.wait();
    Sums sums;
    sums.clear();
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
    for (int quarter = column % kPieces; run > 0; --run) {
      multiply_pieces<kKind, kTokens, kSimple, 1>(piece, piece_bytes, record, quarter, shape, lane,
                                                  sums.of);
      piece += piece_bytes;
      if (++quarter == kPieces) {
        quarter = 0;
        record += kRecord;
      }
    }
    const StripSlot slot(shared, strips_before + unsigned(at.strip - plan.first_strip));
    slot.wait_until_free();
    if (Sums::holds(lane)) {
      float2* part = shared.part(slot.index, at.unit);
#pragma unroll
      for (int set = 0; set < Sums::kSets; ++set)
        part[Sums::pair(set, lane)] = {sums.of[set][0], sums.of[set][1]};
    }
    __syncwarp();
    if (lane == 0) {
      const UnitRange strip = plan.units_of(at.strip);
      slot.arrive(at.unit + 1 == strip.end ? shared.args.layout.strip_units - strip.count() : 0);
    }
    at.advance(plan, kPassWarps);
    ring.release();
  }
  ring.end_stage(units);
}

template <int kTokens>
__device__ __forceinline__ void run_linear(const PassShared<kTokens>& shared,
                                           const PassStage& stage, unsigned index,
                                           unsigned strips_before, Ring& ring, Patience& patience,
                                           int warp, int lane) {
  const PassArgs& args = shared.args;
  const BlockPlan& plan = shared.plans()[stage.plan];
  const StreamedWeight& shape = plan.plan.shape;
  sync_computing();  // the records of the stage before are used up
  const bool logits = stage.kind == StageKind::logits;
  const StageInput input{stage.input, stage.order,
                         shared.parity(stage.input_buffer, stage.input_parity),
                         logits ? args.rows.logits_count : args.rows.count};
  const auto stage_with = [&]<WeightKind kKind, bool kSimple>() {
    stage_rows<kKind, kTokens, kSimple>(input, plan, logits ? args.rows.logits_rows : nullptr,
                                        shared.records(), patience, warp, lane);
  };
  const auto multiply = [&]<WeightKind kKind, bool kSimple>() {
    multiply_units<kKind, kTokens, kSimple>(shared, plan, shared.records(), strips_before, ring,
                                            lane);
  };
  const auto run = [&]<WeightKind kKind>() {
    if (in_own_order(shape, stage.order)) {
      stage_with.template operator()<kKind, true>();
    } else {
      stage_with.template operator()<kKind, false>();
    }
    sync_computing();
    if (threadIdx.x == 0) store_release(shared_address(shared.begun()), index);
    if ((kKind == WeightKind::nibble && shape.block_bytes != kSimpleNibbleBytes) ||
        (kKind == WeightKind::byte && (shape.runs > 1 || shape.float_scales))) {
      multiply.template operator()<kKind, false>();
    } else {
      multiply.template operator()<kKind, true>();
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
