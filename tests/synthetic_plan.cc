#include "synthetic_plan.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

using Options = SyntheticOptions;

void check(const Options& options) {
  const auto require_range = [](const char* field, int value, int lowest, int highest) {
    require(value >= lowest && value <= highest, ErrorCode::invalid_argument,
            "{}: expected {} to {}, found {}", field, lowest, highest, value);
  };
  require_range("layers", options.layers, 1, 1000);
  require_range("hidden", options.hidden, 1, 1 << 20);
  require_range("ffn", options.ffn, 1, 1 << 20);
  require_range("heads", options.heads, 1, 4096);
  require_range("kv_heads", options.kv_heads, 1, options.heads);
  require_range("head_dim", options.head_dim, 2, 4096);
  require_range("vocab", options.vocab, options.tokenizer ? 259 : 1, 1 << 24);
  require_range("context", options.context, 1, 1 << 30);
  require_range("shards", options.shards, 1, 99999);
  require_range("zero_points", options.zero_points, 1, 2);
  require_range("label", options.label, 0, 2);
  require(
      options.heads % options.kv_heads == 0 && options.head_dim % 2 == 0,
      ErrorCode::invalid_argument,
      "expected heads in whole groups for each kv head and an even head_dim, found {} heads, {} "
      "kv heads and head_dim {}",
      options.heads, options.kv_heads, options.head_dim);
  for (const DType dtype :
       {options.dense_dtype, options.scale_dtype, options.other_dtype, options.bias_dtype})
    require(dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32,
            ErrorCode::invalid_argument, "expected weights of type F16, BF16 or F32, found {}",
            name(dtype));
  require(options.weight_file.empty() ||
              (options.shards == 1 && options.weight_file.ends_with(".safetensors") &&
               options.weight_file.find('/') == std::string::npos),
          ErrorCode::invalid_argument,
          "weight_file: expected the name of one .safetensors file, found \"{}\" and {} shards",
          printable(options.weight_file), options.shards);
  if (options.format == Options::Format::dense) return;
  require(options.bits == 2 || options.bits == 3 || options.bits == 4 || options.bits == 8,
          ErrorCode::invalid_argument, "bits: expected 2, 3, 4 or 8, found {}", options.bits);
  require(options.group_size == -1 || options.group_size > 0, ErrorCode::invalid_argument,
          "group_size: expected -1 or more than 0, found {}", options.group_size);
  for (const int size : {options.hidden, options.ffn, options.heads * options.head_dim,
                         options.kv_heads * options.head_dim})
    require(size % 32 == 0, ErrorCode::invalid_argument,
            "expected the sizes of quantised layers to be multiples of 32, found {}", size);
  require(!options.act_order || options.group_index == Options::GroupIndex::present ||
              options.group_size == -1,
          ErrorCode::invalid_argument,
          "act_order: with groups of {} the file must have its group indices", options.group_size);
}

class Plan {
 public:
  explicit Plan(const Options& options) : options_(options) {
    const auto hidden = std::uint64_t(options.hidden), vocab = std::uint64_t(options.vocab);
    // The norms make activations of unit size: this gives logits of deviation 2.
    const float head = 2 / std::sqrt(float(options.hidden));
    add_values("model.embed_tokens.weight", options.other_dtype, {vocab, hidden}, 0,
               options.tied_embeddings ? head : 1);
    for (int layer = 0; layer < options.layers; ++layer)
      add_layer(fmt::format("model.layers.{}.", layer));
    add_values("model.norm.weight", options.other_dtype, {hidden}, 1, 0.1f);
    if (!options.tied_embeddings)
      add_values("lm_head.weight", options.other_dtype, {vocab, hidden}, 0, head);
  }

  std::vector<PlannedTensor> tensors;

 private:
  void add_layer(const std::string& layer) {
    const auto hidden = std::uint64_t(options_.hidden);
    const int query = options_.heads * options_.head_dim,
              key = options_.kv_heads * options_.head_dim;
    add_values(layer + "input_layernorm.weight", options_.other_dtype, {hidden}, 1, 0.1f);
    // Linears that read the same input share the order of their rows.
    add_linear(layer + "self_attn.q_proj", options_.hidden, query, layer + "attention");
    add_linear(layer + "self_attn.k_proj", options_.hidden, key, layer + "attention");
    add_linear(layer + "self_attn.v_proj", options_.hidden, key, layer + "attention");
    add_linear(layer + "self_attn.o_proj", query, options_.hidden, layer + "heads");
    if (options_.rotary_buffers) add_rotary_buffer(layer + "self_attn.rotary_emb.inv_freq");
    add_values(layer + "post_attention_layernorm.weight", options_.other_dtype, {hidden}, 1, 0.1f);
    add_linear(layer + "mlp.gate_proj", options_.hidden, options_.ffn, layer + "mlp");
    add_linear(layer + "mlp.up_proj", options_.hidden, options_.ffn, layer + "mlp");
    add_linear(layer + "mlp.down_proj", options_.ffn, options_.hidden, layer + "activation");
  }

