// Timings of the CUDA path for many rows at the shapes of a 13B model: a table, and in the tests of
// cuda_prompt_test.cu because numbers of kernels that are wrong are worth nothing. Every row is a
// median over buffers that L2 cannot hold.

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "cuda_prompt_fixture.cuh"
#include "launch.cuh"

using namespace guanaco::cuda;

namespace {

constexpr int kHidden = 5120, kFfn = 13824, kLayers = 40, kBlockBytes = 1024 + 32 + 8;

__device__ std::uint32_t hashed(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

__global__ void random_floats(float* out, std::size_t count, float scale) {
  for (std::size_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += std::size_t(gridDim.x) * 256)
    out[i] = (float(hashed(std::uint32_t(i))) * 0x1p-31f - 1.0f) * scale;
}

__global__ void random_halves(__half* out, std::size_t count, float scale) {
  for (std::size_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += std::size_t(gridDim.x) * 256)
    out[i] = __float2half((float(hashed(std::uint32_t(i))) * 0x1p-31f - 1.0f) * scale);
}

/// Blocks of nibbles with one run: random codes, scales near 1/500, zero points 8.
__global__ void random_blocks(std::uint8_t* out, std::size_t bytes) {
  for (std::size_t i = blockIdx.x * 256 + threadIdx.x; i < bytes;
       i += std::size_t(gridDim.x) * 256) {
    const int at = int(i % kBlockBytes);
    const auto random = std::uint8_t(hashed(std::uint32_t(i)));
    out[i] = at < 1024 ? random : at >= 1056 ? 0x88 : at % 2 == 0 ? random : 0x18;
  }
}

template <typename Kernel, typename... Arguments>
void fill(Kernel kernel, Arguments... arguments) {
  launch_kernel(kernel, dim3(2048), 256, 0, DeviceLimits{}, nullptr, arguments...);
}

DeviceBuffer floats(std::size_t count, float scale = 1) {
  DeviceBuffer buffer(count * sizeof(float), "a timing");
  fill(random_floats, buffer.as<float>(), count, scale);
  return buffer;
}

struct Weight {
  DeviceBuffer memory;
  StreamedWeight weight;

  Weight(int outputs, int inputs) {
    weight.inputs = inputs;
    weight.strips = outputs / kStripOutputs;
    weight.strip_blocks = inputs / kBlockInputs;
    weight.block_bytes = kBlockBytes;
    memory = DeviceBuffer(weight.bytes(), "a timing");
    fill(random_blocks, memory.as<std::uint8_t>(), weight.bytes());
    weight.blocks = memory.as<std::uint8_t>();
  }
};

/// Median microseconds of one call of `work`, which is told the number of the call. A measurement
/// is `calls` calls.
double microseconds(cudaStream_t stream, int calls, const std::function<void(int)>& work) {
  const Event begin = make_event(true), end = make_event(true);
  int call = 0;
  std::vector<double> times;
  for (int i = 0; i < 8; ++i) {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    for (int c = 0; c < calls; ++c) work(call++);
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (i > 0) times.push_back(1e3 * milliseconds / calls);  // the first warms up
  }
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3];
}

/// One layer for one sequence from position 0, as the backend runs it.
struct Layer {
  Weight qkv{3 * kHidden, kHidden}, output{kHidden, kHidden}, gate_up{2 * kFfn, kHidden},
      down{kHidden, kFfn};
};

struct LayerRun {
  static constexpr int kSets = 3, kMostRows = 2048;
  AttentionShape shape{.layers = kSets, .heads = 40, .kv_heads = 40, .head_dim = 128};
  DeviceLimits limits = device_limits();
  Random random{1};
  std::vector<Layer> layers{kSets};
  Sequence sequence{shape, kMostRows};
  DeviceBuffer residual = floats(kMostRows * kHidden), norm = floats(kHidden),
               query = floats(kMostRows * kHidden), attended = floats(kMostRows * kHidden),
               mlp = floats(std::size_t(kMostRows) * kFfn);

  LayerRun() {
    fill(random_halves, sequence.memory.as<__half>(), sequence.memory.bytes() / 2, 1.0f);
  }
  void run(PromptScratch& scratch, const PassFixture& pass, int set, int rows,
           cudaStream_t stream) {
    Layer& layer = layers[std::size_t(set)];
    auto* x = residual.as<float>();
    prompt_linear(
        scratch, x, norm.as<float>(), 1e-6f, layer.qkv.weight, rows,
        [&](const float* products, const float* factors, int first, int count) {
          prompt_attention_input(products, factors, nullptr, first, count, rows,
                                 {shape, set, pass.rows, query.as<float>()}, stream);
        },
        stream);
    attend_prompt(query.as<float>(), shape, set, pass.rows, pass.segments.as<int4>(), 1, rows,
                  attended.as<float>(), limits, stream);
    const PromptEpilogue add = [&](const float* products, const float* factors, int first,
                                   int count) {
      prompt_residual(products, factors, nullptr, first, count, rows, x, kHidden, stream);
    };
    prompt_linear(scratch, attended.as<float>(), nullptr, 0, layer.output.weight, rows, add,
                  stream);
    prompt_linear(
        scratch, x, norm.as<float>(), 1e-6f, layer.gate_up.weight, rows,
        [&](const float* products, const float* factors, int first, int count) {
          prompt_mlp_input(products, factors, nullptr, first, count, rows, mlp.as<float>(), kFfn,
                           stream);
        },
        stream);
    prompt_linear(scratch, mlp.as<float>(), nullptr, 0, layer.down.weight, rows, add, stream);
  }
};

}  // namespace

