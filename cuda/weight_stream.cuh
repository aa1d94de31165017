#pragma once

// The kernel behind stages 2, 4, 5, 6 and 7 for few rows: y = W x for 1 or up to 8 tokens, bound by
// reading W once.
//
// Work is the sequence of all blocks of W (layout.h), cut into one contiguous range a thread block,
// so that every multiprocessor has the same number of bytes however few outputs there are. A
// producer warp copies the range through a ring in shared memory, and starts before the kernels in
// front are done, since weights are constant: while they finish and this kernel's input is staged,
// its first blocks arrive (programmatic dependent launch). Eight consumer warps multiply, a block
// each, with integer tensor core instructions on the packed codes.
//
// A strip of 16 outputs whose blocks lie in two or more ranges is finished by the thread block that
// has its beginning: it works on it last, and the others on their part first, so what it waits for
// was written long ago. Parts are added in a fixed order: no atomics on values, the same bits every
// time.

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "layout.h"
#include "stage_input.cuh"

namespace guanaco::cuda {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = kConsumerWarps * kWarp;
inline constexpr int kStreamThreads = kConsumers + kWarp;

/// A thread block's part of one strip (or, if inputs are taken in several groups, of a strip's
/// blocks in one group).
struct StripPart {
  int group = 0, strip = 0;
  int first = 0, last = 0;              ///< blocks [first, last) of the strip
  int group_first = 0, group_last = 0;  ///< the blocks of its group
  __device__ bool has_begin() const { return first == group_first; }
  __device__ bool has_end() const { return last == group_last; }
};

/// Walks the parts of a range of blocks. Blocks are counted group by group, in each strip by strip.
struct StripParts {
  const LinearArgs& args;
  StripPart part;
  int remaining;

  __device__ StripParts(const LinearArgs& args_in, int begin, int end)
      : args(args_in), remaining(end - begin) {
    const int full = args.group_blocks * args.weight.strips;
    part.group = min(begin / full, (args.weight.strip_blocks - 1) / args.group_blocks);
    enter_group();
    const int in_group = begin - part.group * full, width = part.group_last - part.group_first;
    part.strip = in_group / width;
    part.last = part.group_first + in_group % width;  // next() goes on from here
    if (part.last == part.group_first) --part.strip, part.last = part.group_last;
  }
  __device__ bool next() {
    if (remaining == 0) return false;
    if (part.has_end()) {
      if (++part.strip == args.weight.strips) {
        part.strip = 0;
        ++part.group;
        enter_group();
      }
      part.last = part.group_first;
    }
    part.first = part.last;
    part.last = min(part.group_last, part.first + remaining);
    remaining -= part.last - part.first;
    return true;
  }