  void add_linear(const std::string& name, int inputs, int outputs, const std::string& order) {
    const auto rows = std::uint64_t(inputs), columns = std::uint64_t(outputs);
    if (options_.format == Options::Format::gptq)
      add_gptq(name, inputs, outputs, order);
    else
      add_values(name + ".weight", options_.dense_dtype, {columns, rows}, 0,
                 1 / std::sqrt(float(inputs)));
    if (options_.bias != Options::Bias::none)
      add_values(name + ".bias", options_.bias_dtype, {columns}, 0,
                 options_.bias == Options::Bias::values ? 0.1f : 0);
  }

  void add_gptq(const std::string& name, int inputs, int outputs, const std::string& order) {
    const auto rows = std::uint64_t(inputs), columns = std::uint64_t(outputs),
               bits = std::uint64_t(options_.bits);
    const int size = options_.group_size == -1 ? inputs : options_.group_size;
    const auto groups = std::uint64_t((inputs + size - 1) / size);
    const std::uint64_t seed = options_.seed, key = random_key(seed, name);
    const auto group = [options = options_, inputs, order_key = random_key(seed, order)] {
      return group_index(inputs, options.group_size, options.act_order, order_key);
    };
    const auto matrix = [options = options_, inputs, outputs,
                         key](std::span<const std::int32_t> of) {
      return SyntheticGptq(key, options.bits, inputs, outputs, of, options.symmetric);
    };
    add(name + ".qweight", DType::i32, {rows * bits / 32, columns}, [=](const Sink& sink) {
      const auto of = group();
      matrix(of).write_qweight(sink);
    });
    add(name + ".qzeros", DType::i32, {groups, columns * bits / 32},
        [=, version = options_.zero_points](const Sink& sink) {
          const auto of = group();
          matrix(of).write_qzeros(sink, version);
        });
    add(name + ".scales", options_.scale_dtype, {groups, columns},
        [=, dtype = options_.scale_dtype](const Sink& sink) {
          const auto of = group();
          matrix(of).write_scales(sink, dtype);
        });
    if (options_.group_index == Options::GroupIndex::absent) return;
    add(name + ".g_idx", DType::i32, {rows},
        [=, zeros = options_.group_index == Options::GroupIndex::zeros](const Sink& sink) {
          auto of = group();
          if (zeros) std::fill(of.begin(), of.end(), 0);
          sink(std::as_bytes(std::span(of)));
        });
  }

  void add_values(const std::string& name, DType dtype, std::vector<std::uint64_t> shape,
                  float mean, float deviation) {
    std::uint64_t count = 1;
    for (const std::uint64_t dimension : shape) count *= dimension;
    add(name, dtype, std::move(shape),
        [=, key = random_key(options_.seed, name)](const Sink& sink) {
          write_values(sink, key, count, dtype, mean, deviation);
        });
  }

  void add_rotary_buffer(const std::string& name) {
    add(name, DType::f32, {std::uint64_t(options_.head_dim / 2)},
        [head_dim = options_.head_dim](const Sink& sink) {
          std::vector<float> frequencies;
          for (int i = 0; i < head_dim; i += 2)
            frequencies.push_back(float(std::pow(10000.0, -double(i) / head_dim)));
          sink(std::as_bytes(std::span(frequencies)));
        });
  }

  void add(const std::string& name, DType dtype, std::vector<std::uint64_t> shape,
           std::function<void(const Sink&)> write) {
    tensors.push_back({{name, dtype, std::move(shape)}, std::move(write)});
  }

  const Options& options_;
};

}  // namespace

std::vector<PlannedTensor> plan(const SyntheticOptions& options) {
  check(options);
  return Plan(options).tensors;
}

std::vector<SafetensorsWriter::Tensor> planned_tensors(const SyntheticOptions& options) {
  std::vector<SafetensorsWriter::Tensor> tensors;
  for (PlannedTensor& planned : plan(options)) tensors.push_back(std::move(planned.tensor));
  return tensors;
}

}  // namespace guanaco
