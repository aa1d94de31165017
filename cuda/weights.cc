#include "weights.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "packed_order.h"
#include "support/check.h"

namespace guanaco::cuda {
namespace {

constexpr std::size_t kSliceBytes = std::size_t(64) << 20;  ///< of dense rows staged at a time
constexpr int kReaders = 8;
constexpr std::size_t kCopyAlign = 16;  ///< copies of weights into shared memory end at multiples

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

template <typename T>
DeviceBuffer upload(std::span<const T> values, const char* purpose) {
  DeviceBuffer buffer(values.size_bytes(), purpose);
  check(cudaMemcpy(buffer.as<void>(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  return buffer;
}

void finish_shape(StreamedWeight& weight, int positions) {
  weight.strip_blocks = divide_up(positions, kBlockInputs);
  weight.block_bytes =
      block_bytes(weight.kind, weight.runs, weight.float_scales, weight.strip_blocks);
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
  std::uint64_t bytes = weight.bytes();
  for (const Linear& part : parts)
    if (const auto* gptq = std::get_if<GptqLinear>(&part); gptq != nullptr && gptq->g_idx) {
      // The order of the inputs, and their places.
      bytes += 2 * std::uint64_t(weight.strip_blocks) * kBlockInputs * sizeof(int);
      break;
    }
  return bytes;
}

WeightLoader& Weights::loader(std::size_t staging_bytes) {
  if (loader_ == nullptr || staging_bytes > staging_bytes_) {
    loader_.reset();
    staging_bytes_ = std::max(staging_bytes, kSliceBytes);
    loader_ = std::make_unique<WeightLoader>(staging_bytes_, kReaders);
  }
  return *loader_;
}

Weight Weights::linear(std::span<const Linear> parts) {
  auto result = std::make_unique<DeviceLinear>();
  StreamedWeight& weight = result->streamed;
  weight = plan_weight(parts);

  // Codes are packed in the order of their groups; one order serves all parts, or none does.
  std::vector<std::vector<std::int32_t>> groups(parts.size());
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto* gptq = std::get_if<GptqLinear>(&parts[i]);
    if (gptq == nullptr) continue;
    groups[i] = groups_of(*gptq);
    if (weight.kind == WeightKind::single) continue;
    std::vector<std::int32_t> of_part =
        packed_order(groups[i], gptq->groups, kBlockInputs / weight.runs);
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

  result->blocks = DeviceBuffer(weight.bytes() + kCopyAlign, "weights");
  weight.blocks = result->blocks.as<std::uint8_t>();
  if (!order.empty()) {
    result->order = upload<std::int32_t>(order, "the order of a weight's inputs");
    weight.order = result->order.as<int>();
    if (int(order.size()) == weight.inputs) {  // no gaps
      std::vector<std::int32_t> place(order.size());
      for (std::size_t i = 0; i < order.size(); ++i) place[std::size_t(order[i])] = std::int32_t(i);
      result->place = upload<std::int32_t>(place, "the places of a weight's inputs");
      weight.place = result->place.as<int>();
    }
  }
  if (const std::vector<float> bias = biases(parts, head_dim_, weight.strips); !bias.empty()) {
    result->bias = upload<float>(bias, "biases");
    weight.bias = result->bias.as<float>();
  }
  if (weight.kind >= WeightKind::half)  // dense rows leave padding as it is
    check(cudaMemset(result->blocks.as<void>(), 0, weight.bytes()), "cudaMemset");
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const StripMap map = strip_map(parts, i, head_dim_);
    if (const auto* gptq = std::get_if<GptqLinear>(&parts[i])) {
      load_gptq(*gptq, groups[i], map, *result);
    } else {
      load_dense(std::get<DenseLinear>(parts[i]), map, *result);
    }
  }
  result->bytes =
      result->blocks.bytes() + result->order.bytes() + result->place.bytes() + result->bias.bytes();
  return result;
}

void Weights::load_gptq(const GptqLinear& part, std::span<const std::int32_t> group,
                        const StripMap& map, const DeviceLinear& weight) {
  for (const float scale : part.scales.read_floats())
    require(std::isfinite(scale), ErrorCode::malformed,
            "{}: tensor {}: a scale is {}, expected finite numbers",
            part.scales.file->file().path().string(), part.scales.entry->name, scale);
  const DeviceBuffer groups = upload<std::int32_t>(group, "group indices");
  const std::size_t align = 256;
  WeightLoader& pipeline = loader(part.qweight.entry->bytes + part.qzeros.entry->bytes +
                                  part.scales.entry->bytes + 3 * align);
  pipeline.load({{part.qweight}, {part.qzeros}, {part.scales}},
                [&](std::span<void* const> at, cudaStream_t stream) {
                  const GptqSource source{static_cast<const std::uint32_t*>(at[0]),
                                          static_cast<const std::uint32_t*>(at[1]),
                                          at[2],
                                          part.bits,
                                          part.inputs,
                                          part.outputs,
                                          part.groups,
                                          type_of(part.scales),
                                          part.zero_points == ZeroPoints::v1,
                                          groups.as<int>()};
                  if (weight.streamed.kind == WeightKind::single) {
                    repack_gptq_single(source, map, weight.streamed, stream);
                  } else {
                    repack_gptq(source, map, weight.streamed.order, weight.streamed, stream);
                  }
                });
  pipeline.finish();  // the callback and what it writes to must not outlive this call
}

void Weights::load_dense(const DenseLinear& part, const StripMap& map, const DeviceLinear& weight) {
  const std::uint64_t row_bytes = part.weight.entry->bytes / std::uint64_t(part.outputs);
  const int slice = int(std::max<std::uint64_t>(1, kSliceBytes / 3 / row_bytes));
  WeightLoader& pipeline = loader(std::max<std::size_t>(kSliceBytes, row_bytes * 3 + 1024));
  for (int first = 0; first < part.outputs; first += slice) {
    const int rows = std::min(slice, part.outputs - first);
    pipeline.load(
        {{part.weight, std::uint64_t(first) * row_bytes, std::uint64_t(rows) * row_bytes}},
        [&, first, rows](std::span<void* const> at, cudaStream_t stream) {
          repack_dense(at[0], type_of(part.weight), first, rows, map, weight.streamed, stream);
        });
  }
  pipeline.finish();
}

Weight Weights::norm(const StoredTensor& tensor) {
  auto result = std::make_unique<DeviceNorm>();
  result->values = upload<float>(tensor.read_floats(), "a norm");
  result->bytes = result->values.bytes();
  return result;
}

Weight Weights::table(const StoredTensor& tensor) {
  auto result = std::make_unique<DeviceTable>();
  result->type = type_of(tensor);
  result->rows = DeviceBuffer(tensor.entry->bytes, "the embedding table");
  result->bytes = result->rows.bytes();
  WeightLoader& pipeline = loader(kSliceBytes);
  pipeline.load({{tensor, 0, 0, result->rows.as<void>()}},
                [](std::span<void* const>, cudaStream_t) {});
  pipeline.finish();
  return result;
}

}  // namespace guanaco::cuda
