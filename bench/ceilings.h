#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace bench {

/// What the machine can do, measured in the same process as everything that is compared with it. 0:
/// not measured here.
struct Ceilings {
  std::string device;     ///< name, clocks, driver: compare only where this is the same
  double read = 0;        ///< bytes a second, all read and none written
  double copy = 0;        ///< bytes a second, read and written counted together
  double multiply = 0;    ///< floating point operations a second of large fp16 matrix products
  std::size_t cache = 0;  ///< bytes of the last cache in front of the memory

  struct Measured {
    std::string what;
    double value;
  };
  std::vector<Measured> reads;      ///< ways to read and bytes a second; `read` is the best
  std::vector<Measured> latencies;  ///< what cannot be hidden by bandwidth, in seconds
};

/// Says what is being measured; throws to give up.
using Notify = std::function<void(const std::string&)>;

/// Of a GPU. Takes 4 GiB of its memory, or half of what is free, and some seconds. Defined where
/// CUDA is. Throws guanaco::Error device, out_of_memory.
Ceilings measure_cuda_ceilings(int device, const Notify& notify);

/// Of the memory that `threads` threads read.
Ceilings measure_host_ceilings(int threads);

}  // namespace bench
