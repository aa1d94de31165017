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
  __device__ Barrier* full() const { return at<Barrier>(args.layout.barriers); }
  __device__ Barrier* free() const { return full() + args.layout.slots; }
  __device__ Barrier* strip_full() const { return free() + args.layout.slots; }
  __device__ Barrier* strip_free() const { return strip_full() + strip_slots(kTokens); }
  /// [strip_slots] strips that each slot has been through.
  __device__ unsigned* freed() const { return at<unsigned>(args.layout.freed); }
  /// The stage with units that the warps that compute have come to; of a linear: its input is
  /// staged.
  __device__ unsigned* begun() const { return at<unsigned>(args.layout.begun); }
  // Linears, of those that have such a thing, whose tail is there, whose tail is used up, and for
  // which each finishing warp has found its factors.
  __device__ unsigned* tails_there() const { return begun() + 1; }
  __device__ unsigned* tails_used() const { return begun() + 2; }
  __device__ unsigned* factors_there() const { return begun() + 3; }  ///< [kFinishWarps]
  __device__ std::uint8_t* records() const { return memory + args.layout.records; }
  /// Of the norm. Two, for linears in turn: those of one may still be wanted when the next has its
  /// own.
  __device__ float* factors(bool odd) const {  ///< [tokens]
    return at<float>(args.layout.factors) + (odd ? kTokens : 0);
  }
  __device__ float2* part(int strip_slot, int unit) const {  ///< [kPairs]
    return at<float2>(args.layout.parts) +
           (strip_slot * args.layout.strip_units + unit) * kPairs<kTokens>;
  }
  /// Sums of the units of the last strip that the next thread block works on.
  __device__ float2* tail_part(int unit) const {
    return at<float2>(args.layout.tail) + unit * kPairs<kTokens>;
  }
  __device__ float2* angles() const {
    return at<float2>(args.layout.angles);
  }  ///< [tokens][dim / 2]
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
  static constexpr unsigned kLanes = kTokens == 1 ? 0x11111111u : ~0u;  ///< that hold pairs
  __device__ static bool holds(int lane) { return kTokens > 1 || lane % 4 == 0; }
  __device__ static int pair(int set, int lane) {
    return kTokens == 1 ? lane / 4 : set * kWarp + lane;
  }
  __device__ static int token(int set, int lane) { return kTokens == 1 ? 0 : set * 4 + lane % 4; }
};

/// Until a counter in shared memory has come so far.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned count) {
  while (int(load_acquire(shared_address(counter)) - count) < 0) {
  }
}

/// The place of a strip's parts, of the number-th strip of all linears. Warps that compute fill it,
/// one that finishes strips empties it.
struct StripSlot {
  int index;
  unsigned round;  ///< how many strips the slot has to have been through before
  std::uint32_t full_barrier, free_barrier, freed;

  template <int kTokens>
  __device__ __forceinline__ StripSlot(const PassShared<kTokens>& shared, unsigned number)
      : index(int(number % strip_slots(kTokens))),
        round(number / strip_slots(kTokens)),
        full_barrier(shared_address(shared.strip_full() + index)),
        free_barrier(shared_address(shared.strip_free() + index)),
        freed(shared_address(shared.freed() + index)) {}

  /// A warp may have had no part in the strip before, and a barrier tells a round from the next but
  /// not from the one after that: so the rounds are counted too.
  __device__ __forceinline__ void wait_until_free() const {
    while (load_acquire(freed) < round) {
    }
    Barrier::wait(free_barrier, int(round & 1) ^ 1);
  }
  /// A part is there; more: parts that the strip does not have here.
  __device__ __forceinline__ void arrive(int more) const {
    if (more > 0) Barrier::arrive_before_last(full_barrier, more);
    Barrier::arrive(full_barrier);
  }
  __device__ __forceinline__ void wait_until_full() const {
    Barrier::wait(full_barrier, int(round & 1));
  }
  /// By one lane, after the warp has read the parts.
  __device__ __forceinline__ void free() const {
    Barrier::arrive(free_barrier);
    store_release(freed, round + 1);
  }
};

}  // namespace guanaco::cuda
