#pragma once

// What the warps of a thread block share during a pass.

#include "exchange.cuh"
#include "stage_input.cuh"
#include "weight_ring.cuh"

namespace guanaco::cuda {

/// A barrier of the warps that compute.
__device__ inline void sync_computing() { sync_threads(1, kPassThreads); }

/// Pairs of sums (rows g and g + 8 of one token) in a strip.
template <int kTokens>
inline constexpr int kPairs = 8 * kTokens;

/// Shared memory, as PassLayout says.
template <int kTokens>
struct PassShared {
  std::uint8_t* memory;
  const PassArgs& args;

  template <typename T>
  __device__ T* at(int offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ std::uint8_t* ring(int warp) const {
    return memory + warp * args.layout.slots * args.layout.slot_bytes;
  }
  __device__ Barrier* full(int warp) const {
    return at<Barrier>(args.layout.barriers) + warp * args.layout.slots;
  }
  __device__ Barrier* free(int warp) const { return full(kPassWarps + warp); }
  /// Staged input of the linear of parity `which`. Two for one token, so that a warp may stage the
  /// next input while others multiply the last.
  __device__ std::uint8_t* records(int which) const {
    return memory + args.layout.records + (kTokens == 1 ? which : 0) * args.layout.records_bytes;
  }
  __device__ float* squares(int which) const {  ///< [tokens][squares_stride]
    return at<float>(args.layout.squares) +
           (kTokens == 1 ? which : 0) * kTokens * args.layout.squares_stride;
  }
  __device__ float2* part(int warp, int index) const {  ///< [kPairs]
    return at<float2>(args.layout.parts) + (warp * kPartsOfWarp + index) * kPairs<kTokens>;
  }
  __device__ int* arrived() const { return at<int>(args.layout.arrived); }  ///< [strips + 1] pieces
  __device__ float2* addend() const {
    return at<float2>(args.layout.addend);
  }  ///< [strips][kPairs]
  __device__ float2* angles() const {
    return at<float2>(args.layout.angles);
  }  ///< [tokens][dim / 2]
  __device__ FeedStage* feed() const { return at<FeedStage>(args.layout.feed); }
  __device__ BlockPlan* plans() const { return at<BlockPlan>(args.layout.plans); }
  __device__ PassStage* stage(int warp, int which) const {
    return at<PassStage>(args.layout.stages) + 2 * warp + which;
  }
  __device__ RowPlan* rows() const { return at<RowPlan>(args.layout.rows); }

  __device__ unsigned parity(int buffer, bool relative) const {
    return ((args.parities >> buffer) & 1u) ^ unsigned(relative);
  }
};

/// Pairs of one strip as the lanes of a warp hold them: lane (g, t) has rows g and g + 8 of tokens
/// t and 4 + t, or of the only token if t = 0.
template <int kTokens>
struct StripSums {
  static constexpr int kSets = kTokens == 1 ? 1 : 2;
  float of[kSets][2];  ///< [set][row g, row g + 8]

  __device__ void clear() {
#pragma unroll
    for (int set = 0; set < kSets; ++set) of[set][0] = of[set][1] = 0;
  }
  __device__ static bool holds(int lane) { return kTokens > 1 || lane % 4 == 0; }
  __device__ static int pair(int set, int lane) {
    return kTokens == 1 ? lane / 4 : set * kWarp + lane;
  }
  __device__ static int lane_of(int pair) { return kTokens == 1 ? pair * 4 : pair % kWarp; }
  __device__ static int token(int set, int lane) { return kTokens == 1 ? 0 : set * 4 + lane % 4; }
};

}  // namespace guanaco::cuda
