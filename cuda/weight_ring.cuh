#pragma once

// How weights and cached keys and values come into shared memory.
//
// Every warp that computes has a ring of its own. What it will read in the whole pass is known in
// advance: a share of every linear, in one or two contiguous runs, and its part of the cache.
// Feeding warps walk through these programs and start the next copy as soon as a slot is free. So
// the copies run ahead across stages, and the memory is busy while the warps wait for each other's
// results. A bulk copy takes some 270 cycles of the warp that starts it (bench/NOTES.md), which is
// why warps that compute do not do it themselves.

#include "device.cuh"
#include "pass.h"

namespace guanaco::cuda {

inline constexpr int kPassThreads = kPassWarps * kWarp;  ///< that compute
inline constexpr int kFeedWarps = 4;
inline constexpr int kRingsFed = kPassWarps / kFeedWarps;  ///< by one warp, a lane each
inline constexpr int kOctet = 8;  ///< positions of the cache that one copy brings

/// Pieces [begin, begin + count) of a thread block's group of a linear, beginning in `strip` at
/// `column`.
struct Share {
  int begin, count, strip, column;
};

/// A LinearPlan as this thread block sees it. Its range [begin, end) is a tail of a strip that
/// another thread block owns, [begin, middle), which is worked on first, and the rest.
struct BlockPlan {
  LinearPlan plan;
  int group, group_piece;  ///< first piece of the group in a strip
  int width;               ///< pieces of a strip in the group
  int begin, middle, end;
  int first_strip;              ///< of the rest
  Share shares[2][kPassWarps];  ///< of the tail and of the rest

  __device__ const std::uint8_t* address(const std::uint8_t* blocks, int strip, int column) const {
    const int strip_pieces = plan.shape.strip_blocks * plan.pieces;
    return blocks + (std::size_t(strip) * strip_pieces + group_piece + column) * plan.piece_bytes;
  }
};

static_assert(sizeof(BlockPlan) == kBlockPlanBytes);

/// Fills in this thread block's plan. Called by kPassWarps threads, one a warp's share.
__device__ inline void share_out(BlockPlan& block, const LinearPlan& plan, int warp) {
  const int blocks = gridDim.x, groups = plan.groups;
  int group = 0;
  while ((group + 1) * blocks / groups <= int(blockIdx.x)) ++group;
  const int first = group * blocks / groups, last = (group + 1) * blocks / groups;
  const int members = min(last - first, plan.shape.strips), member = int(blockIdx.x) - first;
  const int group_first = group * plan.group_blocks;
  const int width =
      (min(plan.shape.strip_blocks, group_first + plan.group_blocks) - group_first) * plan.pieces;
  const long long total = static_cast<long long>(plan.shape.strips) * width;
  const bool active = member < members;
  const int begin = active ? int(total * member / members) : 0;
  const int end = active ? int(total * (member + 1) / members) : 0;
  const int middle = (begin + width - 1) / width * width;
  const auto fill = [&](int portion, int at, int from, int to) {
    block.shares[portion][warp] = {at + from, to - from, (at + from) / width, (at + from) % width};
  };
  const int tail = middle - begin, rest = end - middle;
  fill(0, begin, tail * warp / kPassWarps, tail * (warp + 1) / kPassWarps);
  fill(1, middle, (rest * warp + kPassWarps - 1) / kPassWarps,
       (rest * (warp + 1) + kPassWarps - 1) / kPassWarps);
  if (warp != 0) return;
  block.plan = plan;
  block.group = group;
  block.group_piece = group_first * plan.pieces;
  block.width = width;
  block.begin = begin;
  block.middle = middle;
  block.end = end;
  block.first_strip = middle / width;
}

/// What the attend stage of every layer needs of a row.
struct RowPlan {
  __half* const* table;
  int position, octets, splits;
  int first_row, first_position;  ///< of the row's sequence in the pass
};

static_assert(sizeof(RowPlan) == kRowPlanBytes);

/// A warp's part of attention: octets [begin, end) of one row, for one head.
struct AttendUnit {
  int row = 0, head = 0, split = 0, splits = 0, begin = 0, end = 0;
};

/// The units of a pass, in order: heads and splits of the first row, of the second, ..., and one
/// for each row that is not in use. False if there is no such unit.
template <int kTokens>
__device__ inline bool find_unit(const RowPlan* rows, int count, int heads, int index, int warp,
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
  const int first = row.octets * unit.split / row.splits;
  const int octets = row.octets * (unit.split + 1) / row.splits - first;
  unit.begin = first + octets * warp / kPassWarps;
  unit.end = first + octets * (warp + 1) / kPassWarps;
  return true;
}

/// What the ring needs to know of a stage.
struct FeedStage {
  const std::uint8_t* blocks;
  int plan;  ///< of a linear; kFeedCache; or -1: nothing is copied
  int layer;
};
static_assert(sizeof(FeedStage) == kFeedStageBytes);
inline constexpr int kFeedCache = -2;

/// What the programs of a pass are made of.
struct Feed {
  const PassArgs& args;
  const FeedStage* stages;
  const BlockPlan* plans;
  const RowPlan* rows;
};

/// The program of one warp, as runs of bytes that are copied `step` at a time.
template <int kTokens>
class Program {
 public:
  __device__ Program(const Feed& feed, int warp) : feed_(feed), warp_(warp) {}

