#pragma once

// The candidates for the next token of a row as one order, and searches in it.
//
// Candidates are ranked by (logit descending, id ascending), packed into one 64-bit key each so
// that no two are equal. A thread block sorts a slice of 512 and sums the weights exp(logit /
// temperature) along it; the last block of a row to be done merges the heads of the slices.
// Whatever a sampler asks (the end of the top k, of the nucleus, of min-p, the token under a draw)
// is the last candidate for which something holds that holds for the first and, once it does not,
// never again: its rank is below k, the mass before it below p, its weight above m. Most answers
// are among the leaders, the candidates that are known to precede all outside of the heads: each
// thread looks at one. For the others, a warp finds a candidate's place among all slices by
// bisection, sixteen candidates at a time.
//
// Sums are doubles added in a fixed order, so a seed gives the same text whatever else is in the
// pass.

#include <cfloat>
#include <climits>
#include <cmath>

#include "device.cuh"
#include "kernels.h"

namespace guanaco::cuda::ranking {

inline constexpr int kSlice = 512;  // candidates of a slice; threads of a block
inline constexpr int kWarps = kSlice / kWarp;

struct Slice {
  std::uint64_t first;  // key of its first candidate
  double mass;          // sum of exp((logit - first logit) / temperature)
  float unscaled;       // sum of exp(logit - first logit)
  int count;            // candidates; -1: a logit is NaN or +inf
};

/// Scratch of one row.
struct Scratch {
  std::uint64_t* keys;  // [slices][512]
  double* sums;         // [slices][512] mass of those before each, in units of the slice's first
  Slice* slices;
  unsigned* arrived;

  __host__ __device__ static std::size_t bytes(int slices) {
    return (std::size_t(slices) * (kSlice * 16 + sizeof(Slice)) + sizeof(unsigned) + 127) / 128 *
           128;
  }
  __device__ Scratch(void* memory, int slices, int row) {
    char* at = static_cast<char*>(memory) + row * bytes(slices);
    keys = reinterpret_cast<std::uint64_t*>(at);
    sums = reinterpret_cast<double*>(keys + std::size_t(slices) * kSlice);
    this->slices = reinterpret_cast<Slice*>(sums + std::size_t(slices) * kSlice);
    arrived = reinterpret_cast<unsigned*>(this->slices + slices);
  }
};

/// Larger keys go first. 0 is no candidate.
__device__ inline std::uint64_t make_key(float logit, int token) {
  const std::uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 becomes 0
  const std::uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return std::uint64_t(ordered) << 32 | std::uint32_t(~token);
}
__device__ inline float logit_of(std::uint64_t key) {
  const std::uint32_t ordered = std::uint32_t(key >> 32);
  return __uint_as_float(ordered >> 31 != 0 ? ordered & 0x7fffffffu : ~ordered);
}
__device__ inline int token_of(std::uint64_t key) { return int(~std::uint32_t(key)); }

__device__ inline double warp_total(double value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline std::uint64_t warp_largest(std::uint64_t value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

/// The largest key of the block, in every thread.
__device__ inline std::uint64_t block_max(std::uint64_t key) {
  __shared__ std::uint64_t largest[kWarps];
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0) largest[threadIdx.x / kWarp] = key;
  __syncthreads();
  key = warp_largest(largest[threadIdx.x % kWarps]);
  __syncthreads();
  return key;
}

/// Sorts one key a thread, descending: a bitonic network, through shared memory where partners are
/// in other warps.
__device__ inline std::uint64_t block_sort(std::uint64_t key) {
  __shared__ std::uint64_t exchange[kSlice];
  const int i = threadIdx.x;
#pragma unroll
  for (int size = 2; size <= kSlice; size *= 2)
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) {
      std::uint64_t other;
      if (stride >= kWarp) {
        exchange[i] = key;
        __syncthreads();
        other = exchange[i ^ stride];
        __syncthreads();
      } else {
        other = __shfl_xor_sync(~0u, key, stride);
      }
      const bool descending = (i & size) == 0, first = (i & stride) == 0;
      key = descending == first ? max(key, other) : min(key, other);
    }
  return key;
}

/// Sum of the values of all threads before this one; `total`: of all.
__device__ inline double block_scan(double value, double& total) {
  __shared__ double sums[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const double before = __shfl_up_sync(~0u, value, offset);
    if (lane >= offset) value += before;
  }
  if (lane == kWarp - 1) sums[warp] = value;
  double before = __shfl_up_sync(~0u, value, 1);
  if (lane == 0) before = 0;
  __syncthreads();
  double warps_before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) warps_before = total;
    total += sums[w];
  }
  __syncthreads();
  return warps_before + before;
}

