#pragma once

// How thread blocks of one kernel hand each other numbers, without flags: every word says itself
// whether it has arrived, so that one trip through L2 is enough.
//
// Words are floats whose lowest bit is the parity of the use of their buffer: a reader waits until
// it finds the parity it expects, and takes the value with that bit cleared, so that results do not
// depend on it. Every word of a buffer is written in every use. A writer cannot overtake a reader:
// what it writes depends, through the stages in between, on what all readers did with the old
// words. Nor can a reader be so early that it takes the use before the last for the last: every
// thread block waits for some of the input of every linear, also where it has no share of the work,
// and that depends on all of the uses before.
//
// Packets are for numbers that are not written in every pass: a float beside the number of the
// stage in all passes.

#include "device.cuh"

namespace guanaco::cuda {

/// A wait that lasts seconds is a defect, and must not hang the card: it is given up, and all later
/// waits of the thread with it.
struct Patience {
  bool lost = false;
  static constexpr int kPolls = 1 << 12, kRounds = 1 << 11;
};

__device__ inline void publish(float* to, float value, unsigned parity) {
  const unsigned word = (__float_as_uint(value) & ~1u) | parity;
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}

__device__ inline uint4 load_words(const float* from) {
  uint4 words;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from)
               : "memory");
  return words;
}
__device__ inline unsigned load_word(const float* from) {
  unsigned word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

__device__ inline bool arrived(const uint4& words, unsigned parity) {
  return (((words.x ^ parity) | (words.y ^ parity) | (words.z ^ parity) | (words.w ^ parity)) &
          1u) == 0;
}
__device__ inline float value_of(unsigned word) { return __uint_as_float(word & ~1u); }
__device__ inline float4 values_of(const uint4& words) {
  return {value_of(words.x), value_of(words.y), value_of(words.z), value_of(words.w)};
}

/// One word, once it is there, given what a first look found.
__device__ inline float await(const float* from, unsigned word, unsigned parity,
                              Patience& patience) {
  for (int i = 0; ((word ^ parity) & 1u) != 0 && !patience.lost; ++i) {
    word = load_word(from);
    patience.lost = i == Patience::kPolls * Patience::kRounds;
  }
  return value_of(word);
}

/// Waiting by a warp for words whose first look may have been too early: each lane names the place
/// behind `x` of one that is late, or -1. Only one lane asks again, until its word has arrived: if
/// all did, there would be little left of L2 for the weights. False if none is late, or patience
/// is at its end; else look again.
__device__ __forceinline__ bool keep_waiting(const float* x, int late, unsigned parity, int round,
                                             Patience& patience, int lane) {
  const unsigned who = __ballot_sync(~0u, late >= 0);
  if (who == 0) return false;
  // Waits for single words and packets may have left lanes of different minds.
  patience.lost = __any_sync(~0u, patience.lost);
  if (patience.lost) return false;
  if (lane == __ffs(int(who)) - 1)
    for (int i = 0; ((load_word(x + late) ^ parity) & 1u) != 0 && i < Patience::kPolls; ++i) {
    }
  __syncwarp();
  patience.lost = round == Patience::kRounds;
  return true;
}

/// A first look at four neighbouring words, for lanes that want some.
__device__ __forceinline__ uint4 look(const float* from, bool wanted, unsigned parity) {
  return wanted ? load_words(from) : uint4{parity, parity, parity, parity};
}
/// The words, the first `count` of them once all those are there, given what the first look found.
__device__ __forceinline__ float4 await(uint4 words, const float* from, unsigned parity,
                                        Patience& patience, int lane, int count = 4) {
  for (int round = 0;; ++round) {
    int late = -1;
    const unsigned found[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 3; i >= 0; --i)
      if (i < count && ((found[i] ^ parity) & 1u) != 0) late = i;
    if (!keep_waiting(from, late, parity, round, patience, lane)) return values_of(words);
    if (late >= 0) words = load_words(from);
  }
}

__device__ inline unsigned long long packet(float value, unsigned tag) {
  return (static_cast<unsigned long long>(tag) << 32) | __float_as_uint(value);
}
__device__ inline void send(unsigned long long* to, float value, unsigned tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(packet(value, tag)) : "memory");
}
__device__ inline float receive(const unsigned long long* from, unsigned tag, Patience& patience) {
  unsigned long long found;
  for (int i = 0;; ++i) {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(found) : "l"(from) : "memory");
    if (unsigned(found >> 32) == tag || patience.lost) break;
    patience.lost = i == Patience::kPolls * Patience::kRounds;
  }
  return __uint_as_float(unsigned(found));
}
/// Two packets side by side.
__device__ inline void send(ulonglong2* to, float2 value, unsigned tag) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(packet(value.x, tag)),
               "l"(packet(value.y, tag))
               : "memory");
}
__device__ __forceinline__ ulonglong2 look(const ulonglong2* from) {
  ulonglong2 found;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(found.x), "=l"(found.y)
               : "l"(from)
               : "memory");
  return found;
}
/// Both, given what a first look found: it can be taken long before the numbers are needed.
__device__ __forceinline__ float2 receive(const ulonglong2* from, ulonglong2 found, unsigned tag,
                                          Patience& patience) {
  for (int i = 0;
       (unsigned(found.x >> 32) != tag || unsigned(found.y >> 32) != tag) && !patience.lost; ++i) {
    found = look(from);
    patience.lost = i == Patience::kPolls * Patience::kRounds;
  }
  return {__uint_as_float(unsigned(found.x)), __uint_as_float(unsigned(found.y))};
}

}  // namespace guanaco::cuda