  std::uintptr_t from = 0;  ///< of the next copy
  int left = 0, step = 0;   ///< bytes of the run

  /// To the next run. False at the end of the pass.
  __device__ bool advance() {
    while (left == 0) {
      if (in_cache_) {
        if (copies_ > 0) {
          next_octet();
        } else {
          enter_unit(unit_index_ + int(gridDim.x));
        }
      } else if (pieces_ > 0) {
        next_run();
      } else if (portion_ == 0) {
        enter_share(1);
      } else {
        if (stage_ + 1 >= feed_.args.stage_count) return false;
        const int plan = feed_.stages[++stage_].plan;
        if (plan == kFeedCache) {
          enter_unit(blockIdx.x);
        } else if (plan >= 0) {
          enter_share(0);
        }
      }
    }
    return true;
  }

 private:
  __device__ void enter_share(int portion) {
    const BlockPlan& plan = feed_.plans[feed_.stages[stage_].plan];
    const Share& share = plan.shares[portion][warp_];
    portion_ = portion;
    pieces_ = share.count;
    strip_ = share.strip;
    column_ = share.column;
  }
  /// A run ends where a strip's part of the group does, unless there is but one group.
  __device__ void next_run() {
    const BlockPlan& plan = feed_.plans[feed_.stages[stage_].plan];
    const int pieces = plan.plan.groups == 1 ? pieces_ : min(pieces_, plan.width - column_);
    from = reinterpret_cast<std::uintptr_t>(
        plan.address(feed_.stages[stage_].blocks, strip_, column_));
    left = pieces * plan.plan.piece_bytes;
    step = plan.plan.copy_pieces * plan.plan.piece_bytes;
    pieces_ -= pieces;
    column_ = 0;
    ++strip_;
  }
  __device__ void enter_unit(int index) {
    unit_index_ = index;
    in_cache_ = find_unit<kTokens>(feed_.rows, feed_.args.rows.count, feed_.args.shape.heads, index,
                                   warp_, unit_);
    octet_ = unit_.begin;
    copies_ = in_cache_ ? 2 * (unit_.end - unit_.begin) : 0;
  }
  /// The keys, then the values, of one octet.
  __device__ void next_octet() {
    const AttentionShape& shape = feed_.args.shape;
    const int is_value = copies_ % 2, group = shape.heads / shape.kv_heads;
    const int plane = is_value * shape.kv_heads + unit_.head / group;
    const auto* table = reinterpret_cast<const unsigned long long*>(feed_.rows[unit_.row].table);
    const auto* page = reinterpret_cast<const __half*>(__ldg(table + octet_ / 4));
    from = reinterpret_cast<std::uintptr_t>(
        page + feed_.stages[stage_].layer * shape.layer_elements() +
        std::size_t(plane * 32 + octet_ % 4 * kOctet) * shape.head_dim);
    left = step = kOctet * shape.head_dim * int(sizeof(__half));
    octet_ += is_value;
    --copies_;
  }

