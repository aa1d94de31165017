#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>

#include <fmt/ranges.h>

#include "checkpoint/folder.h"
#include "checkpoint/modules.h"
#include "support/check.h"

namespace guanaco {
namespace {

constexpr std::uint64_t kMostVocab = 1 << 24;

void require_bias(const Linear& linear, bool declared) {
  const StoredTensor& bias =
      std::visit([](const auto& l) -> const StoredTensor& { return l.bias; }, linear);
  require(!declared || bias, ErrorCode::malformed,
          "tensor {}.bias is missing, but config.json declares biases", name(linear));
}

LayerTensors take_layer(TensorTable& tensors, int index, const LlamaConfig& config,
                        const QuantizationConfig& settings) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const auto norm = [&](const char* name) {
    return take_floats(tensors, prefix + name + ".weight", {std::uint64_t(config.hidden)});
  };
  const auto linear = [&](const char* name, int inputs, int outputs, bool bias) {
    Linear taken = take_linear(tensors, prefix + name, inputs, outputs, settings);
    require_bias(taken, bias);
    return taken;
  };
  const int hidden = config.hidden, ffn = config.ffn;
  const int query = config.heads * config.head_dim, key = config.kv_heads * config.head_dim;
  LayerTensors layer;
  layer.attention_norm = norm("input_layernorm");
  layer.query = linear("self_attn.q_proj", hidden, query, config.attention_bias);
  layer.key = linear("self_attn.k_proj", hidden, key, config.attention_bias);
  layer.value = linear("self_attn.v_proj", hidden, key, config.attention_bias);
  layer.output = linear("self_attn.o_proj", query, hidden, config.attention_bias);
  layer.mlp_norm = norm("post_attention_layernorm");
  layer.gate = linear("mlp.gate_proj", hidden, ffn, config.mlp_bias);
  layer.up = linear("mlp.up_proj", hidden, ffn, config.mlp_bias);
  layer.down = linear("mlp.down_proj", ffn, hidden, config.mlp_bias);
  return layer;
}

/// The embedding table may have more rows than config.json says: an added [PAD] is common.
StoredTensor take_embedding(TensorTable& tensors, LlamaConfig& config, LoadReport& report) {
  const std::string name = "model.embed_tokens.weight";
  const StoredTensor found = tensors.take(name);
  require(bool(found), ErrorCode::malformed, "tensor {} is missing", name);
  const std::uint64_t rows = found.rows();
  require(rows >= 1 && rows <= kMostVocab, ErrorCode::malformed,
          "tensor {}: expected 1 to {} rows, found {}", name, kMostVocab, rows);
  const StoredTensor table = take_floats(tensors, name, {rows, std::uint64_t(config.hidden)});
  if (int(rows) != config.vocab)
    report.warnings.push_back(
        fmt::format("vocabulary {}: the rows of the embedding table, not vocab_size {} of "
                    "config.json",
                    rows, config.vocab));
  config.vocab = int(rows);
  return table;
}

Linear take_head(TensorTable& tensors, const LlamaConfig& config, const StoredTensor& embedding,
                 const QuantizationConfig& settings, LoadReport& report) {
  const bool stored = tensors.has("lm_head.weight") || tensors.has("lm_head.qweight");
  if (config.tied_embeddings && stored)
    report.warnings.push_back(
        "config.json says tie_word_embeddings true, but an lm_head is stored too: it is ignored, "
        "the embedding table is the output layer");
  if (config.tied_embeddings)
    return DenseLinear{"lm_head", config.hidden, config.vocab, embedding, {}};
  require(stored, ErrorCode::malformed,
          "tensor lm_head.weight is missing, but tie_word_embeddings is not true");
  return take_linear(tensors, "lm_head", config.hidden, config.vocab, settings);
}

bool names_act_order(const std::filesystem::path& path) {
  std::string text = path.filename().string();
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c == '_' ? '-' : char(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  const auto has = [&](const char* part) { return text.find(part) != std::string::npos; };
  return (has("act-order") || has("actorder")) && !has("no-act") && !has("actorder-false");
}

/// A fork of 2023 wrote files whose groups were made in act-order without saying which row is in
/// which group. Nothing in the file tells them from good ones (reference/formats.md 1.2).
void warn_of_lost_order(const Checkpoint& checkpoint, LoadReport& report) {
  bool grouped = false, indexed = false;
  for_each_linear(checkpoint, [&](const Linear& linear) {
    if (const auto* gptq = std::get_if<GptqLinear>(&linear)) {
      grouped |= gptq->groups > 1;
      indexed |= bool(gptq->g_idx);
    }
  });
  if (grouped && !indexed)
    report.warnings.push_back(
        "this file claims act-order, has groups, and has no g_idx to say which row is in which: "
        "if the text is gibberish, the order was lost when the file was made");
}

void explain_settings(const Checkpoint& checkpoint, const QuantizationConfig& settings,
                      ZeroPoints asked_for, LoadReport& report) {
  std::set<int> bits, sizes;
  for_each_linear(checkpoint, [&](const Linear& linear) {
    if (const auto* gptq = std::get_if<GptqLinear>(&linear)) {
      bits.insert(gptq->bits);
      sizes.insert(gptq->groups == 1 ? -1 : gptq->group_size);
    }
  });
  if (bits.empty()) {
    if (!settings.origin.empty())
      report.warnings.push_back(settings.origin + " describes GPTQ, but no weight is quantised");
    return;
  }
  const auto source = [&](bool said) {
    return said && !settings.varies_by_module ? "from " + settings.origin + ", confirmed by shapes"
                                              : std::string("from shapes");
  };
  report.decisions.push_back(
      fmt::format("{} bit {}", fmt::join(bits, " and "), source(settings.bits.has_value())));
  report.decisions.push_back(fmt::format("group size {} {}", fmt::join(sizes, " and "),
                                         source(settings.group_size.has_value())));
  const auto version = [](ZeroPoints z) { return z == ZeroPoints::v2 ? "v2" : "v1"; };
  if (asked_for != ZeroPoints::automatic)
    report.decisions.push_back(
        fmt::format("zero points {}, as ModelOptions::zero_points asks", version(asked_for)));
  else if (settings.zero_points != ZeroPoints::automatic)
    report.decisions.push_back(
        fmt::format("zero points {} from {}", version(settings.zero_points), settings.origin));
  else
    report.decisions.push_back("zero points v1: no file says otherwise");
}

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& path, ZeroPoints zero_points) {
  Checkpoint checkpoint;
  LoadReport& report = checkpoint.report;
  const Folder folder = open_folder(path);
  checkpoint.folder = folder.path;
  QuantizationConfig settings = parse_quantization_config(
      folder.quantization(), folder.quantize_config, folder.quant_config, report);
  if (!folder.config.is_null()) checkpoint.config = parse_llama_config(folder.config, report);

  checkpoint.files_ = open_weights(folder, settings, report);
  TensorTable tensors(checkpoint.files_);
  checkpoint.file_bytes = tensors.bytes();
  LlamaConfig& config = checkpoint.config;
  if (folder.config.is_null()) config = infer_config(tensors, report);
  require(tensors.layers() <= config.layers, ErrorCode::malformed,
          "config.json says num_hidden_layers {}, but there are tensors of {} layers",
          config.layers, tensors.layers());

  checkpoint.settings_ = settings;
  checkpoint.asked_for_ = zero_points;
  if (zero_points != ZeroPoints::automatic) settings.zero_points = zero_points;
  checkpoint.embedding = take_embedding(tensors, config, report);
  for (int i = 0; i < config.layers; ++i)
    checkpoint.layers.push_back(take_layer(tensors, i, config, settings));
  checkpoint.norm = take_floats(tensors, "model.norm.weight", {std::uint64_t(config.hidden)});
  checkpoint.head = take_head(tensors, config, checkpoint.embedding, settings, report);

  report.ignored = tensors.unused();
  explain_settings(checkpoint, checkpoint.settings_, zero_points, report);
  checkpoint.claims_act_order_ = settings.act_order.value_or(false) ||
                                 names_act_order(checkpoint.files_.front()->file().path());
  if (checkpoint.claims_act_order_) warn_of_lost_order(checkpoint, report);
  checkpoint.summarise(false);
  return checkpoint;
}

void Checkpoint::summarise(bool settled) {
  std::set<int> bits, sizes;
  std::set<std::string> scales, dense;
  bool version_2 = false, indexed = false;
  int plain = 0;
  parameters = embedding.elements() + norm.elements();
  for (const LayerTensors& layer : layers)
    parameters += layer.attention_norm.elements() + layer.mlp_norm.elements();
  for_each_linear(*this, [&](const Linear& linear) {
    const bool is_tied_head = &linear == &head && config.tied_embeddings;
    if (!is_tied_head) parameters += std::uint64_t(inputs(linear)) * std::uint64_t(outputs(linear));
    std::visit([&](const auto& l) { parameters += l.bias ? l.bias.elements() : 0; }, linear);
    if (const auto* gptq = std::get_if<GptqLinear>(&linear)) {
      bits.insert(gptq->bits);
      if (gptq->groups > 1) sizes.insert(gptq->group_size);
      scales.emplace(name(gptq->scales.entry->dtype));
      version_2 |= gptq->zero_points == ZeroPoints::v2;
      indexed |= bool(gptq->g_idx);
    } else if (&linear != &head) {
      dense.emplace(name(std::get<DenseLinear>(linear).weight.entry->dtype));
      ++plain;
    }
  });
  if (bits.empty()) {
    report.format = fmt::format("{} weights, not quantised", fmt::join(dense, " and "));
    return;
  }
  report.format = fmt::format(
      "GPTQ {} bit, {}, zero points {}{}, {} scales", fmt::join(bits, " and "),
      sizes.empty() ? "one group a column" : fmt::format("groups of {}", fmt::join(sizes, " and ")),
      version_2 ? "v2" : "v1",
      settled || asked_for_ != ZeroPoints::automatic ? "" : " unless the data say otherwise",
      fmt::join(scales, " and "));
  if (indexed) report.format += settled ? ", act-order" : ", order open until g_idx is read";
  if (plain > 0) report.format += fmt::format(", {} linears not quantised", plain);
  if (std::holds_alternative<GptqLinear>(head)) report.format += ", output layer quantised";
}

}  // namespace guanaco
