#include <algorithm>

#include "pass.h"

// How a pass is shared out, and what lies where in shared memory.
namespace guanaco::cuda {
namespace {

constexpr int kMostSlots = 8;  // of a ring
// Of shared memory: for the staged input of eight tokens this share of what other parts leave.
constexpr double kRecordsShare = 0.645;
constexpr int kOtherShared = 72 * 1024;
constexpr int kSystemShared = 1024;           // of each thread block
constexpr int kCopyBytes = 2200;              // that a copy brings at most, if a piece is no longer
constexpr int kOneTokenUnderWay = 36 * 1024;  // bytes of all rings of a thread block
constexpr int kTokensUnderWay = 72 * 1024;

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
/// Most strips of a plan that one thread block finishes or begins.
int block_strips(const LinearPlan& plan, int multiprocessors) {
  const int members = std::max(1, multiprocessors / plan.groups);
  return divide_up(plan.shape.strips, std::min(members, plan.shape.strips)) + 2;
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
  // The groups are those of eight tokens for one token too: sums are the same, bit for bit.
  const double budget = kRecordsShare * (limits.shared_bytes_block - kOtherShared);
  const int most = std::max(1, int(budget) / record_size(weight, kStreamRows));
  plan.groups = std::min(divide_up(weight.strip_blocks, most), limits.multiprocessors);
  plan.group_blocks = divide_up(weight.strip_blocks, plan.groups);
  plan.groups = divide_up(weight.strip_blocks, plan.group_blocks);
  return plan;
}

int attention_splits(const AttentionShape& shape, const DeviceLimits& limits) {
  return std::clamp(limits.multiprocessors / shape.heads, 1, 8);
}

PassLayout plan_pass(std::vector<LinearPlan>& plans, int stages, int tokens,
                     const AttentionShape& shape, int hidden, const DeviceLimits& limits) {
  PassLayout layout;
  int strips = 1, residual_strips = 1, longest = 1;
  layout.slot_bytes = 16 * shape.head_dim;  // an octet of keys
  layout.records_bytes =
      kPassWarps * (shape.head_dim + 4) * int(sizeof(float));  // partials lie there too
  for (LinearPlan& plan : plans) {
    layout.records_bytes =
        std::max(layout.records_bytes, plan.group_blocks * record_size(plan.shape, tokens));
    strips = std::max(strips, block_strips(plan, limits.multiprocessors));
    if (plan.shape.strips == divide_up(hidden, kStripOutputs))
      residual_strips = std::max(residual_strips, block_strips(plan, limits.multiprocessors));
    longest = std::max(longest, plan.shape.strip_blocks);
    plan.copy_pieces = std::max(1, kCopyBytes / plan.piece_bytes);
    layout.slot_bytes = std::max(layout.slot_bytes, plan.copy_pieces * plan.piece_bytes + 16);
  }
  layout.slot_bytes = divide_up(layout.slot_bytes, 16) * 16;
  const int buffers = tokens == 1 ? 2 : 1, pair_bytes = 8 * tokens * int(sizeof(float2));
  layout.squares_stride = longest;

  // Sizes of what lies behind the ring; each begins at a multiple of 16.
  int at = 0;
  const auto take = [&](int& offset, int bytes) {
    offset = at;
    at += divide_up(bytes, 16) * 16;
  };
  layout.records_bytes = divide_up(layout.records_bytes, 16) * 16;
  take(layout.records, buffers * layout.records_bytes);
  take(layout.parts, kPassWarps * kPartsOfWarp * pair_bytes);
  take(layout.addend, residual_strips * pair_bytes);
  take(layout.squares, buffers * tokens * longest * int(sizeof(float)));
  take(layout.angles, tokens * shape.head_dim / 2 * int(sizeof(float2)));
  take(layout.feed, stages * kFeedStageBytes);
  take(layout.plans, int(plans.size()) * kBlockPlanBytes);
  take(layout.stages, 2 * kPassWarps * int(sizeof(PassStage)));
  take(layout.arrived, (strips + 1) * int(sizeof(int)));
  take(layout.rows, tokens * kRowPlanBytes);
  take(layout.barriers, kPassWarps * kMostSlots * 16);  // full and free
  const int rest =
      std::min(limits.shared_bytes_block, limits.shared_bytes_multiprocessor - kSystemShared) - at -
      16;
  layout.slots = std::clamp(rest / (kPassWarps * layout.slot_bytes), 0, kMostSlots);
  const int ring = kPassWarps * layout.slots * layout.slot_bytes;
  const int under_way = tokens == 1 ? kOneTokenUnderWay : kTokensUnderWay;
  // Never more than slots: a feeder tells the phases of a slot apart by their parity.
  layout.copies_under_way =
      std::clamp(under_way / (kPassWarps * layout.slot_bytes), 1, std::max(1, layout.slots));
  for (int* offset : {&layout.records, &layout.parts, &layout.addend, &layout.squares,
                      &layout.angles, &layout.feed, &layout.plans, &layout.stages, &layout.arrived,
                      &layout.rows, &layout.barriers})
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