  const Feed& feed_;
  const int warp_;
  int stage_ = -1, portion_ = 1;
  int pieces_ = 0, strip_ = 0, column_ = 0;  ///< of the share, behind the run
  bool in_cache_ = false;
  int unit_index_ = 0, octet_ = 0, copies_ = 0;
  AttendUnit unit_;
};

/// What a feeding warp does in a pass: lane l follows the program of ring first + l. rings and
/// barriers (of full slots, behind them of free ones) as PassLayout says. No more copies are under
/// way than keep the memory busy: behind more, the words that thread blocks wait for would queue.
/// The ring still fills up while its warp waits.
template <int kTokens>
__device__ __forceinline__ void feed_rings(const Feed& feed, std::uint32_t rings,
                                           std::uint32_t barriers, int first, int lane) {
  const int slots = feed.args.layout.slots, slot_bytes = feed.args.layout.slot_bytes;
  constexpr std::uint32_t kBarrier = sizeof(Barrier);
  const int ring = first + lane % kRingsFed;
  Program<kTokens> program(feed, ring);
  bool more = lane < kRingsFed;
  int left = slots, parity = 1;  // slots to the end of the ring
  std::uint32_t slot = rings + ring * slots * slot_bytes, full = barriers + ring * slots * kBarrier;
  const std::uint32_t to_free = kPassWarps * slots * kBarrier;
  // The oldest copy that has not been seen to arrive, and how many are under way.
  std::uint32_t oldest = full;
  int oldest_left = slots, oldest_parity = 0, under_way = 0;
  for (;;) {
    if (more && program.left == 0) more = program.advance();
    if (under_way > 0 && Barrier::passed(oldest, oldest_parity)) {
      --under_way;
      oldest += kBarrier;
      if (--oldest_left == 0) {
        oldest -= slots * kBarrier;
        oldest_left = slots;
        oldest_parity ^= 1;
      }
    }
    const bool ready = more && under_way < feed.args.layout.copies_under_way &&
                       Barrier::passed(full + to_free, parity);
    unsigned all = __ballot_sync(~0u, ready);
    if (all == 0) {
      if (__ballot_sync(~0u, more) == 0) break;
      __nanosleep(100);
      continue;
    }
    const int bytes = min(program.left, program.step);
    const std::uintptr_t begin = program.from & ~std::uintptr_t(15);
    const unsigned copied = (unsigned(program.from - begin) + unsigned(bytes) + 15) & ~15u;
    const std::uint32_t to = slot, done = full;
    if (ready) {
      program.from += unsigned(bytes);
      program.left -= bytes;
      ++under_way;
      slot += slot_bytes;
      full += kBarrier;
      if (--left == 0) {
        slot -= slots * slot_bytes;
        full -= slots * kBarrier;
        left = slots;
        parity ^= 1;
      }
    }
    for (; all != 0; all &= all - 1) {
      const int r = __ffs(int(all)) - 1;
      copy_async(__shfl_sync(~0u, to, r), __shfl_sync(~0u, begin, r), __shfl_sync(~0u, copied, r),
                 __shfl_sync(~0u, done, r), lane);
    }
  }
#if __CUDA_ARCH__ < 900
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/// A warp's ring, as the warp that uses it sees it.
class Ring {
 public:
  __device__ Ring(std::uint8_t* slots, Barrier* full, Barrier* free, int count, int slot_bytes,
                  int lane)
      : slot_(slots),
        full_(full),
        to_free_(int(free - full)),
        count_(count),
        slot_bytes_(slot_bytes),
        left_(count),
        lane_(lane) {}

  /// The next slot, once its copy has arrived. What was copied begins at the source's place in 16
  /// bytes.
  __device__ __forceinline__ std::uint8_t* wait() {
    full_->wait(parity_);
    return slot_;
  }
  /// The slot is used up.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane_ == 0) full_[to_free_].arrive();
    ++full_;
    slot_ += slot_bytes_;
    if (--left_ == 0) {
      full_ -= count_;
      slot_ -= count_ * slot_bytes_;
      left_ = count_;
      parity_ ^= 1;
    }
  }

 private:
  std::uint8_t* slot_;
  Barrier* full_;
  const int to_free_, count_, slot_bytes_;
  int left_;  ///< slots to the end of the ring
  const int lane_;
  int parity_ = 0;
};

}  // namespace guanaco::cuda