 private:
  __device__ void enter_group() {
    part.group_first = part.group * args.group_blocks;
    part.group_last = min(part.group_first + args.group_blocks, args.weight.strip_blocks);
  }
};

/// First block of a thread block's range: all ranges have the same number of blocks, give or take
/// one unit.
__device__ inline int range_begin(const LinearArgs& args, int thread_block) {
  return (args.range_units * thread_block + min(args.range_longer, thread_block)) * args.range_unit;
}

/// One block of weights times the staged tokens, added to `sums`: [set of tokens][row g, row g + 8]
/// in lane (g, t) for token 4 * set + t (one token: only t = 0). kSimple: one run a block and fp16
/// scales, as the published files have; else both are looked up.
template <WeightKind kKind, int kTokens, bool kSimple>
__device__ inline void multiply_block(const std::uint8_t* block, const std::uint8_t* record,
                                      const StreamedWeight& weight, int lane,
                                      float (&sums)[kTokens == 1 ? 1 : 2][2]) {
  const int run_shift = kSimple ? 0 : weight.run_shift(), runs = 1 << run_shift;
  const bool float_scales = !kSimple && weight.float_scales;
  constexpr int kSets = kTokens == 1 ? 1 : 2;
  constexpr int kColumns = kTokens == 1 ? 2 : 8;
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  const int g = lane / 4, t = lane % 4;
  [[maybe_unused]] const auto* chunks = reinterpret_cast<const uint4*>(block);
  const auto* fragments = reinterpret_cast<const uint4*>(record);
  const auto* run_scales =
      reinterpret_cast<const RunScale*>(record + record_fragment_bytes<kTokens>(kCodes));
  const auto fragment = [&](int set, int quad) {
    constexpr int kQuads = kCodes ? 2 : 4;
    uint4 words = {0, 0, 0, 0};
    if (kColumns == 8 || g < kColumns)
      words = fragments[((set * kQuads + quad) * kColumns + g) * 4 + t];
    return words;
  };

  if constexpr (kCodes) {
    uint4 b[kSets][2];
    for (int set = 0; set < kSets; ++set)
      for (int quad = 0; quad < 2; ++quad) b[set][quad] = fragment(set, quad);
    const std::uint8_t* scales = block + element_bytes(kKind);
    const std::uint8_t* zeros = scales + runs * kStripOutputs * (float_scales ? 4 : 2);
    int products[kSets][4] = {};
#pragma unroll
    for (int m = 0; m < 4; ++m) {  // 32 inputs an instruction
      std::uint32_t a[4];
      if constexpr (kKind == WeightKind::nibble) {
        // Half of a 16-byte piece: blocks of nibbles are only aligned to 8 bytes.
        const uint2 rows =
            reinterpret_cast<const uint2*>(block)[((m / 2) * kWarp + lane) * 2 + m % 2];
        a[0] = rows.x & 0x0f0f0f0fu;
        a[1] = rows.y & 0x0f0f0f0fu;
        a[2] = (rows.x >> 4) & 0x0f0f0f0fu;
        a[3] = (rows.y >> 4) & 0x0f0f0f0fu;
      } else {
        const uint4 chunk = chunks[m * kWarp + lane];
        a[0] = chunk.x;
        a[1] = chunk.y;
        a[2] = chunk.z;
        a[3] = chunk.w;
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const uint4 words = b[set][m / 2];
        mma_u8s8(products[set], a, m % 2 == 0 ? words.x : words.z, m % 2 == 0 ? words.y : words.w);
      }
      if (m < 3 && (kSimple || (((m + 1) << run_shift) & 3) != 0)) continue;  // the run goes on
      const int run = (m << run_shift) >> 2;
      float2 scale;
      if (float_scales) {
        scale = reinterpret_cast<const float2*>(scales)[run * 8 + g];
      } else {
        scale = __half22float2(reinterpret_cast<const __half2*>(scales)[run * 8 + g]);
      }
      int zero0, zero1;
      if constexpr (kKind == WeightKind::nibble) {
        const uint2 packed = reinterpret_cast<const uint2*>(zeros)[run];
        zero0 = int((packed.x >> (4 * g)) & 15u);
        zero1 = int((packed.y >> (4 * g)) & 15u);
      } else {
        zero0 = zeros[run * 16 + g];
        zero1 = zeros[run * 16 + 8 + g];
      }
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const RunScale x = run_scales[run * kTokens + (kTokens == 1 ? 0 : set * 4 + t)];
        int(&d)[4] = products[set];
        sums[set][0] += float(d[0] * 256 + d[1] - zero0 * x.sum) * (scale.x * x.scale);
        sums[set][1] += float(d[2] * 256 + d[3] - zero1 * x.sum) * (scale.y * x.scale);
        d[0] = d[1] = d[2] = d[3] = 0;
      }
    }
  } else if constexpr (kKind == WeightKind::single) {
    // fp32 files: lane (g, t) multiplies a quarter of the inputs of rows g and g + 8, then the quad
    // adds up.
    const auto* rows = reinterpret_cast<const float4*>(block);
    const auto* x = reinterpret_cast<const float4*>(record);
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      float products[2] = {};
      for (int i = t; i < 32; i += 4) {
        const float4 v = x[token * 32 + i];
        for (int r = 0; r < 2; ++r) {
          const float4 w = rows[(g + 8 * r) * 32 + i];
          products[r] += w.x * v.x + w.y * v.y + w.z * v.z + w.w * v.w;
        }
      }
      for (int r = 0; r < 2; ++r) {
        const float sum = warp_sum(products[r], 4);
        if (kTokens == 1 || t == token % 4) sums[token / 4][r] += sum;
      }
    }
  } else {
    float products[kSets][4] = {};
#pragma unroll
    for (int m = 0; m < 8; ++m) {  // 16 inputs an instruction
      const uint4 chunk = chunks[m * kWarp + lane];
      const std::uint32_t a[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const uint4 words = fragment(set, m / 2);
        const std::uint32_t b0 = m % 2 == 0 ? words.x : words.z,
                            b1 = m % 2 == 0 ? words.y : words.w;
        if constexpr (kKind == WeightKind::half) {
          mma_half(products[set], a, b0, b1);
        } else {
          mma_bfloat(products[set], a, b0, b1);
        }
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float scale = run_scales[kTokens == 1 ? 0 : set * 4 + t].scale;
      sums[set][0] += scale * (products[set][0] + products[set][1]);
      sums[set][1] += scale * (products[set][2] + products[set][3]);
    }
  }
}

