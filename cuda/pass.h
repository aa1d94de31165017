#pragma once

// A pass of a few rows as one kernel (pass.cu): the stages as a list that all multiprocessors walk
// through together.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "layout.h"

namespace guanaco::cuda {

/// `norm` takes the residual stream as it is: for a stage that norms it and comes first.
enum class StageKind : int { embed, norm, attention_input, attend, residual, mlp_input, logits };

/// One stage of a pass. Vectors between stages are exchanged words (exchange.cuh), [tokens][width].
/// What writes the residual stream also writes it times the weights of the RMSNorm that follows,
/// and the sums of the squares of each strip: whoever reads it multiplies by one factor.
struct alignas(16) PassStage {
  // What feeding warps read: 16 bytes.
  const std::uint8_t* blocks = nullptr;  ///< of the linear
  std::int16_t plan = -1;                ///< its shape: index into the plans; -1: no linear
  std::int16_t layer = 0;
  StageKind kind = StageKind::embed;

  const int* order = nullptr;      ///< as StreamedWeight
  const float* bias = nullptr;     ///< as StreamedWeight
  const float* input = nullptr;    ///< [tokens][inputs]
  const float* squares = nullptr;  ///< of a normed input, [tokens][squares of a row]; or null
  const float* addend = nullptr;   ///< residual: what the product is added to, [tokens][hidden]
  float* output = nullptr;         ///< [tokens][width]; logits: [rows][vocab], plain floats
  // Of the residual stream: what else is written.
  float* normed = nullptr;          ///< [tokens][width]
  float* normed_squares = nullptr;  ///< [tokens][squares of a row]
  const float* norm = nullptr;      ///< [width], or null: ones
  /// [width] where an output goes, or its normed value: its place in the packed order of the linear
  /// that follows; null: the identity
  const int* place = nullptr;
  int width = 0;  ///< of the output
  // Parities of the uses of the words, relative to the pass's `parities`.
  bool input_parity = false, addend_parity = false, output_parity = false;
  /// Linears use two sets of packets in turn: a thread block may be one linear ahead of another.
  bool odd_linear = false;
  bool plain_input = false;  ///< norm: an earlier kernel wrote the input, which has no
                             ///< parities; of its rows, FewRows::tokens are taken
  std::uint8_t input_buffer = 0, addend_buffer = 0, output_buffer = 0;  ///< bits of `parities`

  bool operator==(const PassStage&) const = default;
};

/// How a linear of one shape is shared out. Inputs are staged in groups of `group_blocks` blocks. A
/// strip's part of a group is cut into units, which are copied and multiplied as a whole; a thread
/// block works on one group, on a contiguous range of its units, counted strip by strip. Ranges are
/// at least as long as a strip's part of the group, so that at most two thread blocks share one.
/// Neither units nor the order in which their sums are added depend on the number of tokens: nor
/// do the results.
struct LinearPlan {
  StreamedWeight shape;  ///< without pointers
  int pieces = 1;        ///< what a block is multiplied in: 1, or 4 for halves and bfloats
  int piece_bytes = 0;
  int groups = 1, group_blocks = 0;
  int unit_pieces = 1;  ///< at most
  int sum_units = 1;    ///< units of a strip that are added up before others join them