/// Sorts and sums one slice, a logit a thread.
__device__ inline void sort_slice(float logit, const SampleParameters& parameters, int index,
                                  const Scratch& scratch) {
  const int token = index * kSlice + int(threadIdx.x);
  if (token >= parameters.choices) logit = -INFINITY;
  const bool bad = !(logit < INFINITY);  // a NaN too
  std::uint64_t key = bad || logit == -INFINITY ? 0 : make_key(logit, token);
  const bool greedy = parameters.temperature == 0;
  if (!greedy) key = block_sort(key);
  Slice slice;
  slice.first = block_max(key);
  slice.mass = 0;
  const bool present = key != 0;
  const float below = present ? logit_of(key) - logit_of(slice.first) : 0;
  double unscaled;
  block_scan(present ? double(expf(below)) : 0, unscaled);
  slice.unscaled = float(unscaled);
  if (!greedy) {
    const std::size_t at = std::size_t(index) * kSlice + threadIdx.x;
    scratch.keys[at] = key;
    scratch.sums[at] =
        block_scan(present ? exp(double(below) / double(parameters.temperature)) : 0, slice.mass);
  }
  slice.count = __syncthreads_count(present);
  if (__syncthreads_or(bad)) slice.count = -1;
  if (threadIdx.x == 0) scratch.slices[index] = slice;
}

/// A place in the order of all candidates.
struct Place {
  std::uint64_t key;
  int rank;       ///< candidates before it
  double before;  ///< their mass, in units of the first one's
};

/// What holds up to the place that is sought.
struct Condition {
  double mass = DBL_MAX;  ///< the mass before it is below this (or equal, if inclusive)
  bool inclusive = false;
  int count = INT_MAX;  ///< its rank is below this
  double log_weight =
      -745;  ///< the logarithm of its weight is at least this; so far down it is nothing
};

/// All slices of a row as one order. Used by a whole thread block.
class Ranking {
 public:
  __device__ Ranking(const Scratch& scratch, int slices, float temperature, unsigned char* memory)
      : scratch_(scratch), slices_(slices), temperature_(temperature) {
    slice_ = reinterpret_cast<Slice*>(memory);
    scale_ = reinterpret_cast<double*>(slice_ + slices);
    low_ = reinterpret_cast<int*>(scale_ + slices);
    high_ = low_ + slices;
    precede_ = reinterpret_cast<std::uint16_t*>(high_ + slices);
  }
  static int shared_bytes(int slices) {
    return slices * int(sizeof(Slice) + sizeof(double) + 8 + 2 * kWarps);
  }

  /// Finds the first of all; false if there is none or a logit is no number.
  __device__ bool begin() {
    std::uint64_t first = 0;
    bool sound = true;
    for (int s = threadIdx.x; s < slices_; s += kSlice) {
      const Slice slice = slice_[s] = scratch_.slices[s];
      sound &= slice.count >= 0;
      if (slice.count > 0) first = max(first, slice.first);
    }
    first_ = block_max(first);
    return __syncthreads_and(sound) && first_ != 0;
  }
  __device__ std::uint64_t first() const { return first_; }