/// Adds up one strip's sums of the warps, of the thread blocks that have its other parts, and of
/// the groups, and hands the outputs to the epilogue: pairs of rows (g, g + 8) of one token. Called
/// by one warp.
template <int kTokens, typename Epilogue>
__device__ void finish_strip(const LinearArgs& args, const Epilogue& epilogue, const float* sum_of,
                             const StripPart& part, unsigned epoch, float row_factor, int lane) {
  constexpr int kPairs = 8 * kTokens;
  constexpr int kMine = (kPairs + kWarp - 1) / kWarp;
  float2 value[kMine];
  for (int i = 0; i < kMine; ++i) {
    const int pair = lane + i * kWarp, g = pair / kTokens, token = pair % kTokens;
    value[i] = {0, 0};
    if (pair >= kPairs) continue;
    for (int w = 0; w < kConsumerWarps; ++w) {
      value[i].x += sum_of[(w * kStripOutputs + g) * kTokens + token];
      value[i].y += sum_of[(w * kStripOutputs + g + 8) * kTokens + token];
    }
  }
  const auto publish = [&](float2* to, unsigned* flag) {
    for (int i = 0; i < kMine; ++i)
      if (lane + i * kWarp < kPairs) to[lane + i * kWarp] = value[i];
    __syncwarp();
    if (lane == 0) release_flag(flag, epoch);
  };
  const auto collect = [&](const float2* from, const unsigned* flag) {
    while (acquire_flag(flag) != epoch) {
    }
    __syncwarp();
    for (int i = 0; i < kMine; ++i)
      if (lane + i * kWarp < kPairs) {
        const float2 part = __ldcg(from + lane + i * kWarp);
        value[i].x += part.x;
        value[i].y += part.y;
      }
  };

  if (!part.has_begin()) {
    publish(args.parts + std::size_t(blockIdx.x) * kPairs, args.part_flags + blockIdx.x);
    return;
  }
  const int strips = args.weight.strips;
  if (!part.has_end()) {
    const int last = part.group * args.group_blocks * strips +
                     (part.strip + 1) * (part.group_last - part.group_first);
    for (int other = int(blockIdx.x) + 1; other < int(gridDim.x) && range_begin(args, other) < last;
         ++other)
      collect(args.parts + std::size_t(other) * kPairs, args.part_flags + other);
  }
  const int groups = (args.weight.strip_blocks + args.group_blocks - 1) / args.group_blocks;
  if (groups > 1) {
    const auto at = [&](int group) { return std::size_t(group) * strips + part.strip; };
    if (part.group < groups - 1) {
      publish(args.group_parts + at(part.group) * kPairs, args.group_flags + at(part.group));
      return;
    }
    for (int group = 0; group < groups - 1; ++group)
      collect(args.group_parts + at(group) * kPairs, args.group_flags + at(group));
  }
  for (int i = 0; i < kMine; ++i) {
    const int pair = lane + i * kWarp, g = pair / kTokens, token = pair % kTokens;
    if (pair >= kPairs || token >= *args.rows) continue;
    float2 y = {value[i].x * row_factor, value[i].y * row_factor};
    if (args.weight.bias != nullptr) {
      y.x += args.weight.bias[part.strip * kStripOutputs + g];
      y.y += args.weight.bias[part.strip * kStripOutputs + g + 8];
    }
    epilogue(part.strip, g, token, y);
  }
}