TEST_CASE("timings: dequantise") {
  const Stream stream = make_stream();
  std::vector<Weight> weights;
  for (int i = 0; i < 3; ++i) weights.emplace_back(2 * kFfn, kHidden);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  const double bytes = 2.0 * 2 * kFfn * kHidden;
  const DeviceBuffer whole(2 * std::size_t(bytes), "a timing"),
      panel(std::size_t(24) << 20, "a timing");
  std::printf("\n%-44s %10s %12s\n", "dequantise 27648 x 5120, 4 bit", "us", "GB/s written");
  const auto report = [&](const char* name, double us) {
    std::printf("%-44s %10.1f %12.0f\n", name, us, bytes / us * 1e-3);
  };
  report("to memory", microseconds(stream, 4, [&](int call) {
           dequantise(weights[call % 3].weight, 0, 2 * kFfn / 16,
                      whole.as<__half>() + std::size_t(call % 2) * std::size_t(bytes / 2), stream);
         }));
  report("panels of 20 MiB, always the same", microseconds(stream, 4, [&](int call) {
           for (int first = 0; first < 2 * kFfn / 16; first += 128)
             dequantise(weights[call % 3].weight, first, std::min(128, 2 * kFfn / 16 - first),
                        panel.as<__half>(), stream);
         }));
}

TEST_CASE("timings: gemm") {
  const Stream stream = make_stream();
  Gemm gemm;
  const std::size_t pool = std::size_t(320) << 20;  // halves: every product takes the next part
  const DeviceBuffer weights(pool * 2, "a timing"), x(std::size_t(2048) * kFfn * 2, "a timing"),
      y(std::size_t(2048) * 2 * kFfn * 4, "a timing");
  fill(random_halves, weights.as<__half>(), pool, 0.02f);
  fill(random_halves, x.as<__half>(), x.bytes() / 2, 128.0f);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  std::printf("\n%-44s %10s %12s\n", "cuBLASLt fp16, fp32 products", "us", "TFLOP/s");
  for (const int rows : {64, 512, 2048})
    for (const auto& [outputs, inputs] :
         {std::pair(3 * kHidden, kHidden), std::pair(kHidden, kHidden),
          std::pair(2 * kFfn, kHidden), std::pair(kHidden, kFfn), std::pair(2048, kHidden),
          std::pair(4096, kHidden)}) {
      const std::size_t size = std::size_t(outputs) * inputs, parts = pool / size;
      const double us = microseconds(stream, 4, [&](int call) {
        gemm.multiply(x.as<__half>(), weights.as<__half>() + std::size_t(call) % parts * size,
                      y.as<float>(), rows, outputs, inputs, stream);
      });
      std::printf("rows %4d, %5d x %5d %22s %10.1f %12.0f\n", rows, outputs, inputs, "", us,
                  2.0 * rows * size / us * 1e-6);
    }
}

TEST_CASE("timings: attention and a whole layer") {
  const Stream stream = make_stream();
  LayerRun layer;
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  std::printf("\n%-44s %10s %12s\n", "attend_prompt, 40 heads of 128, causal", "us", "TFLOP/s");
  const auto attention = [&](int rows, int multiprocessors, const char* name) {
    const PassFixture pass(layer.shape, {{&layer.sequence, 0, rows}}, layer.random);
    DeviceLimits limits = layer.limits;
    limits.multiprocessors = multiprocessors;
    const double us = microseconds(stream, 6, [&](int call) {
      attend_prompt(layer.query.as<float>(), layer.shape, call % LayerRun::kSets, pass.rows,
                    pass.segments.as<int4>(), 1, rows, layer.attended.as<float>(), limits, stream);
    });
    std::printf("rows %4d%-35s %10.1f %12.0f\n", rows, name, us,
                2.0 * rows * rows * kHidden / us * 1e-6);
  };
  for (const int rows : {128, 512, 1024, 2048}) {
    attention(rows, 1, ", tiles of 128");
    attention(rows, 1 << 20, ", tiles of 64");
  }

  std::printf("\n%-44s %10s %12s\n", "one layer (x 40: the model, no logits)", "us", "tok/s of 40");
  constexpr std::size_t kMiB = std::size_t(1) << 20;
  struct Room {
    std::size_t panel, products;
  };
  for (const Room& room : {Room{16, 16}, Room{24, 16}, Room{32, 16}, Room{48, 16}, Room{64, 16},
                           Room{64, 32}, Room{96, 32}, Room{128, 64}, Room{288, 256}}) {
    PromptScratch scratch(LayerRun::kMostRows, kFfn, room.panel * kMiB, room.products * kMiB);
    for (const int rows : {64, 128, 512, 1024, 2048}) {
      const PassFixture pass(layer.shape, {{&layer.sequence, 0, rows}}, layer.random);
      const double us = microseconds(stream, 6, [&](int call) {
        layer.run(scratch, pass, call % LayerRun::kSets, rows, stream);
      });
      std::printf("rows %4d, panels 2 x %3zu MiB, products %3zu MiB %1s %8.1f %12.0f\n", rows,
                  room.panel, room.products, "", us, rows / (us * kLayers * 1e-6));
    }
  }
}
