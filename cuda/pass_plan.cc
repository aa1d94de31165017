#include <algorithm>

#include "pass.h"

// How a pass is shared out, and what lies where in shared memory.
namespace guanaco::cuda {
namespace {

constexpr int kMostSlots = 4 * kPassWarps;  // of the ring
// Of shared memory: for the staged input of eight tokens this share of what other parts leave. Less
// if blocks are long, which are more units.
constexpr double kRecordsShare = 0.645, kLongRecordsShare = 0.58;
constexpr int kOtherShared = 72 * 1024;
constexpr int kSystemShared = 1024;  // of each thread block
// A unit takes this share of shared memory at most (if a piece is no longer): so 32 of them fit in,
// or 16 and the staged input of eight tokens.
constexpr int kUnitShare = 36;
constexpr int kUnderWay = 32 * 1024;  // bytes that are copied at once, of a thread block

int divide_up(int a, int b) { return (a + b - 1) / b; }

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

LinearPlan plan_linear(const StreamedWeight& weight, const DeviceLimits& limits) {
  LinearPlan plan;
  plan.shape = weight;
  plan.shape.blocks = nullptr;
  plan.shape.order = nullptr;
  plan.shape.bias = nullptr;
  plan.pieces = has_quarters(weight) ? 4 : 1;
  plan.piece_bytes = weight.block_bytes / plan.pieces;
  // Units begin at multiples of 16 bytes, as copies have to.
  const int unit_bytes = limits.shared_bytes_block / kUnitShare;
  plan.unit_pieces = std::max(1, unit_bytes / plan.piece_bytes);
  if (plan.piece_bytes % 16 != 0) plan.unit_pieces = plan.unit_pieces / 2 * 2;
  const int unit_blocks = std::max(1, plan.unit_pieces / plan.pieces);
  // The groups are those of eight tokens for one token too: sums are the same, bit for bit.
  const double share = weight.kind == WeightKind::nibble ? kRecordsShare : kLongRecordsShare;
  const double budget = share * (limits.shared_bytes_block - kOtherShared);
  const int most_blocks = int(budget) / record_size(weight, kStreamRows);
  const int units = divide_up(weight.strip_blocks, unit_blocks);
  const int most = std::max(1, most_blocks / unit_blocks);  // units of a group
  plan.groups = std::min(divide_up(units, most), limits.multiprocessors);
  plan.group_blocks = divide_up(units, plan.groups) * unit_blocks;
  plan.groups = divide_up(weight.strip_blocks, plan.group_blocks);
  return plan;
}

int attention_splits(const AttentionShape& shape, const DeviceLimits& limits) {
  return std::clamp(limits.multiprocessors / shape.heads, 1, 8);
}

PassLayout plan_pass(const std::vector<LinearPlan>& plans, int tokens, const AttentionShape& shape,
                     int hidden, const DeviceLimits& limits) {
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
  const int pair_bytes = 8 * tokens * int(sizeof(float2));
  layout.squares_stride = divide_up(divide_up(hidden, kBlockInputs), 16) * 16;

  // Sizes of what lies behind the ring; each begins at a multiple of 16.
  int at = 0;
  const auto take = [&](int& offset, int bytes) {
    offset = at;
    at += divide_up(bytes, 16) * 16;
  };
  layout.records_bytes = divide_up(layout.records_bytes, 16) * 16;
  take(layout.records, layout.records_bytes);
  take(layout.squares, 2 * tokens * layout.squares_stride * int(sizeof(float)));
  take(layout.angles, tokens * shape.head_dim / 2 * int(sizeof(float2)));
  take(layout.plans, int(plans.size()) * kBlockPlanBytes);
  take(layout.stages, 2 * (kPassWarps + kFinishWarps) * int(sizeof(PassStage)));
  take(layout.parts, strip_slots(tokens) * layout.strip_units * pair_bytes);
  take(layout.rows, tokens * kRowPlanBytes);
  take(layout.barriers, 2 * (kMostSlots + strip_slots(tokens)) * 8);  // full and free
  take(layout.freed, strip_slots(tokens) * int(sizeof(unsigned)));
  const int rest =
      std::min(limits.shared_bytes_block, limits.shared_bytes_multiprocessor - kSystemShared) - at;
  layout.slots = std::clamp(rest / layout.slot_bytes / kPassWarps * kPassWarps, 0, kMostSlots);
  // A feeding warp can tell by a parity whether a copy has arrived if there are twice as many slots
  // as copies under way.
  const int under_way = kUnderWay / layout.slot_bytes;
  layout.under_way = std::max(1, (std::min(under_way, layout.slots / 2) - 1) | 1);
  const int ring = layout.slots * layout.slot_bytes;
  for (int* offset : {&layout.records, &layout.parts, &layout.squares, &layout.angles,
                      &layout.plans, &layout.stages, &layout.rows, &layout.barriers, &layout.freed})
    *offset += ring;
  layout.bytes = ring + at;
  return layout;
}

PacketBytes packet_bytes(const std::vector<LinearPlan>& plans, const AttentionShape& shape,
                         int tokens, const DeviceLimits& limits) {
  const std::size_t pairs = std::size_t(8 * tokens) * sizeof(ulonglong2);
  PacketBytes bytes;
  bytes.strips = 2 * std::size_t(limits.multiprocessors) * pairs;
  for (const LinearPlan& plan : plans)
    bytes.groups = std::max(
        bytes.groups, 2 * std::size_t(plan.groups - 1) * std::size_t(plan.shape.strips) * pairs);
  bytes.splits = std::size_t(tokens) * std::size_t(shape.heads) *
                 std::size_t(attention_splits(shape, limits)) * std::size_t(shape.head_dim + 2) *
                 sizeof(unsigned long long);
  return bytes;
}

}  // namespace guanaco::cuda
