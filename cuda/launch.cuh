#pragma once

// How every kernel is launched: with all of shared memory carved out (two kernels that ask for
// different carve-outs cost microseconds where they meet) and, on Hopper, as a programmatic
// dependent of the kernel before it.

#include <cuda_runtime.h>

#include "cuda_support.h"
#include "kernels.h"

namespace guanaco::cuda {

template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes,
                   const DeviceLimits& limits, cudaStream_t stream, Arguments&&... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100),
        "cudaFuncSetAttribute");
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "cudaFuncSetAttribute");
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = std::size_t(shared_bytes);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = limits.dependent_launch ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
        "cudaLaunchKernelEx");
}

}  // namespace guanaco::cuda
