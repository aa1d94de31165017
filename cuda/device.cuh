#pragma once

// What kernels share: the few instructions of PTX that C++ has no name for, and reductions.
// PTX ISA 8.0, chapters 9.7.9 (asynchronous copies), 9.7.12 (mbarrier, griddepcontrol), 9.7.13
// (mma).

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace guanaco::cuda {

inline constexpr int kWarp = 32;

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// A barrier in shared memory that threads and asynchronous copies arrive at. A phase ends when the
/// expected arrivals and bytes are complete; waiters name the parity of the phase they wait for.
struct Barrier {
  std::uint64_t state;

  __device__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals));
  }
  __device__ void arrive() {
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                     shared_address(this))
                 : "memory");
  }
  __device__ void wait(int parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        " @!done bra again;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#else
    asm volatile(
        "{\n .reg .pred done;\n"
        "again: mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
        " @!done bra again;\n}" ::"r"(shared_address(this)),
        "r"(parity)
        : "memory");
#endif
  }
};

/// Makes freshly initialised barriers visible to the copy engine. By the thread that initialised
/// them.
__device__ inline void fence_barrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/// Orders ordinary writes to global memory that this thread has seen before copies it issues.
__device__ inline void fence_copies_after_writes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
inline constexpr int kCopyArrivals = 1;  // the elected lane's expect_tx; bytes complete the phase
#else
inline constexpr int kCopyArrivals = kWarp;  // every lane's cp.async group arrives
#endif

/// Copies bytes (a multiple of 16, both sides 16-byte aligned) to shared memory; `full` completes a
/// phase when all have arrived. Called by all lanes of one warp. Hopper: one bulk copy by the copy
/// engine; before: 16 bytes a lane.
__device__ inline void copy_async(void* shared, const void* global, std::uint32_t bytes,
                                  Barrier& full, int lane) {
#if __CUDA_ARCH__ >= 900
  if (lane == 0) {
    const std::uint32_t barrier = shared_address(&full);
    asm volatile(
        "{\n .reg .b64 state;\n mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n}" ::"r"(
            barrier),
        "r"(bytes)
        : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(barrier)
        : "memory");
  }
#else
  const std::uint32_t to = shared_address(shared);
  for (std::uint32_t at = lane * 16u; at < bytes; at += kWarp * 16u)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + at),
                 "l"(static_cast<const char*>(global) + at)
                 : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&full))
               : "memory");
#endif
}

/// Lets the next kernel of the stream start as soon as all blocks of this one have (programmatic
/// dependent launch).
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Returns when every kernel before this one in the stream is complete and its writes are visible.
/// What a kernel reads before may only be constant: weights, tables, pages written in earlier
/// passes.
__device__ inline void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// d += a * b; a: 16 x 32 unsigned bytes, b: 32 x 8 signed bytes, exact in int32.
__device__ inline void mma_u8s8(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// d += a * b; a: 16 x 16, b: 16 x 8 halves, accumulated in float.
__device__ inline void mma_half(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same for bfloat16.
__device__ inline void mma_bfloat(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                  std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A flag in global memory that one block sets after its writes and another waits for before it
/// reads them.
__device__ inline void release_flag(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ inline unsigned acquire_flag(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

/// Counts an arrival in shared memory: what was written before is visible to who sees the count.
/// Returns the count before.
__device__ inline unsigned arrive_at(unsigned* counter) {
  unsigned before;
  asm volatile("atom.acq_rel.cta.shared.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "r"(shared_address(counter))
               : "memory");
  return before;
}

/// Sums and maxima over `width` neighbouring lanes, in every one of them; always in the same order.
__device__ inline float warp_sum(float value, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline int warp_sum(int value, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline float warp_max(float value, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

/// Waits for `threads` threads (a multiple of 32) of a block at barrier `id` 1..15; 0 is
/// __syncthreads.
__device__ inline void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace guanaco::cuda
