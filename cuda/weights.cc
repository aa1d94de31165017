#include "weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "packed_order.h"
#include "support/check.h"

namespace guanaco::cuda {
namespace {

constexpr std::size_t kSliceBytes = std::size_t(64) << 20;  ///< of dense rows staged at a time
constexpr int kReaders = 8;

int divide_up(int a, int b) { return (a + b - 1) / b; }

int type_of(const StoredTensor& tensor) {
  return tensor.entry->dtype == DType::f16 ? 0 : tensor.entry->dtype == DType::bf16 ? 1 : 2;
}

WeightKind kind_of(const Linear& part) {
  if (const auto* gptq = std::get_if<GptqLinear>(&part))
    return gptq->bits == 8 ? WeightKind::byte : WeightKind::nibble;
  constexpr WeightKind kKinds[] = {WeightKind::half, WeightKind::bfloat, WeightKind::single};
  return kKinds[type_of(std::get<DenseLinear>(part).weight)];
}

/// Strips of a fused weight: gate and up share theirs, other parts follow each other.
int strips_of(std::span<const Linear> parts) {
  if (parts.size() == 2) return divide_up(outputs(parts[0]), kStripOutputs / 2);
  int strips = 0;
  for (const Linear& part : parts) strips += divide_up(outputs(part), kStripOutputs);
  return strips;
}

StripMap strip_map(std::span<const Linear> parts, std::size_t i, int head_dim) {
  StripMap map;
  if (parts.size() == 2) {
    map.order = StripOrder::gate_up;
    map.half = int(i);
    return map;
  }
  for (std::size_t before = 0; before < i; ++before)
    map.first_strip += divide_up(outputs(parts[before]), kStripOutputs);
  if (parts.size() == 3 && i < 2) {
    map.order = StripOrder::rotary;
    map.head_dim = head_dim;
  }
  return map;
}

/// The output a strip's row has in its part, -1 for padding.
int output_of(const StripMap& map, int strip, int row, int count) {
  const int s = strip - map.first_strip;
  int output = s * kStripOutputs + row;
  if (map.order == StripOrder::gate_up) {
    if (row / 8 != map.half) return -1;
    output = s * 8 + row % 8;
  } else if (map.order == StripOrder::rotary) {
    const int per_head = map.head_dim / kStripOutputs;
    output =
        s / per_head * map.head_dim + row / 8 * (map.head_dim / 2) + s % per_head * 8 + row % 8;
  }
  return s >= 0 && output < count ? output : -1;
}

/// Group of each input row.
std::vector<std::int32_t> groups_of(const GptqLinear& part) {
  if (part.g_idx) return read_group_index(part);
  std::vector<std::int32_t> group(std::size_t(part.inputs));
  for (int k = 0; k < part.inputs; ++k) group[std::size_t(k)] = k / part.group_size;
  return group;
}

std::vector<float> biases(std::span<const Linear> parts, int head_dim, int strips) {
  std::vector<float> all;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const StoredTensor& bias =
        std::visit([](const auto& part) -> const StoredTensor& { return part.bias; }, parts[i]);
    if (!bias) continue;
    all.resize(std::size_t(strips) * kStripOutputs);
    const std::vector<float> values = bias.read_floats();
    const StripMap map = strip_map(parts, i, head_dim);
    for (int strip = 0; strip < strips; ++strip)
      for (int row = 0; row < kStripOutputs; ++row)
        if (const int output = output_of(map, strip, row, int(values.size())); output >= 0)
          all[std::size_t(strip * kStripOutputs + row)] = values[std::size_t(output)];
  }
  return all;
}

void finish_shape(StreamedWeight& weight, int positions) {
  weight.strip_blocks = divide_up(positions, kBlockInputs);
  weight.block_bytes =
      block_bytes(weight.kind, weight.runs, weight.float_scales, weight.strip_blocks);
}

/// Copies into shared memory end at multiples of 16 bytes.
std::size_t block_bytes_on_device(const StreamedWeight& weight) {
  return (std::size_t(weight.bytes()) + 15) / 16 * 16;
}

}  // namespace

