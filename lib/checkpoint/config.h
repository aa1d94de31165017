#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <guanaco/model.h>

#include "io/json.h"

namespace guanaco {

/// How rotary angles depend on the position (reference/formats.md 2.3).
struct RotaryConfig {
  enum class Kind { none, linear, dynamic, yarn, longrope, llama3 };
  Kind kind = Kind::none;
  double theta = 10000;
  double factor = 1;
  double original_context = 0;                                 ///< L0 of formats.md
  double beta_fast = 32, beta_slow = 1;                        ///< yarn
  std::optional<double> attention_factor;                      ///< yarn, longrope
  double low_frequency_factor = 1, high_frequency_factor = 4;  ///< llama3
  std::vector<double> short_factor, long_factor;               ///< longrope, [head_dim / 2]
};

/// Every number of the forward pass (reference/formats.md 2.2).
struct LlamaConfig {
  int layers = 32, hidden = 4096, ffn = 11008, heads = 32, kv_heads = 32, head_dim = 128,
      vocab = 32000;
  float rms_norm_epsilon = 1e-6f;
  int context = 2048;
  RotaryConfig rotary;
  bool tied_embeddings = false;  ///< the output layer is the embedding table
  bool attention_bias = false, mlp_bias = false;
  int bos = 1;                 ///< as declared; tokenizer.model wins
  std::vector<int> eos = {2};  ///< likewise, one or more
};

/// From config.json. Throws malformed (field, expected, found) for values that contradict each
/// other or leave the range a checkpoint can have, unsupported for other architectures, activations
/// and rope types. Odd but usable values become warnings in the report.
LlamaConfig parse_llama_config(const Json& json, LoadReport& report);

/// How linear weights were quantised, as far as the files beside the weights say
/// (reference/formats.md 1.8). Shapes decide; this is checked against them.
struct QuantizationConfig {
  std::string origin;  ///< the first file that says something; empty if none does
  std::optional<int> bits;
  std::optional<int> group_size;  ///< -1: one group for the whole column
  std::optional<bool> act_order, symmetric;
  ZeroPoints zero_points = ZeroPoints::automatic;  ///< automatic: the files do not say
  bool varies_by_module = false;  ///< "dynamic": some modules have other settings, or none
  std::string weight_file;        ///< model_file_base_name, without .safetensors; empty if not said
};

/// From the "quantization_config" of config.json, quantize_config.json and quant_config.json (null
/// where absent), first one wins; contradictions among them become warnings. Throws unsupported by
/// name for other methods, malformed.
QuantizationConfig parse_quantization_config(const Json& in_config, const Json& quantize_config,
                                             const Json& quant_config, LoadReport& report);

}  // namespace guanaco
