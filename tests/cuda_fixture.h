#pragma once

// What tests on a GPU share.

#include <cstdio>
#include <functional>
#include <vector>

#include "cuda_support.h"

namespace guanaco::cuda {

inline bool has_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return true;
  std::puts("[skipped] no GPU");
  return false;
}

template <typename T>
DeviceBuffer upload(const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T), "a test");
  check(cudaMemcpy(buffer.as<void>(), values.data(), buffer.bytes(), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  return buffer;
}

template <typename T>
std::vector<T> download(const void* from, std::size_t count) {
  std::vector<T> values(count);
  check(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return values;
}

/// Of one run on the device, after one to warm up.
inline double milliseconds(const std::function<void(cudaStream_t)>& work, int times = 10) {
  const Stream stream = make_stream();
  const Event begin = make_event(true), end = make_event(true);
  work(stream);
  check(cudaEventRecord(begin, stream), "cudaEventRecord");
  for (int i = 0; i < times; ++i) work(stream);
  check(cudaEventRecord(end, stream), "cudaEventRecord");
  check(cudaEventSynchronize(end), "cudaEventSynchronize");
  float elapsed = 0;
  check(cudaEventElapsedTime(&elapsed, begin, end), "cudaEventElapsedTime");
  return elapsed / times;
}

}  // namespace guanaco::cuda
