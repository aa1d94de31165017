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
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  // The others take the address of a barrier in shared memory.
  __device__ static void arrive(std::uint32_t barrier) {
    asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier)
                 : "memory");
  }
  /// So many arrivals, which must not be the last.
  __device__ static void arrive_before_last(std::uint32_t barrier, int count) {
    asm volatile(
        "{\n .reg .b64 state;\n mbarrier.arrive.noComplete.shared.b64 state, [%0], %1;\n}" ::"r"(
            barrier),
        "r"(count)
        : "memory");
  }
  /// Whether the phase is over.
  __device__ static bool over(std::uint32_t barrier, int parity) {
    unsigned done;
    asm volatile(
        "{\n .reg .pred done;\n mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
        " selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
  }
  /// Returns once the phase is over.
  __device__ static void wait(std::uint32_t barrier, int parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        " @!done bra again;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
#else
    while (!over(barrier, parity)) {
    }
#endif
  }
};

#if __CUDA_ARCH__ >= 900
inline constexpr int kCopyArrivals = 1;  // the elected lane's expect_tx; bytes complete the phase
#else
inline constexpr int kCopyArrivals = kWarp;  // every lane's copies arrive
#endif

/// Announces copies of so many bytes in all: the barrier at `full` completes a phase when they have
/// arrived. This and the next two are called by all lanes of one warp with the same arguments.
__device__ inline void begin_copies([[maybe_unused]] std::uint32_t full,
                                    [[maybe_unused]] std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .pred elected;\n"
      " elect.sync _|elected, 0xffffffff;\n"
      " @elected mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n}" ::"r"(full),
      "r"(bytes)
      : "memory");
#endif
}
/// Copies bytes (a multiple of 16, both sides 16-byte aligned) to shared memory. Hopper: one bulk
/// copy by the copy engine; before: 16 bytes a lane.
__device__ inline void copy_async(std::uint32_t shared, const void* global, std::uint32_t bytes,
                                  [[maybe_unused]] std::uint32_t full, [[maybe_unused]] int lane) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .pred elected;\n"
      " elect.sync _|elected, 0xffffffff;\n"
      " @elected cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];\n}" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(full)
      : "memory");
#else
  const auto from = reinterpret_cast<std::uintptr_t>(global);
  for (std::uint32_t at = lane * 16u; at < bytes; at += kWarp * 16u)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared + at), "l"(from + at)
                 : "memory");
#endif
}
__device__ inline void end_copies([[maybe_unused]] std::uint32_t full) {
#if __CUDA_ARCH__ < 900
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
#endif
}
/// Nothing that this thread copies is under way any more.
__device__ inline void finish_copies() {
#if __CUDA_ARCH__ < 900
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/// Orders ordinary writes to shared memory before bulk copies into the same place.
__device__ inline void fence_copies_after_writes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

/// A word in shared memory that one thread writes and others wait for: what was written before is
/// visible to who sees it.
__device__ inline unsigned load_acquire(std::uint32_t shared) {
  unsigned value;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(value) : "r"(shared) : "memory");
  return value;
}
__device__ inline void store_release(std::uint32_t shared, unsigned value) {
  asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(shared), "r"(value) : "memory");
}

/// Asks for what will be read soon: memory may take microseconds.
__device__ inline void prefetch(const void* pointer) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer));
}

/// Element of an array of `type` 0: F16, 1: BF16, 2: F32.
__device__ inline float load_float(const void* values, int type, std::size_t index) {
  if (type == 0) return __half2float(static_cast<const __half*>(values)[index]);
  if (type == 1) return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[index]);
  return static_cast<const float*>(values)[index];
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