StreamedWeight plan_weight(std::span<const Linear> parts) {
  StreamedWeight weight;
  weight.inputs = inputs(parts[0]);
  weight.strips = strips_of(parts);
  weight.kind = kind_of(parts[0]);
  for (const Linear& part : parts) {
    if (kind_of(part) != weight.kind)
      weight.kind = WeightKind::single;  // rare: modules of different formats
    if (const auto* gptq = std::get_if<GptqLinear>(&part)) {
      weight.float_scales |= type_of(gptq->scales) != 0;
      weight.runs = std::max(weight.runs, runs_per_block(gptq->group_size, gptq->groups));
    }
  }
  if (weight.kind == WeightKind::single) weight.runs = 1, weight.float_scales = false;
  finish_shape(weight, weight.inputs);
  return weight;
}

std::uint64_t weight_bytes(std::span<const Linear> parts) {
  const StreamedWeight weight = plan_weight(parts);
  std::uint64_t bytes = block_bytes_on_device(weight);
  for (const Linear& part : parts)
    if (const auto* gptq = std::get_if<GptqLinear>(&part); gptq != nullptr && gptq->g_idx) {
      // The order of the inputs, and their places.
      bytes += 2 * std::uint64_t(weight.strip_blocks) * kBlockInputs * sizeof(int);
      break;
    }
  return bytes;
}

Weights::Weights(int head_dim)
    : head_dim_(head_dim), bad_scale_(sizeof(BadScale), "a scale that is no number") {
  check(cudaMemset(bad_scale_.as<void>(), 0xff, sizeof(BadScale)), "cudaMemset");
  check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

/// In place for what follows on the loader's stream.
template <typename T>
DeviceBuffer Weights::upload(const std::vector<T>& values, const char* purpose) {
  const std::size_t bytes = values.size() * sizeof(T);
  DeviceBuffer buffer(bytes, purpose);
  check(cudaMemcpyAsync(buffer.as<void>(), values.data(), bytes, cudaMemcpyHostToDevice,
                        loader(0).stream()),
        "cudaMemcpyAsync");
  return buffer;
}

/// One that can stage so many bytes at a time.
WeightLoader& Weights::loader(std::size_t staged_bytes) {
  if (loader_ != nullptr && staged_bytes <= staging_bytes_) return *loader_;
  if (loader_ != nullptr) loader_->finish();
  loader_.reset();
  const auto make = [&](std::size_t bytes) {
    staging_bytes_ = std::max(bytes, kSliceBytes);
    loader_ = std::make_unique<WeightLoader>(staging_bytes_, kReaders);
  };
  try {
    make(3 * staged_bytes);  // one is read, one copied, one repacked
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) throw;
    make(staged_bytes);
  }
  return *loader_;
}

void Weights::finish() {
  if (loader_ != nullptr) loader_->finish();
  BadScale bad = 0;
  check(cudaMemcpy(&bad, bad_scale_.as<void>(), sizeof bad, cudaMemcpyDeviceToHost), "cudaMemcpy");
  if (bad == ~BadScale(0)) return;
  const StoredTensor& scales = scales_[std::size_t(bad >> 32)];
  fail(ErrorCode::malformed, "{}: tensor {}: a scale is {}, expected finite numbers",
       scales.file->file().path().string(), scales.entry->name,
       std::bit_cast<float>(std::uint32_t(bad)));
}

Weight Weights::linear(std::span<const Linear> parts) {
  auto result = std::make_unique<DeviceLinear>();
  StreamedWeight& weight = result->streamed;
  weight = plan_weight(parts);

  // Codes are packed in the order of their groups; one order serves all parts, or none does.
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto* gptq = std::get_if<GptqLinear>(&parts[i]);
    if (gptq == nullptr) continue;
    const std::vector<std::int32_t> group = groups_of(*gptq);
    if (weight.kind == WeightKind::single) continue;
    std::vector<std::int32_t> of_part =
        packed_order(group, gptq->groups, kBlockInputs / weight.runs);
    if (i > 0 && of_part != order) {
      weight.kind = WeightKind::single;
      weight.runs = 1;
      weight.float_scales = false;
      order.clear();
    } else {
      order = std::move(of_part);
    }
  }
  finish_shape(weight, order.empty() ? weight.inputs : int(order.size()));

  result->blocks = DeviceBuffer(block_bytes_on_device(weight), "weights");
  weight.blocks = result->blocks.as<std::uint8_t>();
  if (!order.empty()) {
    result->order = upload(order, "the order of a weight's inputs");
    weight.order = result->order.as<int>();
    if (int(order.size()) == weight.inputs) {  // no gaps
      std::vector<std::int32_t> place(order.size());
      for (std::size_t i = 0; i < order.size(); ++i) place[std::size_t(order[i])] = std::int32_t(i);
      result->place = upload(place, "the places of a weight's inputs");
      weight.place = result->place.as<int>();
    }
  }
  if (const std::vector<float> bias = biases(parts, head_dim_, weight.strips); !bias.empty()) {
    result->bias = upload(bias, "biases");
    weight.bias = result->bias.as<float>();
  }
  if (weight.kind >= WeightKind::half)  // dense rows leave padding as it is
    check(cudaMemsetAsync(result->blocks.as<void>(), 0, weight.bytes(), loader(0).stream()),
          "cudaMemsetAsync");
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const StripMap map = strip_map(parts, i, head_dim_);
    if (const auto* gptq = std::get_if<GptqLinear>(&parts[i])) {
      load_gptq(*gptq, map, weight);
    } else {
      load_dense(std::get<DenseLinear>(parts[i]), map, weight);
    }
  }
  result->bytes =
      result->blocks.bytes() + result->order.bytes() + result->place.bytes() + result->bias.bytes();
  return result;
}