  /// log of the sum of exp(logit - first logit); in every thread.
  __device__ float log_sum() const {
    double sum = 0;
    for (int s = threadIdx.x % kWarp; s < slices_; s += kWarp)
      if (slice_[s].count > 0)
        sum += slice_[s].unscaled * double(expf(logit_of(slice_[s].first) - logit_of(first_)));
    return logf(float(warp_total(sum)));
  }

  /// Sorts the leaders, one a thread; returns the mass of all candidates.
  __device__ double prepare() {
    const int heads = max(1, kSlice / slices_);  // candidates of a slice that may be leaders
    std::uint64_t head = 0, outside = 0;
    const int owner = threadIdx.x / heads, place = threadIdx.x % heads;
    if (owner < slices_ && place < slice_[owner].count)
      head = scratch_.keys[std::size_t(owner) * kSlice + place];
    for (int s = threadIdx.x; s < slices_; s += kSlice) {
      if (slice_[s].count > heads)
        outside = max(outside, scratch_.keys[std::size_t(s) * kSlice + heads]);
      if (s * heads >= kSlice && slice_[s].count > 0) outside = max(outside, slice_[s].first);
      scale_[s] = slice_[s].count > 0 ? weight(slice_[s].first) : 0;
    }
    outside = block_max(outside);
    leader_.key = block_sort(head);
    leader_.rank = int(threadIdx.x);
    double all;
    leader_.before = block_scan(leader_.key > outside ? weight(leader_.key) : 0, all);
    leaders_ = __syncthreads_count(leader_.key > outside);
    outside_ = outside;
    double mass = 0;
    for (int s = threadIdx.x % kWarp; s < slices_; s += kWarp) mass += scale_[s] * slice_[s].mass;
    return warp_total(mass);
  }

  __device__ double weight(std::uint64_t key) const {
    return exp((double(logit_of(key)) - double(logit_of(first_))) / double(temperature_));
  }

  /// The last place for which the condition, true of the first, holds.
  __device__ Place search(const Condition& condition) {
    __shared__ Place result;
    const double lowest = condition.log_weight * double(temperature_);
    const int found =
        __syncthreads_count(int(threadIdx.x) < leaders_ && holds(condition, lowest, leader_));
    if (threadIdx.x == 0)
      result = {first_, 0, 0};  // which may lie in a slice too many to have heads
    __syncthreads();
    if (int(threadIdx.x) == found - 1) result = leader_;
    __syncthreads();
    const Place best = result;
    return found < leaders_ || outside_ == 0 ? best : search_all(condition, lowest, best);
  }

 private:
  struct Try {
    Place place;
    bool holds;
  };

  /// lowest: of the differences of logits from the first that the condition allows.
  __device__ bool holds(const Condition& condition, double lowest, const Place& place) const {
    return (condition.inclusive ? place.before <= condition.mass : place.before < condition.mass) &&
           place.rank < condition.count &&
           double(logit_of(place.key)) - double(logit_of(first_)) >= lowest;
  }

