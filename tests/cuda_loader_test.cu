// The pipeline that brings weights from files to the device. Needs a GPU; files lie in memory
// (/dev/shm) where there is room.

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>

#include <doctest/doctest.h>

#include "cuda_fixture.h"
#include "io/safetensors_writer.h"
#include "weight_loader.h"

using namespace guanaco;
using namespace guanaco::cuda;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Word i of a tensor. Its own inverse is nobody's business: it only must not look like its
/// neighbours.
__host__ __device__ std::uint32_t word_of(int tensor, std::uint64_t i) {
  return std::uint32_t(i * 2654435761u) ^ std::uint32_t(tensor * 40503);
}

__global__ void count_wrong(const std::uint32_t* words, std::uint64_t count, std::uint64_t first,
                            int tensor, unsigned* wrong) {
  for (std::uint64_t i = blockIdx.x * std::uint64_t(blockDim.x) + threadIdx.x; i < count;
       i += std::uint64_t(gridDim.x) * blockDim.x)
    if (words[i] != word_of(tensor, first + i)) atomicAdd(wrong, 1u);
}

/// A file of tensors of so many words each, deleted with its owner.
struct Tensors {
  std::filesystem::path path;

  Tensors(int count, std::uint64_t words) {
    const bool roomy =
        std::filesystem::exists("/dev/shm") &&
        std::filesystem::space("/dev/shm").available > 2 * std::uint64_t(count) * words * 4;
    path = std::filesystem::path(roomy ? "/dev/shm" : "/tmp") /
           ("guanaco-loader-" + std::to_string(getpid()) + ".safetensors");
    std::vector<SafetensorsWriter::Tensor> tensors;
    for (int t = 0; t < count; ++t)
      tensors.push_back({"t" + std::to_string(1000 + t), DType::i32, {words}});
    SafetensorsWriter writer(path, tensors);
    std::vector<std::uint32_t> values(words);
    for (int t = 0; t < count; ++t) {
      for (std::uint64_t i = 0; i < words; ++i) values[i] = word_of(t, i);
      writer.write(std::as_bytes(std::span(values)));
    }
    writer.finish();
  }
  ~Tensors() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("loaded tensors arrive whole and in order through little staging memory") {
  if (!has_device()) return;
  constexpr int kTensors = 40;
  constexpr std::uint64_t kWords = 5'000'001;  // 20 MB: no whole number of pieces
  const Tensors tensors(kTensors, kWords);
  const SafetensorsFile file(tensors.path);
  const DeviceBuffer wrong(sizeof(unsigned), "a test"), direct(kWords * 4, "a test");
  check(cudaMemset(wrong.as<void>(), 0, 4), "cudaMemset");
  std::vector<int> order;
  {
    WeightLoader loader(std::size_t(50) << 20, 3);
    for (int t = 0; t < kTensors; ++t) {
      const TensorEntry* entry = file.find("t" + std::to_string(1000 + t));
      REQUIRE(entry != nullptr);
      const StoredTensor tensor{&file, entry};
      const std::uint64_t half = kWords / 2 * 4;
      std::vector<TensorBytes> parts = {{tensor, 0, half, nullptr}, {tensor, half, 0, nullptr}};
      if (t == 7) parts = {{tensor, 0, 0, direct.as<void>()}};
      loader.load(parts, [&, t](std::span<void* const> at, cudaStream_t stream) {
        order.push_back(t);
        if (t == 7) {
          CHECK(at[0] == direct.as<void>());
          count_wrong<<<256, 256, 0, stream>>>(direct.as<std::uint32_t>(), kWords, 0, t,
                                               wrong.as<unsigned>());
          return;
        }
        count_wrong<<<256, 256, 0, stream>>>(static_cast<std::uint32_t*>(at[0]), kWords / 2, 0, t,
                                             wrong.as<unsigned>());
        count_wrong<<<256, 256, 0, stream>>>(static_cast<std::uint32_t*>(at[1]),
                                             kWords - kWords / 2, kWords / 2, t,
                                             wrong.as<unsigned>());
      });
    }
    loader.finish();
  }
  CHECK(download<unsigned>(wrong.as<void>(), 1)[0] == 0);
  REQUIRE(order.size() == kTensors);
  for (int t = 0; t < kTensors; ++t) CHECK(order[std::size_t(t)] == t);
}

TEST_CASE(
    "a file cut short while it is loaded is an error of load or finish and leaves nothing "
    "running") {
  if (!has_device()) return;
  const Tensors tensors(10, 4'000'000);
  const SafetensorsFile file(tensors.path);
  std::filesystem::resize_file(tensors.path, 60'000'000);
  WeightLoader loader(std::size_t(64) << 20, 2);
  const auto load_all = [&] {
    for (const TensorEntry& entry : file.tensors())
      loader.load({{{&file, &entry}}}, [](auto, auto) {});
    loader.finish();
  };
  CHECK_THROWS_AS(load_all(), Error);
  CHECK_THROWS_AS(loader.finish(), Error);
}

TEST_CASE("a loader that is given up in the middle ends at once") {
  if (!has_device()) return;
  const Tensors tensors(30, 4'000'000);
  const SafetensorsFile file(tensors.path);
  std::size_t before = 0, after = 0, total = 0;
  check(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
  for (int round = 0; round < 5; ++round) {
    WeightLoader loader(std::size_t(512) << 20, 4);
    for (const TensorEntry& entry : file.tensors())
      loader.load({{{&file, &entry}}}, [](auto, auto) {});
  }
  WeightLoader failing(std::size_t(64) << 20, 2);
  CHECK_THROWS_WITH_AS(
      (failing.load({{{&file, &file.tensors()[0]}}},
                    [](auto, auto) { throw Error(ErrorCode::device, "a kernel"); }),
       failing.finish()),
      "a kernel", Error);
  CHECK_THROWS_WITH_AS(
      WeightLoader(1024, 1).load({{{&file, &file.tensors()[0]}}}, [](auto, auto) {}),
      "staging weights: 16000000 bytes into 1024", Error);
  check(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
  CHECK(after + (std::size_t(70) << 20) >= before);
}

TEST_CASE("loading keeps up with the bus") {
  if (!has_device()) return;
  constexpr int kTensors = 60;
  constexpr std::uint64_t kWords = 17'500'000;  // 70 MB
  const Tensors tensors(kTensors, kWords);
  const SafetensorsFile file(tensors.path);
  const DeviceBuffer to(kWords * 4, "a test");
  const PinnedBuffer from(WeightLoader::kPieceBytes, "a test");
  const double copy_ms = milliseconds(
      [&](cudaStream_t stream) {
        check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), from.bytes(), cudaMemcpyHostToDevice,
                              stream),
              "cudaMemcpyAsync");
      },
      50);
  const auto begin = Clock::now();
  std::vector<std::byte> pageable(from.bytes());
  for (const TensorEntry& entry : file.tensors()) file.file().read(entry.offset, pageable);
  std::printf("pinned copies alone %.1f GB/s, reads by one thread %.1f GB/s\n",
              1e-6 * double(from.bytes()) / copy_ms,
              1e-9 * double(from.bytes() * kTensors) / seconds_since(begin));
  std::printf("load, %.1f GB in %s\n  readers   begin ms   GB/s   end ms\n",
              4e-9 * kWords * kTensors, tensors.path.c_str());
  for (int readers : {1, 2, 4, 6, 8, 12}) {
    const auto begin = Clock::now();
    auto loader = std::make_unique<WeightLoader>(std::size_t(512) << 20, readers);
    const double made = seconds_since(begin);
    for (const TensorEntry& entry : file.tensors())
      loader->load({{{&file, &entry}}}, [&](std::span<void* const> at, cudaStream_t stream) {
        check(cudaMemcpyAsync(to.as<void>(), at[0], kWords * 4, cudaMemcpyDeviceToDevice, stream),
              "cudaMemcpyAsync");
      });
    loader->finish();
    const double loaded = seconds_since(begin);
    loader.reset();
    std::printf("  %7d %10.1f %6.1f %8.1f\n", readers, 1e3 * made,
                4e-9 * kWords * kTensors / loaded, 1e3 * (seconds_since(begin) - loaded));
  }
}
