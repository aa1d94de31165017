#include "checkpoint/config.h"

#include <algorithm>
#include <string_view>

#include "checkpoint/fields.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

// No LLaMA comes near these; within them no product of two sizes overflows 64 bits and no sum an
// int.
constexpr int kMostLayers = 1024, kMostHeads = 1 << 16, kMostWidth = 1 << 20;
constexpr int kMostVocab = 1 << 24, kMostContext = 1 << 24;

void check_architecture(const Fields& fields, LoadReport& report) {
  const Json* architectures = fields.find({"architectures"});
  if (architectures) {
    const auto* names = architectures->get<Json::Array>();
    const bool llama =
        names && std::any_of(names->begin(), names->end(), [](const Json& name) {
          return name == Json{"LlamaForCausalLM"} || name == Json{"LLaMAForCausalLM"};
        });
    require(llama, ErrorCode::unsupported, "{}: architectures: expected LlamaForCausalLM, found {}",
            fields.origin(), show(*architectures));
  }
  const auto type = fields.text({"model_type"});
  require(!type || *type == "llama", ErrorCode::unsupported,
          "{}: model_type: expected llama, found {}", fields.origin(),
          printable(type.value_or("")));
  if (!architectures && !type)
    report.warnings.push_back(fields.origin() + " names no architecture: read as LLaMA");
  const auto activation = fields.text({"hidden_act"});
  require(!activation || *activation == "silu", ErrorCode::unsupported,
          "{}: hidden_act: expected silu, found {}", fields.origin(),
          printable(activation.value_or("")));
}

/// The settings of rotary embeddings in one object: "rope_parameters" (transformers 5) over
/// "rope_scaling".
Json::Object rotary_object(const Fields& fields) {
  Json::Object merged;
  for (const char* place : {"rope_parameters", "rope_scaling"}) {
    const Json* found = fields.find({place});
    if (!found) continue;
    const auto* object = found->get<Json::Object>();
    require(object, ErrorCode::malformed, "{}: {} must be an object, found {}", fields.origin(),
            place, show(*found));
    for (const auto& [key, value] : *object) {
      if (value.is_null()) continue;
      const auto [known, is_new] = merged.emplace(key, value);
      require(is_new || known->second == value, ErrorCode::malformed,
              "{}: rope_parameters and rope_scaling contradict each other in {}: {} and {}",
              fields.origin(), printable(key), show(known->second), show(value));
    }
  }
  return merged;
}

RotaryConfig::Kind rotary_kind(const Fields& rope) {
  using Kind = RotaryConfig::Kind;
  const std::string type = rope.text({"rope_type", "type"}).value_or("default");
  if (type == "default") return Kind::none;
  if (type == "linear") return Kind::linear;
  if (type == "dynamic") return Kind::dynamic;
  if (type == "yarn") return Kind::yarn;
  if (type == "longrope") return Kind::longrope;
  if (type == "llama3") return Kind::llama3;
  fail(ErrorCode::unsupported,
       "{}: rope_type: expected default, linear, dynamic, yarn, longrope or llama3, found {}",
       rope.origin(), printable(type));
}

/// What this library does not know changes the angles in ways it cannot follow.
void refuse_unknown_rotary_fields(const Json::Object& object, const Fields& rope) {
  constexpr std::string_view kKnown[] = {"rope_type",
                                         "type",
                                         "rope_theta",
                                         "factor",
                                         "original_max_position_embeddings",
                                         "attention_factor",
                                         "beta_fast",
                                         "beta_slow",
                                         "low_freq_factor",
                                         "high_freq_factor",
                                         "short_factor",
                                         "long_factor",
                                         "partial_rotary_factor",
                                         "truncate",
                                         "finetuned"};
  for (const auto& [key, value] : object)
    require(std::find(std::begin(kKnown), std::end(kKnown), key) != std::end(kKnown),
            ErrorCode::unsupported, "{}: unknown field {}: {}", rope.origin(), printable(key),
            show(value));
  require(rope.boolean({"truncate"}).value_or(true), ErrorCode::unsupported,
          "{}: truncate must be true, found false", rope.origin());
}

