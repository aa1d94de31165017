#include <algorithm>

#include "pass.h"

// How a pass is shared out, and what lies where in shared memory.
namespace guanaco::cuda {
namespace {

constexpr int kMostSlots = 4 * kPassWarps;  // of the ring
// Of shared memory: for the staged input of eight tokens this share of what other parts leave. Less
// if blocks are long, which are more units.
constexpr double kRecordsShare = 0.645, kLongRecordsShare = 0.3;
constexpr int kOtherShared = 72 * 1024;
constexpr int kSystemShared = 1024;  // of each thread block
// For one token all of a strip is one group if its staged input and the sums of its units take no
// more than this share of the same.
constexpr double kOneTokenShare = 0.42;
// A unit takes this share of shared memory at most (if a piece is no longer), or what slots have to
// hold for attention.
constexpr int kUnitShare = 54, kLeastUnit = 4096;
// Bytes that are copied at once, of a thread block: of the stage that it multiplies, and of stages
// ahead of it. The latter leave memory to who is late, and L2 to the words that all wait for.
constexpr int under_way(int tokens) { return (tokens == 1 ? 96 : 40) * 1024; }
constexpr int under_way_ahead(int tokens) { return (tokens == 1 ? 24 : 14) * 1024; }

int divide_up(int a, int b) { return (a + b - 1) / b; }

/// Of a unit's sums in shared memory.
int pair_bytes(int tokens) { return 8 * tokens * int(sizeof(float2)); }

bool has_codes(const StreamedWeight& weight) {
  return weight.kind == WeightKind::nibble || weight.kind == WeightKind::byte;
}
bool has_quarters(const StreamedWeight& weight) {
  return weight.kind == WeightKind::half || weight.kind == WeightKind::bfloat;
}
int record_size(const StreamedWeight& weight, int tokens) {
  return tokens == 1 ? record_bytes<1>(has_codes(weight))
                     : record_bytes<kStreamRows>(has_codes(weight));
}

}  // namespace

LinearPlan plan_linear(const StreamedWeight& weight, int tokens, const DeviceLimits& limits) {
  LinearPlan plan;
  plan.shape = weight;
  plan.shape.blocks = nullptr;
  plan.shape.order = nullptr;
  plan.shape.bias = nullptr;
  plan.pieces = has_quarters(weight) ? 4 : 1;
  plan.piece_bytes = weight.block_bytes / plan.pieces;
  // Units begin at multiples of 16 bytes, as copies have to.
  const int unit_bytes = std::max(limits.shared_bytes_block / kUnitShare, kLeastUnit);
  plan.unit_pieces = std::max(1, unit_bytes / plan.piece_bytes);
  if (plan.piece_bytes % 16 != 0) plan.unit_pieces = plan.unit_pieces / 2 * 2;
  const int unit_blocks = std::max(1, plan.unit_pieces / plan.pieces);
  const double share = weight.kind == WeightKind::nibble ? kRecordsShare : kLongRecordsShare;
  const double budget = share * (limits.shared_bytes_block - kOtherShared);
  const int most_blocks = int(budget) / record_size(weight, kStreamRows);
  const int units = divide_up(weight.strip_blocks, unit_blocks);
  const int most = std::max(1, most_blocks / unit_blocks);  // units of a group
  plan.groups = std::min(divide_up(units, most), limits.multiprocessors);
  plan.group_blocks = divide_up(units, plan.groups) * unit_blocks;
  plan.groups = divide_up(weight.strip_blocks, plan.group_blocks);
  plan.sum_units = plan.strip_units();
  const int strip_units = divide_up(weight.strip_blocks * plan.pieces, plan.unit_pieces);
  const int sums_bytes = (strip_slots(1) + 1) * strip_units * pair_bytes(1);
  // What the ring's least slots and the other parts leave.
  const int left = limits.shared_bytes_block -
                   std::max(kOtherShared,
                            kPassWarps * std::max(unit_bytes, plan.unit_pieces * plan.piece_bytes));
  if (tokens == 1 &&
      weight.strip_blocks * record_size(weight, 1) + sums_bytes <= kOneTokenShare * left) {
    plan.groups = 1;
    plan.group_blocks = divide_up(weight.strip_blocks, unit_blocks) * unit_blocks;
  }
  return plan;
}

int attention_splits(const AttentionShape& shape, const DeviceLimits& limits) {
  return std::clamp(limits.multiprocessors / shape.heads, 1, 8);
}

PassLayout plan_pass(const std::vector<LinearPlan>& plans, int tokens, const AttentionShape& shape,
                     const DeviceLimits& limits) {
  PassLayout layout;
  layout.slot_bytes = 2 * 16 * shape.head_dim;  // an octet of keys and of values
  layout.records_bytes =
      kPassWarps * (shape.head_dim + 4) * int(sizeof(float));  // partials lie there too
  for (const LinearPlan& plan : plans) {
    layout.records_bytes =
        std::max(layout.records_bytes, std::min(plan.group_blocks, plan.shape.strip_blocks) *
                                           record_size(plan.shape, tokens));
    layout.slot_bytes = std::max(layout.slot_bytes, plan.unit_pieces * plan.piece_bytes);
    layout.strip_units = std::max(layout.strip_units, plan.strip_units());
  }
  layout.slot_bytes = divide_up(layout.slot_bytes, 16) * 16;

  // Sizes of what lies behind the ring; each begins at a multiple of 16.
  int at = 0;
  const auto take = [&](int& offset, int bytes) {
    offset = at;
    at += divide_up(bytes, 16) * 16;
  };
  layout.records_bytes = divide_up(layout.records_bytes, 16) * 16;
  take(layout.records, layout.records_bytes);
  take(layout.factors, 2 * tokens * int(sizeof(float)));
  take(layout.angles, tokens * shape.head_dim / 2 * int(sizeof(float2)));
  take(layout.plans, int(plans.size()) * kBlockPlanBytes);
  take(layout.stages, 2 * (kPassWarps + kFinishWarps) * int(sizeof(PassStage)));
  take(layout.parts, strip_slots(tokens) * layout.strip_units * pair_bytes(tokens));
  take(layout.tail, layout.strip_units * pair_bytes(tokens));
  take(layout.rows, tokens * kRowPlanBytes);
  take(layout.barriers, 2 * (kMostSlots + strip_slots(tokens)) * 8);  // full and free
  take(layout.freed, strip_slots(tokens) * int(sizeof(unsigned)));
  take(layout.begun, kCounters * int(sizeof(unsigned)));
  const int rest =
      std::min(limits.shared_bytes_block, limits.shared_bytes_multiprocessor - kSystemShared) - at;
  // Even, so that a slot is always the same feeding warp's; enough that each warp that computes has
  // one; and twice the units under way. Then a parity tells every one of them what it waits for.
  layout.slots = std::clamp(rest / layout.slot_bytes / 2 * 2, 0, kMostSlots);
  if (layout.slots < kPassWarps) layout.slots = 0;
  const auto odd = [&](int bytes) {
    return std::max(1, (std::min(bytes / layout.slot_bytes, layout.slots / 2) - 1) | 1);
  };
  layout.under_way = odd(under_way(tokens));
  layout.under_way_ahead = odd(under_way_ahead(tokens));
  const int ring = layout.slots * layout.slot_bytes;
  for (int* offset : {&layout.records, &layout.parts, &layout.tail, &layout.factors, &layout.angles,
                      &layout.plans, &layout.stages, &layout.rows, &layout.barriers, &layout.freed,
                      &layout.begun})
    *offset += ring;
  layout.bytes = ring + at;
  return layout;
}

PacketBytes packet_bytes(const std::vector<LinearPlan>& plans, const AttentionShape& shape,
                         int tokens, const DeviceLimits& limits) {
  const std::size_t pairs = std::size_t(8 * tokens) * sizeof(ulonglong2);
  PacketBytes bytes;
  for (const LinearPlan& plan : plans) {
    bytes.strips = std::max(bytes.strips, 2 * std::size_t(limits.multiprocessors) *
                                              std::size_t(plan.strip_units()) * pairs);
    bytes.groups = std::max(
        bytes.groups, 2 * std::size_t(plan.groups - 1) * std::size_t(plan.shape.strips) * pairs);
  }
  bytes.splits = std::size_t(tokens) * std::size_t(shape.heads) *
                 std::size_t(attention_splits(shape, limits)) * std::size_t(shape.head_dim + 2) *
                 sizeof(unsigned long long);
  return bytes;
}

}  // namespace guanaco::cuda