void Weights::load_gptq(const GptqLinear& part, const StripMap& map, const StreamedWeight& weight) {
  GptqSource source{};
  source.bits = part.bits;
  source.inputs = part.inputs;
  source.outputs = part.outputs;
  source.groups = part.groups;
  source.scale_type = type_of(part.scales);
  source.v1 = part.zero_points == ZeroPoints::v1;
  source.group_size = part.group_size;
  source.bad = bad_scale_.as<BadScale>();
  source.number = unsigned(scales_.size());
  scales_.push_back(part.scales);

  std::vector<TensorBytes> tensors = {{part.qweight}, {part.qzeros}, {part.scales}};
  if (part.g_idx) tensors.push_back({part.g_idx});
  std::size_t bytes = 0;
  for (const TensorBytes& tensor : tensors)
    bytes += tensor.tensor.entry->bytes + WeightLoader::kAlignment;
  loader(bytes).load(std::move(tensors),
                     [=](std::span<void* const> at, cudaStream_t stream) mutable {
                       source.qweight = static_cast<const std::uint32_t*>(at[0]);
                       source.qzeros = static_cast<const std::uint32_t*>(at[1]);
                       source.scales = at[2];
                       if (at.size() > 3) source.group = static_cast<const int*>(at[3]);
                       if (weight.kind == WeightKind::single) {
                         repack_gptq_single(source, map, weight, stream);
                       } else {
                         repack_gptq(source, map, weight.order, weight, stream);
                       }
                     });
}

void Weights::load_dense(const DenseLinear& part, const StripMap& map,
                         const StreamedWeight& weight) {
  const std::uint64_t row_bytes = part.weight.entry->bytes / std::uint64_t(part.outputs);
  const int slice = int(std::max<std::uint64_t>(1, kSliceBytes / 3 / row_bytes));
  for (int first = 0; first < part.outputs; first += slice) {
    const int rows = std::min(slice, part.outputs - first);
    const std::uint64_t bytes = std::uint64_t(rows) * row_bytes;
    const int type = type_of(part.weight);
    loader(bytes + WeightLoader::kAlignment)
        .load({{part.weight, std::uint64_t(first) * row_bytes, bytes}},
              [=](std::span<void* const> at, cudaStream_t stream) {
                repack_dense(at[0], type, first, rows, map, weight, stream);
              });
  }
}

Weight Weights::norm(const StoredTensor& tensor) {
  auto result = std::make_unique<DeviceNorm>();
  result->values = upload(tensor.read_floats(), "a norm");
  result->bytes = result->values.bytes();
  return result;
}

Weight Weights::table(const StoredTensor& tensor) {
  auto result = std::make_unique<DeviceTable>();
  result->type = type_of(tensor);
  result->rows = DeviceBuffer(tensor.entry->bytes, "the embedding table");
  result->bytes = result->rows.bytes();
  WeightLoader& pipeline = loader(0);
  pipeline.load({{tensor, 0, 0, result->rows.as<void>()}},
                [](std::span<void* const>, cudaStream_t) {});
  try {
    pipeline.finish();
  } catch (...) {
    loader_.reset();  // the readers may still write to what goes away now
    throw;
  }
  return result;
}

}  // namespace guanaco::cuda
