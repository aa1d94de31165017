// What a GPU can do, at the least work that does it: read, copy, multiply, start a kernel, and
// agree among all multiprocessors. Medians of CUDA events over random data, since zeros run faster.

#include "ceilings.h"

#include <cuda_fp16.h>
#include <cuda/atomic>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "cuda_support.h"
#include "device.cuh"
#include "gemm.h"
#include "launch.cuh"

namespace bench {
namespace {

using namespace guanaco::cuda;

constexpr int kRepeats = 11;
constexpr std::size_t kMostBytes = std::size_t(4) << 30;
constexpr int kLoadThreads = 512, kCopySlots = 16, kEdgeThreads = 128;
constexpr int kEdges = 1000, kLaunches = 200, kExchanges = 1000;
constexpr int kGemmSize = 8192;

// ---- Data.

__device__ unsigned random_word(std::size_t index) {
  unsigned x = unsigned(index) * 0x9e3779b9u ^ unsigned(index >> 32);
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

__global__ void fill_words(unsigned* words, std::size_t count) {
  for (std::size_t i = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x; i < count;
       i += std::size_t(gridDim.x) * blockDim.x)
    words[i] = random_word(i) | 0x01010101u;  // no byte is zero
}

/// Values around 0, as of weights and activations.
__global__ void fill_halves(__half* halves, std::size_t count) {
  for (std::size_t i = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x; i < count;
       i += std::size_t(gridDim.x) * blockDim.x) {
    const unsigned word = random_word(i);
    halves[i] = __float2half((float(word & 0xffff) + float(word >> 16)) / 65536 - 1);
  }
}

// ---- Reading. What was read goes into a sum that is stored if it has one unlikely value, so that
// no load is left out.

constexpr unsigned kUnlikely = 0x12345678u;

/// Every thread has kLoads loads of 16 bytes under way.
template <int kLoads>
__global__ void __launch_bounds__(kLoadThreads)
    read_by_loads(const uint4* from, std::size_t count, unsigned* sink) {
  const std::size_t step = std::size_t(gridDim.x) * blockDim.x;
  unsigned sum = 0;
  for (std::size_t i = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x; i < count;
       i += kLoads * step) {
    uint4 loaded[kLoads] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (i + j * step < count) loaded[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (const uint4& four : loaded) sum ^= four.x ^ four.y ^ four.z ^ four.w;
  }
  if (sum == kUnlikely) *sink = sum;
}

/// A block is one warp that keeps `slots` asynchronous copies into shared memory under way: bulk
/// copies on Hopper.
__global__ void __launch_bounds__(kWarp)
    read_by_copies(const std::uint8_t* from, std::size_t chunks, unsigned chunk_bytes, int slots,
                   unsigned* sink) {
  extern __shared__ __align__(128) std::uint8_t ring[];
  __shared__ Barrier full[kCopySlots];
  const int lane = int(threadIdx.x);
  if (lane == 0)
    for (int slot = 0; slot < slots; ++slot) full[slot].init(kCopyArrivals);
  __syncwarp();

  std::size_t next = blockIdx.x;
  const auto copy_next = [&](int slot) {
    if (next < chunks) {
      const std::uint32_t barrier = shared_address(&full[slot]);
      begin_copies(barrier, chunk_bytes);
      copy_async(shared_address(ring + std::size_t(slot) * chunk_bytes), from + next * chunk_bytes,
                 chunk_bytes, barrier, lane);
      end_copies(barrier);
    }
    next += gridDim.x;
  };
  for (int slot = 0; slot < slots; ++slot) copy_next(slot);

  unsigned sum = 0;
  int slot = 0, parity = 0;
  for (std::size_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    Barrier::wait(shared_address(&full[slot]), parity);
    sum ^= reinterpret_cast<const unsigned*>(ring + std::size_t(slot) * chunk_bytes)[lane];
    __syncwarp();
    copy_next(slot);
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
  if (sum == kUnlikely) *sink = sum;
}

// ---- Latencies.

/// As little as a kernel can do that depends on the one before it.
__global__ void edge(unsigned* words) {
  launch_dependents();
  wait_for_predecessors();
  if (threadIdx.x == 0 && words[blockIdx.x] == kUnlikely) words[blockIdx.x] = 0;
}

/// Rounds of: every thread block publishes a word and waits for the words of all others.
__global__ void exchange(unsigned* words, unsigned rounds) {
  using Word = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;
  for (unsigned round = 1; round <= rounds; ++round) {
    if (threadIdx.x == 0) Word(words[blockIdx.x]).store(round, cuda::std::memory_order_relaxed);
    if (threadIdx.x < gridDim.x)
      while (Word(words[threadIdx.x]).load(cuda::std::memory_order_relaxed) < round) {
      }
    __syncthreads();
  }
}

/// Clock cycles a second, counted for ten milliseconds.
__global__ void count_cycles(double* hertz) {
  const auto now = [] {
    unsigned long long nanoseconds;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
    return nanoseconds;
  };
  const long long cycles = clock64();
  const unsigned long long start = now();
  unsigned long long elapsed = 0;
  while (elapsed < 10'000'000) elapsed = now() - start;
  *hertz = double(clock64() - cycles) / (double(elapsed) * 1e-9);
}

// ---- Measuring.

/// Of work queued on the stream.
template <typename Work>
double median_seconds(cudaStream_t stream, Work&& work) {
  const Event begin = make_event(true), end = make_event(true);
  std::vector<float> milliseconds;
  for (int i = -2; i < kRepeats; ++i) {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    work();
    check(cudaGetLastError(), "a kernel of guanaco-bench");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, begin, end), "cudaEventElapsedTime");
    if (i >= 0) milliseconds.push_back(elapsed);
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds[kRepeats / 2] / 1e3;
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

/// "580.159.04", from where the kernel module says it; empty elsewhere than on Linux.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;)
    if (!word.empty() && word[0] >= '0' && word[0] <= '9' && word.find('.') != word.npos)
      return word;
  return {};
}

class Gpu {
 public:
  explicit Gpu(int device) : device_(device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaGetDeviceProperties(&properties_, device), "cudaGetDeviceProperties");
    multiprocessors_ = unsigned(properties_.multiProcessorCount);
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    bytes_ = std::min(kMostBytes, free / 2) >> 26 << 26;
    stream_ = make_stream();
    data_ = DeviceBuffer(bytes_, "measuring bandwidth");
    words_ = DeviceBuffer(4096 * sizeof(unsigned), "measuring latency");
    check(cudaMemset(words_.as<void>(), 0, words_.bytes()), "cudaMemset");
    fill_words<<<blocks(8), kLoadThreads, 0, stream_>>>(data_.as<unsigned>(),
                                                        bytes_ / sizeof(unsigned));
    check(cudaGetLastError(), "fill_words");
  }

  std::size_t cache_bytes() const { return std::size_t(properties_.l2CacheSize); }

  /// Bytes a second by each way to read.
  std::vector<Ceilings::Measured> reads() {
    std::vector<Ceilings::Measured> all;
    const auto add = [&](std::string what, auto&& work) {
      all.push_back({std::move(what), double(bytes_) / median_seconds(stream_, work)});
    };
    const auto loads = [&](int at_once, auto kernel, unsigned each) {
      add(text(at_once, " loads of 16 B a thread, ", each, " blocks"), [&] {
        kernel<<<blocks(each), kLoadThreads, 0, stream_>>>(
            data_.as<uint4>(), bytes_ / sizeof(uint4), words_.as<unsigned>());
      });
    };
    loads(4, read_by_loads<4>, 4);
    loads(8, read_by_loads<8>, 2);
    const auto copies = [&](unsigned chunk_kib, int slots, unsigned each) {
      const unsigned chunk = chunk_kib << 10, shared = chunk * unsigned(slots);
      if ((shared + 1024) * each > properties_.sharedMemPerMultiprocessor) return;
      check(cudaFuncSetAttribute(read_by_copies, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shared)),
            "cudaFuncSetAttribute");
      add(text(slots, " copies of ", chunk_kib, " KiB, ", each, " blocks"), [&] {
        read_by_copies<<<blocks(each), kWarp, shared, stream_>>>(
            data_.as<std::uint8_t>(), bytes_ / chunk, chunk, slots, words_.as<unsigned>());
      });
    };
    copies(16, 6, 1);
    copies(16, 6, 2);
    copies(8, 8, 3);
    copies(16, 12, 1);
    copies(4, 12, 4);
    return all;
  }

  /// Bytes a second read and written.
  double copy() {
    const std::size_t half = bytes_ / 2;
    return double(bytes_) / median_seconds(stream_, [&] {
             check(cudaMemcpyAsync(data_.as<std::byte>() + half, data_.as<void>(), half,
                                   cudaMemcpyDeviceToDevice, stream_),
                   "cudaMemcpyAsync");
           });
  }

  /// Floating point operations a second, as the library multiplies for prompts.
  double multiply() {
    constexpr std::size_t kElements = std::size_t(kGemmSize) * kGemmSize;
    const DeviceBuffer factors(2 * kElements * sizeof(__half), "factors of a matrix product");
    const DeviceBuffer product(kElements * sizeof(float), "a matrix product");
    fill_halves<<<blocks(8), kLoadThreads, 0, stream_>>>(factors.as<__half>(), 2 * kElements);
    check(cudaGetLastError(), "fill_halves");
    Gemm gemm;
    const double seconds = median_seconds(stream_, [&] {
      gemm.multiply(factors.as<__half>(), factors.as<__half>() + kElements, product.as<float>(),
                    kGemmSize, kGemmSize, kGemmSize, stream_);
    });
    count_cycles<<<1, 1, 0, stream_>>>(words_.as<double>());  // while the clocks are those of load
    check(cudaGetLastError(), "count_cycles");
    check(
        cudaMemcpyAsync(&hertz_, words_.as<void>(), sizeof hertz_, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    return 2.0 * double(kElements) * kGemmSize / seconds;
  }

  std::vector<Ceilings::Measured> latencies() {
    std::vector<Ceilings::Measured> all;
    check(cudaMemset(words_.as<void>(), 0, words_.bytes()), "cudaMemset");
    all.push_back({"graph edge", graph_edge(false)});
    if (properties_.major >= 9) all.push_back({"graph edge, dependent launch", graph_edge(true)});
    all.push_back({"stream launch", launch(false)});
    all.push_back({"cooperative launch", launch(true)});
    all.push_back({"exchange of all multiprocessors", exchange_all()});
    return all;
  }

  /// After multiply(), which measures the clock.
  std::string describe() const {
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    const auto version = [](int number) { return text(number / 1000, ".", number % 1000 / 10); };
    return text(properties_.name, ", sm_", properties_.major, properties_.minor, ", ",
                multiprocessors_, " multiprocessors, ", cache_bytes() / 1'000'000, " MB L2, ",
                int(hertz_ / 1e6), " of ", attribute(cudaDevAttrClockRate, device_) / 1000,
                " MHz, memory ", attribute(cudaDevAttrMemoryClockRate, device_) / 1000,
                " MHz, ECC ", properties_.ECCEnabled != 0 ? "on" : "off", ", driver ",
                driver_version(), ", CUDA ", version(driver), ", runtime ", version(runtime));
  }

 private:
  unsigned blocks(unsigned each) const { return multiprocessors_ * each; }

  /// A kernel on every multiprocessor behind another, in a graph.
  double graph_edge(bool dependent) {
    DeviceLimits limits;
    limits.dependent_launch = dependent;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    for (int i = 0; i < kEdges; ++i)
      launch_kernel(edge, blocks(1), kEdgeThreads, 0, limits, stream_, words_.as<unsigned>());
    cudaGraph_t captured = nullptr;
    check(cudaStreamEndCapture(stream_, &captured), "cudaStreamEndCapture");
    const Owned<cudaGraph_t, cudaGraphDestroy> graph(captured);
    cudaGraphExec_t instance = nullptr;
    check(cudaGraphInstantiateWithFlags(&instance, graph, 0), "cudaGraphInstantiateWithFlags");
    const Owned<cudaGraphExec_t, cudaGraphExecDestroy> executable(instance);
    return median_seconds(stream_,
                          [&] { check(cudaGraphLaunch(executable, stream_), "cudaGraphLaunch"); }) /
           kEdges;
  }

  /// A kernel on every multiprocessor behind another, launched one by one.
  double launch(bool cooperative) {
    unsigned* words = words_.as<unsigned>();
    return median_seconds(stream_,
                          [&] {
                            for (int i = 0; i < kLaunches; ++i) {
                              if (cooperative) {
                                launch_together(edge, kEdgeThreads, words);
                              } else {
                                edge<<<blocks(1), kEdgeThreads, 0, stream_>>>(words);
                              }
                            }
                          }) /
           kLaunches;
  }

  double exchange_all() {
    const int threads = int((multiprocessors_ + kWarp - 1) / kWarp * kWarp);
    return median_seconds(stream_,
                          [&] {
                            check(cudaMemsetAsync(words_.as<void>(), 0, words_.bytes(), stream_),
                                  "cudaMemsetAsync");
                            launch_together(exchange, threads, words_.as<unsigned>(),
                                            unsigned(kExchanges));
                          }) /
           kExchanges;
  }

  /// One block on every multiprocessor, all resident at once.
  template <typename... Parameters>
  void launch_together(void (*kernel)(Parameters...), int threads, Parameters... parameters) {
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks(1));
    config.blockDim = dim3(unsigned(threads));
    config.stream = stream_;
    config.attrs = &together;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, parameters...), "cudaLaunchKernelEx");
  }

  int device_;
  cudaDeviceProp properties_{};
  unsigned multiprocessors_ = 0;
  std::size_t bytes_ = 0;
  Stream stream_;
  DeviceBuffer data_, words_;
  double hertz_ = 0;
};

}  // namespace

Ceilings measure_cuda_ceilings(int device, const Notify& notify) {
  Gpu gpu(device);
  Ceilings ceilings;
  ceilings.cache = gpu.cache_bytes();
  notify("reading");
  ceilings.reads = gpu.reads();
  for (const Ceilings::Measured& way : ceilings.reads)
    ceilings.read = std::max(ceilings.read, way.value);
  notify("copying");
  ceilings.copy = gpu.copy();
  notify("launching");
  ceilings.latencies = gpu.latencies();
  notify("multiplying");
  ceilings.multiply = gpu.multiply();
  ceilings.device = gpu.describe();
  return ceilings;
}

}  // namespace bench
