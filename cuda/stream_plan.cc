#include <algorithm>

#include "kernels.h"

namespace guanaco::cuda {
namespace {

constexpr int kConsumerWarps = 8;
constexpr int kAttendShared =
    20 * 1024;  // left to the attention kernel, so that it fits beside two blocks of this one
constexpr int kBlockReserve = 1024;  // the system's share of each block

int divide_up(int a, int b) { return (a + b - 1) / b; }

int record_size(const StreamedWeight& weight, int tokens) {
  const bool codes = weight.kind == WeightKind::nibble || weight.kind == WeightKind::byte;
  return tokens == 1 ? record_bytes<1>(codes) : record_bytes<kStreamRows>(codes);
}

/// Blocks of a strip whose input is staged at a time: all for one token; for several as many as
/// leave room for the ring.
int group_size(const StreamedWeight& weight, int tokens) {
  if (tokens == 1) return weight.strip_blocks;
  const int most = 96 * 1024 / record_size(weight, tokens);
  const int groups = divide_up(weight.strip_blocks, most);
  const int even = divide_up(divide_up(weight.strip_blocks, groups), 2) * 2;
  return std::min(even, weight.strip_blocks);
}

}  // namespace

StreamPlan plan_stream(LinearArgs& args, int tokens, const DeviceLimits& limits) {
  const StreamedWeight& weight = args.weight;
  args.group_blocks = group_size(weight, tokens);
  args.input_bytes = args.group_blocks * record_size(weight, tokens);
  const int slot_bytes = kConsumerWarps * kStripOutputs * tokens * int(sizeof(float));

  // For one token two blocks share a multiprocessor where they fit: the next kernel's first block
  // then comes in and loads as soon as one of this kernel's ends. For several the staged input
  // leaves room for one.
  StreamPlan plan;
  for (int resident = tokens == 1 ? 2 : 1; resident >= 1; --resident) {
    const int share =
        (limits.shared_bytes_multiprocessor - (resident == 2 ? kAttendShared : 0)) / resident -
        kBlockReserve;
    plan.blocks = resident * limits.multiprocessors;
    const int budget = std::min(share, limits.shared_bytes_block);
    for (args.step_blocks = 2 * kConsumerWarps; args.step_blocks >= kConsumerWarps;
         args.step_blocks /= 2) {
      const int step_bytes = args.step_blocks * weight.block_bytes;
      const int steps_a_strip = divide_up(args.group_blocks, args.step_blocks);
      // A step of the ring costs its bytes, two barriers, and now and then a slot for one more
      // strip in flight.
      const int room = budget - args.input_bytes - 256 - 4 * (slot_bytes + 4);
      args.ring_steps =
          std::min(32, room / (step_bytes + 16 + (slot_bytes + 4) / steps_a_strip + 1));
      args.slots = args.ring_steps / steps_a_strip + 3;
      plan.shared_bytes = args.ring_steps * (step_bytes + 16) + args.input_bytes +
                          args.slots * (slot_bytes + 4) + 256;
      if (args.ring_steps >= 4 || args.step_blocks == kConsumerWarps) break;
    }
    if (args.ring_steps >= 2) break;
  }
  args.range_unit = weight.strip_blocks % 2 == 0 ? 2 : 1;  // blocks that copies can begin at
  const int units = weight.strips * weight.strip_blocks / args.range_unit;
  plan.blocks = std::min(plan.blocks, units);
  args.range_units = units / plan.blocks;
  args.range_longer = units % plan.blocks;
  return plan;
}

std::size_t stream_scratch_bytes(const StreamedWeight& weight, const DeviceLimits& limits) {
  const int groups = divide_up(weight.strip_blocks, group_size(weight, kStreamRows));
  const std::size_t pair_bytes = 8 * kStreamRows * sizeof(float2);
  const std::size_t parts = std::size_t(most_stream_blocks(limits));
  const std::size_t group_parts = std::size_t(groups - 1) * std::size_t(weight.strips);
  return (parts + group_parts) * (pair_bytes + sizeof(unsigned));
}

}  // namespace guanaco::cuda
