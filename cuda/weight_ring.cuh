#pragma once

// How weights and cached keys and values come into shared memory.
//
// What a thread block will read in a whole pass is known in advance: its units of every linear (a
// few kilobytes of one strip each) and of the cache. They are numbered in the order in which they
// are used, and all pass through one ring: unit p lies in slot p % slots and is worked on by warp p
// % kPassWarps. So all warps end a stage together, however unevenly the memory serves them. Feeding
// warps start the copies as slots become free, across the ends of stages: the memory is busy while
// the warps wait for other thread blocks.

#include "device.cuh"
#include "pass.h"

namespace guanaco::cuda {

inline constexpr int kPassThreads = kPassWarps * kWarp;  ///< that compute
inline constexpr int kOctet = 8;                         ///< positions of the cache in a unit

/// Units [begin, end) of a strip.
struct UnitRange {
  int begin, end;
  __device__ int count() const { return end - begin; }
};

/// A LinearPlan as this thread block sees it. Of the group's units, counted strip by strip, it
/// works on [begin, end). The first may be the tail of a strip that another thread block owns.
struct BlockPlan {
  LinearPlan plan;
  int group, group_piece;  ///< first piece of the group in a strip
  int width;               ///< pieces of a strip in the group
  int strip_units;         ///< units of a strip in the group
  int begin, end;
  int first_strip, strip_count;  ///< that it has units of

  /// Of its last strip, the units that the next thread block works on.
  __device__ __forceinline__ UnitRange tail() const {
    const int last = first_strip + strip_count - 1;
    // None if the strip is itself a tail, or all of it is here.
    if (strip_count == 0 || begin > last * strip_units) return {strip_units, strip_units};
    return {end - last * strip_units, strip_units};
  }
  /// Its units of a strip, counted in the strip.
  __device__ __forceinline__ UnitRange units_of(int strip) const {
    const int first = strip * strip_units;
    return {max(begin - first, 0), min(end - first, strip_units)};
  }
};
static_assert(sizeof(BlockPlan) == kBlockPlanBytes);

/// A unit of a linear: its strip and its place there. Advances by any number of units.
struct UnitPlace {
  int strip, unit;

  /// The index-th of this thread block.
  __device__ UnitPlace(const BlockPlan& block, int index)
      : strip((block.begin + index) / block.strip_units),
        unit((block.begin + index) % block.strip_units) {}

  __device__ __forceinline__ void advance(const BlockPlan& block, int by) {
    for (unit += by; unit >= block.strip_units; unit -= block.strip_units) ++strip;
  }
  /// First piece, in the group's part of the strip, and how many.
  __device__ __forceinline__ int column(const BlockPlan& block) const {
    return unit * block.plan.unit_pieces;
  }
  __device__ __forceinline__ int pieces(const BlockPlan& block) const {
    return min(block.plan.unit_pieces, block.width - column(block));
  }
};

__device__ inline void share_out(BlockPlan& block, const LinearPlan& plan) {
  const int blocks = gridDim.x, groups = plan.groups;
  int group = 0;
  while ((group + 1) * blocks / groups <= int(blockIdx.x)) ++group;
  const int first = group * blocks / groups, last = (group + 1) * blocks / groups;
  const int members = min(last - first, plan.shape.strips), member = int(blockIdx.x) - first;
  const int group_first = group * plan.group_blocks;
  block.plan = plan;
  block.group = group;
  block.group_piece = group_first * plan.pieces;
  block.width =
      (min(plan.shape.strip_blocks, group_first + plan.group_blocks) - group_first) * plan.pieces;
  block.strip_units = (block.width + plan.unit_pieces - 1) / plan.unit_pieces;
  const long long total = static_cast<long long>(plan.shape.strips) * block.strip_units;
  const bool active = member < members;
  block.begin = active ? int(total * member / members) : 0;
  block.end = active ? int(total * (member + 1) / members) : 0;
  block.first_strip = block.begin / block.strip_units;
  block.strip_count = active ? (block.end - 1) / block.strip_units + 1 - block.first_strip : 0;
}

/// What the attend stage of every layer needs of a row.
struct RowPlan {
  __half* const* table;
  int position, octets, splits;
  int first_row, first_position;  ///< of the row's sequence in the pass
};
static_assert(sizeof(RowPlan) == kRowPlanBytes);

/// A thread block's part of attention: octets [begin, end) of one row, for one head.
struct AttendUnit {
  int row = 0, head = 0, split = 0, splits = 0, begin = 0, end = 0;
};

/// The parts of a pass, in order: heads and splits of the first row, of the second, ..., and one
/// for each row that is not in use. False if there is no such part.
template <int kTokens>
__device__ inline bool find_unit(const RowPlan* rows, int count, int heads, int index,
                                 AttendUnit& unit) {
  for (unit.row = 0; unit.row < kTokens; ++unit.row) {
    const int units = unit.row < count ? heads * rows[unit.row].splits : 1;
    if (index < units) break;
    index -= units;
  }
  if (unit.row == kTokens) return false;
  unit.begin = unit.end = 0;
  if (unit.row >= count) return true;
  const RowPlan& row = rows[unit.row];
  unit.splits = row.splits;
  unit.head = index / row.splits;
  unit.split = index % row.splits;
  unit.begin = row.octets * unit.split / row.splits;
  unit.end = row.octets * (unit.split + 1) / row.splits;
  return true;
}

/// Where somebody is in the ring: a slot, and how often the ring went round (its parity).
struct RingPlace {
  int slot, parity = 0;