/// Shared memory of a thread block, in this order.
struct StreamShared {
  std::uint8_t* ring;   ///< [ring_steps][step_blocks * block_bytes]
  std::uint8_t* input;  ///< records of the staged input
  float* slots;         ///< [slots][kConsumerWarps][16][kTokens] sums of a strip, by warp
  Barrier* full;        ///< [ring_steps]
  Barrier* empty;       ///< [ring_steps]
  Barrier* staged;      ///< the input of a group has arrived (several tokens)
  unsigned* arrived;    ///< [slots] warps done with a strip
  float* squares;       ///< [kConsumerWarps]

  __device__ StreamShared(std::uint8_t* memory, const LinearArgs& args, int tokens) {
    ring = memory;
    input = ring + args.ring_steps * args.step_blocks * args.weight.block_bytes;
    slots = reinterpret_cast<float*>(input + args.input_bytes);
    full = reinterpret_cast<Barrier*>(slots + args.slots * kConsumerWarps * kStripOutputs * tokens);
    empty = full + args.ring_steps;
    staged = empty + args.ring_steps;
    arrived = reinterpret_cast<unsigned*>(staged + 1);
    squares = reinterpret_cast<float*>(arrived + args.slots);
  }
};

template <WeightKind kKind, int kTokens, typename Epilogue>
__global__ void __launch_bounds__(kStreamThreads, kTokens == 1 ? 2 : 1)
    linear_kernel(const LinearArgs args, const Epilogue epilogue) {
  constexpr bool kCodes = kKind == WeightKind::nibble || kKind == WeightKind::byte;
  constexpr int kSets = kTokens == 1 ? 1 : 2;
  constexpr int kRecord = record_bytes<kTokens>(kCodes);
  extern __shared__ __align__(128) std::uint8_t memory[];
  const StreamShared shared(memory, args, kTokens);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int begin = range_begin(args, blockIdx.x), end = range_begin(args, blockIdx.x + 1);
  const int step_blocks = args.step_blocks, block_bytes = args.weight.block_bytes;
  const int step_bytes = step_blocks * block_bytes;

  launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < args.ring_steps; ++i) {
      shared.full[i].init(kCopyArrivals);
      shared.empty[i].init(kConsumerWarps);
    }
    shared.staged->init(kCopyArrivals);
    for (int i = 0; i < args.slots; ++i) shared.arrived[i] = 0;
    fence_barrier_init();
  }
  __syncthreads();
  StripParts parts(args, begin, end);
  int step = 0;

  if (warp == kConsumerWarps) {
    // The producer: weights are constant, so the ring fills before the kernels in front are done.
    int parity = 1;
    while (parts.next()) {
      const std::size_t strip = std::size_t(parts.part.strip) * args.weight.strip_blocks;
      for (int block = parts.part.first; block < parts.part.last; block += step_blocks) {
        const int count = min(step_blocks, parts.part.last - block);
        const std::uint8_t* from = args.weight.blocks + (strip + block) * block_bytes;
        shared.empty[step].wait(parity);
        copy_async(shared.ring + step * step_bytes, from, std::uint32_t(count * block_bytes),
                   shared.full[step], lane);
        if (++step == args.ring_steps) {
          step = 0;
          parity ^= 1;
        }
      }
    }
    return;
  }

  wait_for_predecessors();
  const unsigned epoch = *args.epoch * 1024u + args.stage;
  const bool simple = is_simple(args.weight);
  float row_factor = 1;
  if constexpr (kTokens == 1) {
    float squares = 0;
    if (simple) {
      stage_blocks<kKind, 1, true>(args, args.input, 0, warp, kConsumerWarps, shared.input, lane,
                                   1.0f, squares);
    } else {
      stage_blocks<kKind, 1, false>(args, args.input, 0, warp, kConsumerWarps, shared.input, lane,
                                    1.0f, squares);
    }
    if (args.norm != nullptr) {
      squares = warp_sum(squares);
      if (lane == 0) shared.squares[warp] = squares;
    }
    sync_threads(1, kConsumers);
    if (args.norm != nullptr) {
      squares = 0;
      for (int i = 0; i < kConsumerWarps; ++i) squares += shared.squares[i];
      row_factor = rsqrtf(squares / float(args.weight.inputs) + args.epsilon);
    }
  }

  int parity = 0, slot = 0, staged_group = -1, staged_parity = 0;
  while (parts.next()) {
    const StripPart& part = parts.part;
    if constexpr (kTokens > 1) {
      if (part.group !=
          staged_group) {  // at most a few times: the input of the next group of blocks
        sync_threads(1, kConsumers);
        staged_group = part.group;
        if (warp == 0) {
          fence_copies_after_writes();
          copy_async(shared.input, args.staged + std::size_t(part.group_first) * kRecord,
                     std::uint32_t((part.group_last - part.group_first) * kRecord), *shared.staged,
                     lane);
        }
        shared.staged->wait(staged_parity);
        staged_parity ^= 1;
      }
    }
    float sums[kSets][2] = {};
    for (int block = part.first; block < part.last; block += step_blocks) {
      shared.full[step].wait(parity);
      const std::uint8_t* blocks = shared.ring + step * step_bytes;
      const std::uint8_t* records = shared.input + (block - part.group_first) * kRecord;
      const int count = min(step_blocks, part.last - block);
      const auto multiply = [&]<bool kSimple>() {
        for (int mine = warp; mine < count; mine += kConsumerWarps)
          multiply_block<kKind, kTokens, kSimple>(
              blocks + mine * block_bytes, records + mine * kRecord, args.weight, lane, sums);
      };
      if (simple) {
        multiply.template operator()<true>();
      } else {
        multiply.template operator()<false>();
      }
      __syncwarp();
      if (lane == 0) shared.empty[step].arrive();
      if (++step == args.ring_steps) {
        step = 0;
        parity ^= 1;
      }
    }

    // Every warp leaves its sums; the last to arrive adds them up.
    float* sum_of = shared.slots + slot * kConsumerWarps * kStripOutputs * kTokens;
#pragma unroll
    for (int set = 0; set < kSets; ++set)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = lane / 4 + 8 * r, token = set * 4 + lane % 4;
        if (kTokens > 1 || lane % 4 == 0)
          sum_of[(warp * kStripOutputs + row) * kTokens + token] = sums[set][r];
      }
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) before = arrive_at(&shared.arrived[slot]);
    before = __shfl_sync(~0u, before, 0);
    if (before == kConsumerWarps - 1) {
      if (lane == 0) shared.arrived[slot] = 0;
      finish_strip<kTokens>(args, epilogue, sum_of, part, epoch, row_factor, lane);
    }
    if (++slot == args.slots) slot = 0;
  }
}

