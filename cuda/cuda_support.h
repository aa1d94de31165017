#pragma once

#include <cuda_runtime_api.h>
#include <guanaco/error.h>

#include <cstddef>
#include <string>
#include <utility>

// How cuda/ calls the CUDA runtime: errors become exceptions, and every handle has one owner.
namespace guanaco::cuda {

/// Throws Error(device) that names the call and the reason.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw Error(ErrorCode::device, std::string(call) + ": " + cudaGetErrorString(status) + " (" +
                                     cudaGetErrorName(status) + ")");
}

/// A CUDA handle that is destroyed with its owner. Movable.
template <typename Handle, auto kDestroy>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, Handle{})) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != Handle{}) kDestroy(handle_);
  }
  operator Handle() const { return handle_; }

 private:
  Handle handle_{};
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;

/// A stream that does not wait for the default stream.
inline Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Stream(stream);
}

/// An event for ordering streams, or for timing too.
inline Event make_event(bool timing = false) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
  return Event(event);
}

/// An event whose waiter sleeps.
inline Event make_blocking_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
  return Event(event);
}

/// Memory that is given back with its owner. The contents of fresh memory are unspecified.
template <typename Allocator>
class Buffer {
 public:
  Buffer() = default;
  /// Throws Error(out_of_memory) with the bytes wanted, what for, and the bytes free.
  Buffer(std::size_t bytes, const char* purpose)
      : memory_(bytes == 0 ? nullptr : Allocator::allocate(bytes, purpose)), bytes_(bytes) {}

  template <typename T>
  T* as() const {
    return static_cast<T*>(static_cast<void*>(memory_));
  }
  std::size_t bytes() const { return bytes_; }

 private:
  Owned<void*, Allocator::free> memory_;
  std::size_t bytes_ = 0;
};

struct DeviceAllocator {
  static void* allocate(std::size_t bytes, const char* purpose) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());  // this error is over; later calls must not report it
      std::size_t free = 0, total = 0;
      check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
      throw Error(ErrorCode::out_of_memory, "device memory for " + std::string(purpose) +
                                                ": wanted " + std::to_string(bytes) + " bytes, " +
                                                std::to_string(free) + " of " +
                                                std::to_string(total) + " bytes are free");
    }
    check(status, "cudaMalloc");
    return memory;
  }
  static void free(void* memory) { static_cast<void>(cudaFree(memory)); }
};

struct PinnedAllocator {
  static void* allocate(std::size_t bytes, const char* purpose) {
    void* memory = nullptr;
    const cudaError_t status = cudaMallocHost(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw Error(ErrorCode::out_of_memory, "pinned host memory for " + std::string(purpose) +
                                                ": wanted " + std::to_string(bytes) + " bytes");
    }
    check(status, "cudaMallocHost");
    return memory;
  }
  static void free(void* memory) { static_cast<void>(cudaFreeHost(memory)); }
};

using DeviceBuffer = Buffer<DeviceAllocator>;
using PinnedBuffer = Buffer<PinnedAllocator>;

}  // namespace guanaco::cuda