  __device__ __forceinline__ void advance(int slots, int by) {
    for (slot += by; slot >= slots; slot -= slots) parity ^= 1;
  }
};

/// What the feeding warps follow.
struct Feed {
  const PassArgs& args;
  const BlockPlan* plans;
  const RowPlan* rows;
  std::uint32_t ring, full, free;  ///< addresses of the slots and of their barriers
  std::uint32_t begun;             ///< address of PassShared::begun
};

/// A feeding warp: of all units it starts the copies of every kFeedWarps-th. No more copies are
/// under way than keep the memory busy: behind more, the words that thread blocks wait for would
/// queue. Once it feeds a stage ahead of what is multiplied, fewer are: thread blocks that are late
/// get the more, and all wait for them.
template <int kTokens>
class Feeder {
 public:
  __device__ Feeder(const Feed& feed, int which, int lane)
      : feed_(feed), lane_(lane), ahead_(which), place_{which} {
    // Numbers under way are odd: one feeding warp waits for the other's copies, and neither runs
    // away.
    before_ = {which - feed.args.layout.under_way, 0};
    before_ahead_ = {which - feed.args.layout.under_way_ahead, 0};
  }

  __device__ void run() {
    const PassStage* const stages = feed_.args.stages;
    const auto fetch = [&](int index) {  // what comes before a stage's `order`
      return index < feed_.args.stage_count ? __ldg(reinterpret_cast<const uint4*>(stages + index))
                                            : uint4{};
    };
    uint4 next = fetch(0);
    for (; stage_ < feed_.args.stage_count; ++stage_) {
      PassStage what;
      *reinterpret_cast<uint4*>(&what) = next;
      next = fetch(stage_ + 1);  // arrives meanwhile
      if (what.kind == StageKind::attend) {
        feed_cache(what.layer);
      } else if (what.plan >= 0) {
        feed_linear(feed_.plans[what.plan], what.blocks);
      }
    }
    finish_copies();
  }

 private:
  __device__ __forceinline__ void feed_linear(const BlockPlan& block, const std::uint8_t* blocks) {
    const LinearPlan& plan = block.plan;
    const int units = block.end - block.begin;
    const std::size_t strip_bytes = std::size_t(plan.shape.strip_blocks) * plan.shape.block_bytes;
    const std::uint8_t* group = blocks + block.group_piece * plan.piece_bytes;
    UnitPlace at(block, ahead_);
    for (; ahead_ < units; ahead_ += kFeedWarps) {
      const std::uint32_t bytes = at.pieces(block) * plan.piece_bytes;
      const std::uint32_t slot = take_slot(bytes);
      copy(slot, group + at.strip * strip_bytes + at.column(block) * plan.piece_bytes, bytes);
      leave_slot();
      at.advance(block, kFeedWarps);
    }
    ahead_ -= units;
  }
  __device__ __forceinline__ void feed_cache(int layer) {
    const AttentionShape& shape = feed_.args.shape;
    const std::uint32_t bytes = kOctet * shape.head_dim * sizeof(__half);
    AttendUnit unit;
    for (int index = blockIdx.x;
         find_unit<kTokens>(feed_.rows, feed_.args.rows.count, shape.heads, index, unit);
         index += gridDim.x) {
      const int octets = unit.end - unit.begin, head = unit.head / (shape.heads / shape.kv_heads);
      for (; ahead_ < octets; ahead_ += kFeedWarps) {
        const int octet = unit.begin + ahead_;
        const auto* table = reinterpret_cast<const unsigned long long*>(feed_.rows[unit.row].table);
        const __half* page = reinterpret_cast<const __half*>(__ldg(table + octet / 4)) +
                             layer * shape.layer_elements();
        const auto plane = [&](int index_of_head) {
          return page + std::size_t(index_of_head * 32 + octet % 4 * kOctet) * shape.head_dim;
        };
        const std::uint32_t slot = take_slot(2 * bytes);
        copy(slot, plane(head), bytes);
        copy(slot + bytes, plane(head + shape.kv_heads), bytes);
        leave_slot();
      }
      ahead_ -= octets;
    }
  }