  /// Units of a strip, of the group that has most.
  int strip_units() const { return (group_blocks * pieces + unit_pieces - 1) / unit_pieces; }
};

/// The rows of a pass, as kernel arguments: nothing is copied beforehand.
struct FewRows {
  int count = 0;
  bool chosen = false;  ///< tokens are read from `chosen_tokens`
  int tokens[kStreamRows] = {};
  int positions[kStreamRows] = {};
  int first[kStreamRows] = {};  ///< row of the pass that is the first of the same sequence
  __half* const* tables[kStreamRows] = {};  ///< page table of the row's sequence
  int logits_count = 0;
  int logits_rows[kStreamRows] = {};  ///< rows of the residual stream that the logits stage takes
};

inline constexpr int kPassWarps = 16;               ///< of a thread block, that compute
inline constexpr int kFeedWarps = 2;                ///< that start copies (weight_ring.cuh)
inline constexpr int kFinishWarps = 2;              ///< that finish strips (finish_strips.cuh)
inline constexpr int kCounters = 3 + kFinishWarps;  ///< of PassShared, from `begun` on
inline constexpr int kRowPlanBytes = 32;            ///< of shared memory, of each row
inline constexpr int kBlockPlanBytes = 120;  ///< of shared memory for each plan (weight_ring.cuh)

/// Sums of squares of rows of the residual stream, one for each strip: so many, and rows lie so far
/// apart.
GUANACO_HOST_DEVICE constexpr int squares_of(int hidden) {
  return (hidden + kStripOutputs - 1) / kStripOutputs;
}
GUANACO_HOST_DEVICE constexpr int squares_stride(int hidden) {
  return (squares_of(hidden) + 3) / 4 * 4;
}

/// Strips whose units' sums are kept at once; a power of two.
constexpr int strip_slots(int tokens) { return tokens == 1 ? 4 : 2; }

/// Where the parts of a thread block's shared memory begin, in bytes; the ring lies at 0.
struct PassLayout {
  int slots = 0, slot_bytes = 0;  ///< of the ring
  /// Units that are copied at once, at most, of the stage that is multiplied and of stages ahead of
  /// it; odd.
  int under_way = 1, under_way_ahead = 1;
  int strip_units = 1;  ///< most of a strip
  int records = 0, records_bytes = 0;
  int parts = 0, tail = 0, factors = 0, angles = 0, plans = 0, stages = 0, barriers = 0, freed = 0,
      begun = 0, rows = 0, bytes = 0;
};

struct PassArgs {
  const PassStage* stages = nullptr;
  const LinearPlan* plans = nullptr;
  int stage_count = 0, plan_count = 0;
  unsigned parities = 0;  ///< bit b: parity of the last use of buffer b before this pass
  unsigned tag = 0;       ///< of the first stage; packets carry tag + stage
  FewRows rows;
  const int* chosen_tokens = nullptr;
  const void* table = nullptr;  ///< embedding
  int table_type = 0;           ///< 0: F16, 1: BF16, 2: F32
  int hidden = 0;
  float epsilon = 0;
  AttentionShape shape;
  int splits = 1;  ///< most thread blocks that share a (row, head)
  RotaryTable rotary;
  ulonglong2* strip_packets = nullptr;          ///< [2][thread blocks][strip units][8 * tokens]
  ulonglong2* group_packets = nullptr;          ///< [2][group_packet_count]
  int group_packet_count = 0;                   ///< most of [groups - 1][strips][8 * tokens]
  unsigned long long* split_packets = nullptr;  ///< [tokens][heads][splits][head_dim + 2]
  unsigned* failed = nullptr;                   ///< set to a stage + 1 if a wait there never ended
  PassLayout layout;
};

/// Plan of a linear on this card, for passes of 1 or kStreamRows tokens.
LinearPlan plan_linear(const StreamedWeight& weight, int tokens, const DeviceLimits& limits);
/// Most (row, head) splits: thread blocks that share one head's cache.
int attention_splits(const AttentionShape& shape, const DeviceLimits& limits);
/// Shared memory of a pass; no slots if the plans leave no room for a ring.
PassLayout plan_pass(const std::vector<LinearPlan>& plans, int tokens, const AttentionShape& shape,
                     const DeviceLimits& limits);
/// Bytes of the packets of thread blocks, groups and splits.
struct PacketBytes {
  std::size_t strips = 0, groups = 0, splits = 0;
};
PacketBytes packet_bytes(const std::vector<LinearPlan>& plans, const AttentionShape& shape,
                         int tokens, const DeviceLimits& limits);

/// Runs the pass: tokens is 1 or kStreamRows. One thread block a multiprocessor, all resident at
/// once (a cooperative launch), since they wait for each other.
void run_pass(const PassArgs& args, int tokens, const DeviceLimits& limits, cudaStream_t stream);

}  // namespace guanaco::cuda