RotaryConfig parse_rotary(const Fields& fields, const LlamaConfig& config, LoadReport& report) {
  const Json object{rotary_object(fields)};
  const Fields rope(object, fields.origin() + ": rope_scaling");
  RotaryConfig rotary;
  rotary.kind = rotary_kind(rope);
  refuse_unknown_rotary_fields(*object.get<Json::Object>(), rope);
  for (const Fields* place : {&fields, &rope})
    require(place->number({"partial_rotary_factor"}, 0, 1).value_or(1) == 1, ErrorCode::unsupported,
            "{}: partial_rotary_factor: expected 1", place->origin());

  const auto outer_theta = fields.number({"rope_theta"}, 1.5, 1e12);
  const auto inner_theta = rope.number({"rope_theta"}, 1.5, 1e12);
  require(!outer_theta || !inner_theta || *outer_theta == *inner_theta, ErrorCode::malformed,
          "{}: rope_theta is {} but {} in rope_parameters", fields.origin(),
          outer_theta.value_or(0), inner_theta.value_or(0));
  rotary.theta = inner_theta ? *inner_theta : outer_theta.value_or(10000);

  using Kind = RotaryConfig::Kind;
  if (rotary.kind == Kind::none) return rotary;
  auto original = rope.integer({"original_max_position_embeddings"}, 2, kMostContext);
  if (!original) original = fields.integer({"original_max_position_embeddings"}, 2, kMostContext);
  rotary.original_context = original.value_or(config.context);
  require(rotary.original_context >= 2, ErrorCode::malformed,
          "config.json: a scaled rotary embedding needs a context of at least 2, found {}",
          rotary.original_context);

  const auto factor = rope.number({"factor"}, 1, 1e6);
  rotary.factor = factor.value_or(1);
  require(factor || rotary.kind == Kind::longrope, ErrorCode::malformed, "{}: factor is missing",
          rope.origin());
  if (rotary.kind == Kind::longrope) {
    if (original) rotary.factor = std::max(1.0, double(config.context) / *original);
    const std::size_t wanted = std::size_t(config.head_dim / 2);
    rotary.short_factor = rope.numbers({"short_factor"}, 1e-3, 1e6).value_or(std::vector<double>());
    rotary.long_factor = rope.numbers({"long_factor"}, 1e-3, 1e6).value_or(std::vector<double>());
    require(rotary.short_factor.size() == wanted && rotary.long_factor.size() == wanted,
            ErrorCode::malformed,
            "{}: short_factor and long_factor must have head_dim / 2 = {} numbers, found {} and {}",
            rope.origin(), wanted, rotary.short_factor.size(), rotary.long_factor.size());
  }
  require(rotary.kind != Kind::dynamic || config.head_dim > 2, ErrorCode::malformed,
          "{}: dynamic scaling needs a head_dim above 2", rope.origin());
  rotary.attention_factor = rope.number({"attention_factor"}, 1e-3, 1e3);
  rotary.beta_fast = rope.number({"beta_fast"}, 1e-3, 1e6).value_or(32);
  rotary.beta_slow = rope.number({"beta_slow"}, 1e-3, 1e6).value_or(1);
  require(rotary.beta_fast > rotary.beta_slow, ErrorCode::malformed,
          "{}: beta_fast must be above beta_slow, found {} and {}", rope.origin(), rotary.beta_fast,
          rotary.beta_slow);
  rotary.low_frequency_factor = rope.number({"low_freq_factor"}, 1e-3, 1e6).value_or(1);
  rotary.high_frequency_factor = rope.number({"high_freq_factor"}, 1e-3, 1e6).value_or(4);
  require(rotary.high_frequency_factor > rotary.low_frequency_factor, ErrorCode::malformed,
          "{}: high_freq_factor must be above low_freq_factor, found {} and {}", rope.origin(),
          rotary.high_frequency_factor, rotary.low_frequency_factor);
  report.decisions.push_back(fmt::format("rotary scaling {} by {}, {} positions before scaling",
                                         rope.text({"rope_type", "type"}).value_or(""),
                                         rotary.factor, rotary.original_context));
  return rotary;
}

