#include "checkpoint/modules.h"

#include <algorithm>
#include <bit>
#include <string_view>
#include <utility>

#include <fmt/ranges.h>

#include "support/check.h"

namespace guanaco {
namespace {

using Shape = std::vector<std::uint64_t>;

constexpr std::uint64_t kMostWidth = 1 << 20, kMostVocab = 1 << 24;
constexpr int kMostLayers = 1024, kHeadDim = 128;

[[noreturn]] void missing(const std::string& tensor) {
  fail(ErrorCode::malformed, "tensor {} is missing", tensor);
}

StoredTensor take_shaped(TensorTable& tensors, const std::string& name, const Shape& shape) {
  const StoredTensor tensor = tensors.take(name);
  if (!tensor) missing(name);
  require(tensor.entry->shape == shape, ErrorCode::malformed,
          "tensor {}: expected shape {}, found {}", name, shape, tensor.entry->shape);
  return tensor;
}

void require_words(const StoredTensor& tensor) {
  require(tensor.entry->dtype == DType::i32, ErrorCode::unsupported,
          "tensor {}: expected I32, found {}", tensor.entry->name, name(tensor.entry->dtype));
}

/// What tells the linears of other quantisers from ours.
void refuse_foreign(const TensorTable& tensors, const std::string& name) {
  constexpr std::pair<std::string_view, std::string_view> kForeign[] = {
      {".zeros", "GPTQ before 2023-03-20, v0"},
      {".q_weight", "exl2"},
      {".trellis", "exl3"},
      {".B", "marlin"},
      {".weight_packed", "compressed-tensors"},
      {".weight.absmax", "bitsandbytes 4 bit"},
      {".SCB", "bitsandbytes 8 bit"},
      {".weight_scale", "fp8 or compressed-tensors"},
      {".weight_scale_inv", "fp8"}};
  for (const auto& [suffix, quantiser] : kForeign)
    require(!tensors.has(name + std::string(suffix)), ErrorCode::unsupported,
            "tensor {}{}: the format {} is not supported", name, suffix, quantiser);
}

int find_bits(const StoredTensor& qweight, const GptqLinear& linear,
              const QuantizationConfig& settings) {
  const Shape& shape = qweight.entry->shape;
  const std::uint64_t inputs = std::uint64_t(linear.inputs),
                      outputs = std::uint64_t(linear.outputs);
  require(shape != Shape({inputs, outputs / 8}), ErrorCode::unsupported,
          "tensor {}: shape {}: the format awq is not supported", qweight.entry->name, shape);
  if (shape.size() == 2 && shape[1] == outputs)
    for (const int bits : {2, 3, 4, 8}) {
      if (inputs * std::uint64_t(bits) != shape[0] * 32) continue;
      require(settings.varies_by_module || settings.bits.value_or(bits) == bits,
              ErrorCode::malformed, "tensor {}: shape {} means {} bits, but {} says {}",
              qweight.entry->name, shape, bits, settings.origin, settings.bits.value_or(0));
      require(outputs * std::uint64_t(bits) % 32 == 0, ErrorCode::malformed,
              "tensor {}: {} outputs of {} bits do not fill whole words", qweight.entry->name,
              outputs, bits);
      return bits;
    }
  fail(ErrorCode::malformed,
       "tensor {}: expected shape [{} * bits / 32, {}] with 2, 3, 4 or 8 bits, found {}",
       qweight.entry->name, inputs, outputs, shape);
}

int find_group_size(const GptqLinear& linear, const QuantizationConfig& settings) {
  const auto groups_of = [&](std::int64_t size) { return (linear.inputs + size - 1) / size; };
  if (settings.group_size) {
    const int size = *settings.group_size == -1 ? linear.inputs : *settings.group_size;
    if (groups_of(size) == linear.groups) return std::min(size, linear.inputs);
    require(
        settings.varies_by_module, ErrorCode::malformed,
        "tensor {}: shape {} means {} groups, but {} says group_size {}: {} groups of {} inputs",
        linear.qzeros.entry->name, linear.qzeros.entry->shape, linear.groups, settings.origin,
        *settings.group_size, groups_of(size), linear.inputs);
  }
  if (linear.inputs % linear.groups == 0) return linear.inputs / linear.groups;
  // The last group is short: the size is the power of two that gives this many.
  const std::uint32_t least = std::uint32_t(groups_of(linear.groups));
  const int size = int(std::bit_ceil(least));
  require(groups_of(size) == linear.groups, ErrorCode::malformed,
          "tensor {}: {} inputs cannot be in {} groups of one size", linear.qzeros.entry->name,
          linear.inputs, linear.groups);
  return size;
}

GptqLinear take_gptq(TensorTable& tensors, GptqLinear linear, const QuantizationConfig& settings) {
  const std::string& name = linear.name;
  linear.qweight = tensors.take(name + ".qweight");
  require_words(linear.qweight);
  linear.bits = find_bits(linear.qweight, linear, settings);

  linear.qzeros = tensors.take(name + ".qzeros");
  if (!linear.qzeros) missing(name + ".qzeros");
  require_words(linear.qzeros);
  const Shape& zeros = linear.qzeros.entry->shape;
  const std::uint64_t row_words = std::uint64_t(linear.outputs) * std::uint64_t(linear.bits) / 32;
  require(zeros.size() == 2 && zeros[1] == row_words && zeros[0] >= 1 &&
              zeros[0] <= std::uint64_t(linear.inputs),
          ErrorCode::malformed, "tensor {}: expected shape [groups, {}], found {}",
          linear.qzeros.entry->name, row_words, zeros);
  linear.groups = int(zeros[0]);
  linear.scales = take_floats(tensors, name + ".scales", {zeros[0], std::uint64_t(linear.outputs)});
  linear.group_size = find_group_size(linear, settings);

  if (tensors.has(name + ".g_idx")) {
    linear.g_idx = take_shaped(tensors, name + ".g_idx", {std::uint64_t(linear.inputs)});
    require_words(linear.g_idx);
  }
  linear.zero_points = settings.zero_points;
  return linear;
}

/// Rows of a plain weight or columns of a packed one.
int find_outputs(TensorTable& tensors, const std::string& name) {
  for (const auto& [suffix, dimension] : {std::pair(".qweight", 1u), std::pair(".weight", 0u)}) {
    const StoredTensor tensor = tensors.take(name + suffix);
    if (!tensor) continue;
    const Shape& shape = tensor.entry->shape;
    require(shape.size() == 2 && shape[dimension] >= 1 && shape[dimension] <= 4 * kMostWidth,
            ErrorCode::malformed, "tensor {}: expected two dimensions of 1 to {}, found {}",
            tensor.entry->name, 4 * kMostWidth, shape);
    return int(shape[dimension]);
  }
  missing(name + ".weight");
}

int find_rows(TensorTable& tensors, const std::string& name, std::size_t rank, std::uint64_t most) {
  const StoredTensor tensor = tensors.take(name);
  if (!tensor) missing(name);
  const Shape& shape = tensor.entry->shape;
  require(shape.size() == rank && shape[0] >= 1 && shape[0] <= most, ErrorCode::malformed,
          "tensor {}: expected {} dimensions, the first of 1 to {}, found {}", name, rank, most,
          shape);
  return int(shape[0]);
}

}  // namespace

StoredTensor take_floats(TensorTable& tensors, const std::string& name,
                         const std::vector<std::uint64_t>& shape) {
  const StoredTensor tensor = take_shaped(tensors, name, shape);
  const DType dtype = tensor.entry->dtype;
  require(dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32,
          ErrorCode::unsupported, "tensor {}: expected F16, BF16 or F32, found {}", name,
          guanaco::name(dtype));
  return tensor;
}

Linear take_linear(TensorTable& tensors, const std::string& name, int inputs, int outputs,
                   const QuantizationConfig& settings) {
  refuse_foreign(tensors, name);
  const bool packed = tensors.has(name + ".qweight"), plain = tensors.has(name + ".weight");
  require(!packed || !plain, ErrorCode::malformed,
          "{}: expected one of the tensors qweight and weight, found both", name);
  if (!packed && !plain)
    missing(name + (settings.origin.empty() ? ".weight" : ".qweight (or .weight)"));

  StoredTensor bias;
  if (tensors.has(name + ".bias"))
    bias = take_floats(tensors, name + ".bias", {std::uint64_t(outputs)});
  if (packed) {
    GptqLinear linear;
    linear.name = name;
    linear.inputs = inputs;
    linear.outputs = outputs;
    linear.bias = bias;
    return take_gptq(tensors, std::move(linear), settings);
  }
  DenseLinear linear{name, inputs, outputs, {}, bias};
  linear.weight =
      take_floats(tensors, name + ".weight", {std::uint64_t(outputs), std::uint64_t(inputs)});
  return linear;
}

LlamaConfig infer_config(TensorTable& tensors, LoadReport& report) {
  LlamaConfig config;
  const std::string first = "model.layers.0.";
  config.hidden = find_rows(tensors, "model.norm.weight", 1, kMostWidth);
  config.vocab = find_rows(tensors, "model.embed_tokens.weight", 2, kMostVocab);
  const std::int64_t layers = tensors.layers();
  require(layers >= 1 && layers <= kMostLayers, ErrorCode::malformed,
          "expected tensors of 1 to {} layers, found {}", kMostLayers, layers);
  config.layers = int(layers);
  config.ffn = find_outputs(tensors, first + "mlp.gate_proj");
  config.head_dim = kHeadDim;
  const int query = find_outputs(tensors, first + "self_attn.q_proj");
  const int key = find_outputs(tensors, first + "self_attn.k_proj");
  require(query <= int(kMostWidth) && query % key == 0 && key % kHeadDim == 0, ErrorCode::malformed,
          "without a config.json, heads are taken to be {} wide, but q_proj has {} and k_proj {} "
          "outputs",
          kHeadDim, query, key);
  config.heads = query / kHeadDim;
  config.kv_heads = key / kHeadDim;
  config.tied_embeddings = !tensors.has("lm_head.weight") && !tensors.has("lm_head.qweight");
  report.decisions.push_back(fmt::format(
      "no config.json: {} layers, hidden {}, ffn {}, {} heads, {} key/value heads, "
      "vocabulary {} from shapes",
      config.layers, config.hidden, config.ffn, config.heads, config.kv_heads, config.vocab));
  for (const char* assumed : {"heads are 128 wide", "the epsilon of norms is 1e-6",
                              "rotary theta is 10000", "the context is 2048"})
    report.warnings.push_back(std::string("no config.json: taken that ") + assumed);
  if (config.tied_embeddings)
    report.warnings.push_back(
        "no config.json and no lm_head: taken that the embedding table is the output layer");
  return config;
}

}  // namespace guanaco