  /// The address of the next slot, once it is free and copies enough have arrived.
  __device__ __forceinline__ std::uint32_t take_slot(std::uint32_t bytes) {
    const PassLayout& layout = feed_.args.layout;
    constexpr std::uint32_t kBarrier = sizeof(Barrier);
    Barrier::wait(feed_.free + place_.slot * kBarrier, place_.parity ^ 1);
    const auto arrived = [&](const RingPlace& unit) {
      return unit.slot < 0 || Barrier::over(feed_.full + unit.slot * kBarrier, unit.parity);
    };
    // Copies overtake each other, so a later one's arrival says nothing of `before_`; and its
    // parity tells only because it was waited for in every round of the slot before.
    while (!arrived(before_) ||
           (int(load_acquire(feed_.begun)) < stage_ && !arrived(before_ahead_))) {
    }
    begin_copies(feed_.full + place_.slot * kBarrier, bytes);
    return feed_.ring + place_.slot * layout.slot_bytes;
  }
  __device__ __forceinline__ void copy(std::uint32_t to, const void* from, std::uint32_t bytes) {
    copy_async(to, from, bytes, feed_.full + place_.slot * std::uint32_t(sizeof(Barrier)), lane_);
  }
  __device__ __forceinline__ void leave_slot() {
    const int slots = feed_.args.layout.slots;
    end_copies(feed_.full + place_.slot * std::uint32_t(sizeof(Barrier)));
    place_.advance(slots, kFeedWarps);
    before_.advance(slots, kFeedWarps);
    before_ahead_.advance(slots, kFeedWarps);
  }

  const Feed& feed_;
  const int lane_;
  int stage_ = 0;
  int ahead_;        ///< its next unit, counted from the first of the stage
  RingPlace place_;  ///< of its next unit
  /// Of the unit that has to have arrived before, and of that in stages ahead; below 0: none yet.
  RingPlace before_, before_ahead_;
};

/// The ring as a warp that computes sees it.
class Ring {
 public:
  /// The ring lies at the begin of shared memory, `memory`.
  __device__ Ring(std::uint8_t* memory, const PassLayout& layout, int warp, int lane)
      : memory_(memory), layout_(layout), lane_(lane), ahead_(warp), place_{warp} {
    place_.advance(layout.slots, 0);
  }

  /// The warp's next unit, counted from the first of the stage.
  __device__ __forceinline__ int ahead() const { return ahead_; }
  /// The unit's slot, once its copy has arrived.
  __device__ __forceinline__ std::uint8_t* wait() const {
    // Another warp may still be at what the slot held before: a parity alone would not tell.
    Barrier::wait(free(), place_.parity ^ 1);
    Barrier::wait(barrier(), place_.parity);
    return memory_ + place_.slot * layout_.slot_bytes;
  }
  /// The slot is used up. To the warp's next unit.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ == 0) Barrier::arrive(free());
    place_.advance(layout_.slots, kPassWarps);
    ahead_ += kPassWarps;
  }
  /// The stage had so many units, for all warps together.
  __device__ __forceinline__ void end_stage(int units) { ahead_ -= units; }

 private:
  // Barriers as PassShared has them: of arrived copies, then of slots that are used up.
  __device__ __forceinline__ std::uint32_t barrier() const {
    return shared_address(memory_) + layout_.barriers +
           place_.slot * std::uint32_t(sizeof(Barrier));
  }
  __device__ __forceinline__ std::uint32_t free() const {
    return barrier() + layout_.slots * std::uint32_t(sizeof(Barrier));
  }

  std::uint8_t* const memory_;
  const PassLayout& layout_;
  const int lane_;
  int ahead_;
  RingPlace place_;
};

}  // namespace guanaco::cuda
