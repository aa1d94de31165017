#pragma once

// What the tests and timings of the CUDA path for many rows share: device vectors, a packer written
// from the description in cuda/layout.h alone, and passes over sequences with pages.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "cuda_support.h"
#include "kernels.h"
#include "prompt.h"

namespace guanaco::cuda {

struct Random {
  explicit Random(unsigned seed) : engine(seed) {}
  std::mt19937 engine;
  float normal() { return std::normal_distribution<float>()(engine); }
  std::vector<float> normal(int count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal();
    return values;
  }
  int below(int end) { return int(engine() % unsigned(end)); }
};

template <typename T>
DeviceBuffer upload(const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T), "a test");
  check(cudaMemcpy(buffer.as<void>(), values.data(), values.size() * sizeof(T),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  return buffer;
}

/// Waits for all work on the device.
template <typename T>
std::vector<T> download(const DeviceBuffer& buffer, std::size_t count) {
  std::vector<T> values(count);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaMemcpy(values.data(), buffer.as<void>(), count * sizeof(T), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  return values;
}

/// Memory in which every fp16 and fp32 is NaN.
inline DeviceBuffer poisoned(std::size_t bytes) {
  DeviceBuffer buffer(bytes, "a test");
  check(cudaMemset(buffer.as<void>(), 0xff, bytes), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return buffer;
}

inline DeviceLimits device_limits() {
  DeviceLimits limits;
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  read(limits.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(limits.shared_bytes_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  read(limits.shared_bytes_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(minor, cudaDevAttrComputeCapabilityMinor);
  limits.capability = 10 * major + minor;
  limits.dependent_launch = limits.capability >= 90;
  return limits;
}

/// A weight of random elements, and what they mean: values[output in strip order][packed position].
struct PackedWeight {
  StreamedWeight weight;
  DeviceBuffer memory;
  std::vector<double> values;

  PackedWeight(int strips, int blocks, WeightKind kind, int runs, bool float_scales,
               unsigned seed) {
    Random random(seed);
    const int size = block_bytes(kind, runs, float_scales, blocks), columns = blocks * kBlockInputs;
    std::vector<std::uint8_t> bytes(std::size_t(strips) * blocks * size, 0);
    values.resize(std::size_t(strips) * kStripOutputs * columns);
    for (int strip = 0; strip < strips; ++strip)
      for (int block = 0; block < blocks; ++block)
        for (int row = 0; row < kStripOutputs; ++row)
          for (int run = 0; run < runs; ++run) {
            std::uint8_t* to = bytes.data() + (std::size_t(strip) * blocks + block) * size;
            double* value = values.data() + (std::size_t(strip) * kStripOutputs + row) * columns +
                            block * kBlockInputs;
            const bool codes = kind == WeightKind::nibble || kind == WeightKind::byte;
            double scale = 0;
            int zero = 0;
            if (codes) put_scale(to, kind, runs, float_scales, row, run, random, scale, zero);
            for (int k = run * (kBlockInputs / runs); k < (run + 1) * (kBlockInputs / runs); ++k)
              value[k] = codes ? scale * (put_code(to, kind, row, k, random) - zero)
                               : put_float(to, kind, row, k, random);
          }
    memory = upload(bytes);
    weight.blocks = memory.as<std::uint8_t>();
    weight.inputs = columns;
    weight.strips = strips;
    weight.strip_blocks = blocks;
    weight.block_bytes = size;
    weight.runs = runs;
    weight.kind = kind;
    weight.float_scales = float_scales;
  }

 private:
  static void put_scale(std::uint8_t* block, WeightKind kind, int runs, bool float_scales, int row,
                        int run, Random& random, double& scale, int& zero) {
    const bool nibble = kind == WeightKind::nibble;
    std::uint8_t* scales = block + (nibble ? 1024 : 2048);
    const int at = run * 16 + row % 8 * 2 + row / 8;
    const float fresh = 0.01f * std::exp(random.normal());
    if (float_scales) {
      std::memcpy(scales + 4 * at, &fresh, 4);
      scale = fresh;
    } else {
      const __half rounded = __float2half(fresh);
      std::memcpy(scales + 2 * at, &rounded, 2);
      scale = __half2float(rounded);
    }
    std::uint8_t* zeros = scales + runs * 16 * (float_scales ? 4 : 2);
    zero = random.below(nibble ? 16 : 256);
    if (nibble) {
      zeros[run * 8 + row / 2] |= std::uint8_t(zero << (4 * (row % 2)));
    } else {
      zeros[run * 16 + row] = std::uint8_t(zero);
    }
  }
  static int put_code(std::uint8_t* block, WeightKind kind, int row, int k, Random& random) {
    const int g = row % 8, r = row / 8;
    if (kind == WeightKind::nibble) {
      const int code = random.below(16), h = k / 64, j = k / 32 % 2, high = k / 16 % 2,
                t = k / 4 % 4, b = k % 4;
      block[(2 * h + j) * 256 + (g * 4 + t) * 8 + r * 4 + b] |= std::uint8_t(code << (4 * high));
      return code;
    }
    const int code = random.below(256), m = k / 32, c = k / 16 % 2, t = k / 4 % 4, b = k % 4;
    block[m * 512 + (g * 4 + t) * 16 + (2 * c + r) * 4 + b] = std::uint8_t(code);
    return code;
  }
  static double put_float(std::uint8_t* block, WeightKind kind, int row, int k, Random& random) {
    const float fresh = 0.02f * random.normal();
    if (kind == WeightKind::single) {
      std::memcpy(block + (row * 128 + k) * 4, &fresh, 4);
      return fresh;
    }
    const int g = row % 8, r = row / 8, m = k / 16, c = k / 8 % 2, t = k / 2 % 4;
    std::uint8_t* to = block + m * 512 + (g * 4 + t) * 16 + (2 * c + r) * 4 + k % 2 * 2;
    if (kind == WeightKind::half) {
      const __half rounded = __float2half(fresh);
      std::memcpy(to, &rounded, 2);
      return __half2float(rounded);
    }
    const __nv_bfloat16 rounded = __float2bfloat16(fresh);
    std::memcpy(to, &rounded, 2);
    return __bfloat162float(rounded);
  }
};

/// The pages of one sequence, scattered in memory, NaN where nothing has been written.
struct Sequence {
  AttentionShape shape;
  int pages;
  DeviceBuffer memory, table;
  std::vector<int> slot;  ///< of each page

  Sequence(const AttentionShape& of, int positions) : shape(of), pages((positions + 31) / 32) {
    memory = poisoned(pages * page_elements() * sizeof(__half));
    std::vector<__half*> addresses;
    for (int i = 0; i < pages; ++i) {
      slot.push_back(pages - 1 - i);
      addresses.push_back(memory.as<__half>() + slot[i] * page_elements());
    }
    table = upload(addresses);
  }
  std::size_t page_elements() const { return std::size_t(shape.layers) * shape.layer_elements(); }
  /// Index of dimension d of `head` (K heads, then V heads) at a position.
  std::size_t element(int layer, int head, int position, int d) const {
    return slot[position / 32] * page_elements() + layer * shape.layer_elements() +
           (std::size_t(head) * 32 + position % 32) * shape.head_dim + d;
  }
  __half* page(int position) const {
    return memory.as<__half>() + slot[position / 32] * page_elements();
  }
  /// Gives positions [0, end) random K and V in every layer.
  void fill(Random& random, int end) {
    std::vector<__half> values = download();
    for (int layer = 0; layer < shape.layers; ++layer)
      for (int head = 0; head < 2 * shape.kv_heads; ++head)
        for (int position = 0; position < end; ++position)
          for (int d = 0; d < shape.head_dim; ++d)
            values[element(layer, head, position, d)] = __float2half(random.normal());
    check(cudaMemcpy(memory.as<void>(), values.data(), memory.bytes(), cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  std::vector<__half> download() const {
    return cuda::download<__half>(memory, memory.bytes() / sizeof(__half));
  }
};

/// The rows of a pass: parts of sequences, one after the other.
struct PassFixture {
  struct Part {
    const Sequence* sequence;
    int first, count;  ///< positions
  };
  PassRows rows;
  DeviceBuffer positions, tables, append, angles, segments;
  std::vector<float2> host_angles;
  int most_rows = 0;

  PassFixture(const AttentionShape& shape, const std::vector<Part>& parts, Random& random) {
    std::vector<int> position;
    std::vector<__half* const*> table;
    std::vector<__half*> page;
    std::vector<int4> segment;
    for (const Part& part : parts) {
      segment.push_back({int(position.size()), part.count, part.first, 0});
      most_rows = std::max(most_rows, part.count);
      for (int i = 0; i < part.count; ++i) {
        position.push_back(part.first + i);
        table.push_back(part.sequence->table.as<__half*>());
        page.push_back(part.sequence->page(part.first + i));
      }
    }
    for (std::size_t i = 0; i < position.size() * (shape.head_dim / 2); ++i) {
      const float angle = random.normal();
      host_angles.push_back({std::cos(angle), std::sin(angle)});
    }
    positions = upload(position);
    tables = upload(table);
    append = upload(page);
    angles = upload(host_angles);
    segments = upload(segment);
    rows.positions = positions.as<int>();
    rows.tables = tables.as<__half* const*>();
    rows.append = append.as<__half*>();
    rows.angles = angles.as<float2>();
  }
};

}  // namespace guanaco::cuda