  /// As search(), among all candidates; `best` is known to hold.
  __device__ Place search_all(const Condition& condition, double lowest, Place best) {
    __shared__ Try tried[kWarps];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int s = threadIdx.x; s < slices_; s += kSlice) {
      low_[s] = 0;
      high_[s] = max(slice_[s].count, 0);
    }
    while (true) {
      __syncthreads();
      int open = 0;
      for (int s = lane; s < slices_; s += kWarp) open += high_[s] - low_[s];
      open = warp_sum(open);
      if (open == 0) return best;
      // Tries are spread evenly over what is open, slice after slice.
      const int tries = min(open, kWarps);
      if (warp < tries) {
        const Place place =
            locate(open_key(int((2ll * warp + 1) * open / (2 * tries))), precede_ + warp * slices_);
        if (lane == 0) tried[warp] = {place, holds(condition, lowest, place)};
      }
      __syncthreads();
      // The last that holds before the first that does not.
      const bool mine = lane < tries;
      const unsigned rank = mine ? unsigned(tried[lane].place.rank) : 0;
      const bool held = mine && tried[lane].holds;
      const unsigned first_bad = __reduce_min_sync(~0u, mine && !held ? rank : ~0u);
      const unsigned last_good = __reduce_max_sync(~0u, held && rank < first_bad ? rank + 1 : 0u);
      const int bad = __ffs(int(__ballot_sync(~0u, mine && !held && rank == first_bad))) - 1;
      const int good = __ffs(int(__ballot_sync(~0u, held && rank + 1 == last_good))) - 1;
      if (good >= 0) best = tried[good].place;
      for (int s = threadIdx.x; s < slices_; s += kSlice) {
        if (good >= 0) {
          const int position = precede_[good * slices_ + s];
          low_[s] = position + int(position < slice_[s].count && keys(s)[position] == best.key);
        }
        if (bad >= 0) high_[s] = precede_[bad * slices_ + s];
      }
    }
  }

  __device__ const std::uint64_t* keys(int s) const {
    return scratch_.keys + std::size_t(s) * kSlice;
  }

  /// The place of a key among all, by one warp; precede: how many of each slice come before it.
  __device__ Place locate(std::uint64_t sought, std::uint16_t* precede) const {
    constexpr int kAtOnce = 2;  // bisections under way in a lane, since each waits for memory
    int rank = 0;
    double mass = 0;
    for (int first = threadIdx.x % kWarp; first < slices_; first += kAtOnce * kWarp) {
      int low[kAtOnce], high[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        const int s = first + i * kWarp;
        low[i] = s < slices_ ? low_[s] : 0;
        high[i] = s < slices_ ? high_[s] : 0;
      }
      while (low[0] < high[0] || low[1] < high[1]) {
        std::uint64_t middle[kAtOnce];
        for (int i = 0; i < kAtOnce; ++i)
          middle[i] = low[i] < high[i] ? keys(first + i * kWarp)[(low[i] + high[i]) / 2] : 0;
        for (int i = 0; i < kAtOnce; ++i) {
          const int half = (low[i] + high[i]) / 2;
          if (middle[i] > sought) {
            low[i] = half + 1;
          } else {
            high[i] = half;
          }
        }
      }
      for (int i = 0; i < kAtOnce; ++i) {
        const int s = first + i * kWarp;
        if (s >= slices_) continue;
        precede[s] = std::uint16_t(low[i]);
        rank += low[i];
        mass += scale_[s] * (low[i] == slice_[s].count
                                 ? slice_[s].mass
                                 : scratch_.sums[std::size_t(s) * kSlice + low[i]]);
      }
    }
    return {sought, warp_sum(rank), warp_total(mass)};
  }

  /// The open candidate with this number, by one warp.
  __device__ std::uint64_t open_key(int number) const {
    const int lane = threadIdx.x % kWarp;
    for (int first = 0;; first += kWarp) {
      const int s = first + lane;
      const int size = s < slices_ ? high_[s] - low_[s] : 0;
      int end = size;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int before = __shfl_up_sync(~0u, end, offset);
        if (lane >= offset) end += before;
      }
      const unsigned found = __ballot_sync(~0u, number < end);
      if (found != 0) {
        const int owner = __ffs(int(found)) - 1;
        std::uint64_t result = 0;
        if (lane == owner) result = keys(s)[low_[s] + number - (end - size)];
        return __shfl_sync(~0u, result, owner);
      }
      number -= __shfl_sync(~0u, end, kWarp - 1);
    }
  }

  Scratch scratch_;
  int slices_;
  float temperature_;
  std::uint64_t first_ = 0,
                outside_ = 0;  // outside_: the first of all that cannot be leaders; 0: none
  Place leader_;               // this thread's
  int leaders_ = 0;
  // In shared memory:
  Slice* slice_;            // [slices]
  double* scale_;           // [slices] weight of the first of a slice
  int* low_;                // [slices] candidates for which the condition is known to hold
  int* high_;               // [slices] from here on it is known not to
  std::uint16_t* precede_;  // [kWarps][slices]
};

}  // namespace guanaco::cuda::ranking