/// Launches the kernel for the weight's kind, for one token or up to kStreamRows.
template <typename Epilogue>
void launch_linear(LinearArgs args, int tokens, const Epilogue& epilogue,
                   const DeviceLimits& limits, cudaStream_t stream) {
  const StreamPlan plan = plan_stream(args, tokens, limits);
  const auto launch = [&]<WeightKind kKind, int kTokens>() {
    launch_kernel(linear_kernel<kKind, kTokens, Epilogue>, plan.blocks, kStreamThreads,
                  plan.shared_bytes, limits, stream, args, epilogue);
  };
  const auto of_kind = [&]<WeightKind kKind>() {
    if (tokens == 1) {
      launch.template operator()<kKind, 1>();
    } else {
      launch.template operator()<kKind, kStreamRows>();
    }
  };
  switch (args.weight.kind) {
    case WeightKind::nibble:
      return of_kind.template operator()<WeightKind::nibble>();
    case WeightKind::byte:
      return of_kind.template operator()<WeightKind::byte>();
    case WeightKind::half:
      return of_kind.template operator()<WeightKind::half>();
    case WeightKind::bfloat:
      return of_kind.template operator()<WeightKind::bfloat>();
    case WeightKind::single:
      return of_kind.template operator()<WeightKind::single>();
  }
}

}  // namespace guanaco::cuda