/// One token id or a list of them, as newer configurations have for eos. Never empty.
std::vector<int> token_ids(const Fields& fields, const char* name, int fallback,
                           LoadReport& report) {
  const Json* value = fields.find({name});
  if (!value) return {fallback};
  const auto one = [&](const Json& id) {
    const Json single{Json::Object{{name, id}}};
    return Fields(single, fields.origin()).integer({name}, -1, kMostVocab).value_or(fallback);
  };
  const auto* list = value->get<Json::Array>();
  if (!list) return {one(*value)};
  if (list->empty()) return {fallback};
  report.decisions.push_back(
      fmt::format("{}: {} lists {}: without a tokenizer.model the first is taken", fields.origin(),
                  name, show(*value)));
  std::vector<int> ids;
  for (const Json& id : *list) ids.push_back(one(id));
  return ids;
}

int parse_context(const Fields& fields, LoadReport& report) {
  const auto positions = fields.integer({"max_position_embeddings"}, 1, kMostContext);
  const auto sequence = fields.integer({"max_sequence_length"}, 1, kMostContext);
  if (positions && sequence && *positions != *sequence)
    report.warnings.push_back(
        fmt::format("{}: max_position_embeddings {} is taken, not max_sequence_length {}",
                    fields.origin(), *positions, *sequence));
  if (!positions && !sequence)
    report.decisions.push_back(fields.origin() + " says no context: 2048 positions");
  return positions ? *positions : sequence.value_or(2048);
}

}  // namespace

LlamaConfig parse_llama_config(const Json& json, LoadReport& report) {
  const Fields fields(json, "config.json");
  check_architecture(fields, report);

  LlamaConfig config;
  config.layers = fields.integer({"num_hidden_layers"}, 1, kMostLayers).value_or(config.layers);
  config.hidden = fields.integer({"hidden_size"}, 1, kMostWidth).value_or(config.hidden);
  config.ffn = fields.integer({"intermediate_size"}, 1, 4 * kMostWidth).value_or(config.ffn);
  config.heads = fields.integer({"num_attention_heads"}, 1, kMostHeads).value_or(config.heads);
  config.kv_heads = fields.integer({"num_key_value_heads"}, 1, kMostHeads).value_or(config.heads);
  config.vocab = fields.integer({"vocab_size"}, 1, kMostVocab).value_or(config.vocab);
  require(config.heads % config.kv_heads == 0, ErrorCode::malformed,
          "config.json: num_attention_heads must be a multiple of num_key_value_heads, found {} "
          "and {}",
          config.heads, config.kv_heads);

  const auto head_dim = fields.integer({"head_dim"}, 2, kMostWidth);
  require(head_dim || config.hidden % config.heads == 0, ErrorCode::malformed,
          "config.json: hidden_size must be a multiple of num_attention_heads, found {} and {}",
          config.hidden, config.heads);
  config.head_dim = head_dim.value_or(config.hidden / config.heads);
  require(config.head_dim >= 2 && config.head_dim % 2 == 0, ErrorCode::malformed,
          "config.json: head_dim must be even, found {}", config.head_dim);
  require(std::int64_t(config.heads) * config.head_dim <= kMostWidth, ErrorCode::malformed,
          "config.json: num_attention_heads * head_dim must be at most {}, found {} * {}",
          kMostWidth, config.heads, config.head_dim);

  config.rms_norm_epsilon = float(fields.number({"rms_norm_eps"}, 1e-12, 0.1).value_or(1e-6));
  config.context = parse_context(fields, report);
  config.rotary = parse_rotary(fields, config, report);
  config.tied_embeddings = fields.boolean({"tie_word_embeddings"}).value_or(false);
  config.attention_bias = fields.boolean({"attention_bias"}).value_or(false);
  config.mlp_bias = fields.boolean({"mlp_bias"}).value_or(false);

  config.bos = token_ids(fields, "bos_token_id", 1, report).front();
  config.eos = token_ids(fields, "eos_token_id", 2, report);
  if (config.bos == 0 && config.eos.front() == 1)
    report.warnings.push_back(
        "config.json: bos_token_id 0 and eos_token_id 1 are a known mistake of early conversions: "
        "tokenizer.model decides");
  return config;
}

}  // namespace guanaco
