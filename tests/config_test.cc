#include "checkpoint/config.h"

#include <cmath>
#include <numbers>

#include "checkpoint/rotary.h"
#include "checkpoint_fixture.h"

// config.json and its companions: every quirk that is accepted, every contradiction that is
// refused, and the rotary angles they ask for.

namespace guanaco {
namespace {

LlamaConfig parse(const std::string& text, LoadReport& report) {
  auto json =
      nlohmann::json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})");
  json.merge_patch(nlohmann::json::parse(text));
  return parse_llama_config(parse_json(json.dump(), "test"), report);
}

LlamaConfig parse(const std::string& text) {
  LoadReport report;
  return parse(text, report);
}

TEST_CASE("an empty config.json means LLaMA 7B") {
  LoadReport report;
  const LlamaConfig config = parse_llama_config(Json{Json::Object()}, report);
  CHECK(config.layers == 32);
  CHECK(config.hidden == 4096);
  CHECK(config.ffn == 11008);
  CHECK(config.heads == 32);
  CHECK(config.kv_heads == 32);
  CHECK(config.head_dim == 128);
  CHECK(config.vocab == 32000);
  CHECK(config.rms_norm_epsilon == 1e-6f);
  CHECK(config.context == 2048);
  CHECK(config.rotary.theta == 10000);
  CHECK_FALSE(config.tied_embeddings);
  CHECK(has_line(report.warnings, {"no architecture"}));
}

TEST_CASE("fields of config.json are read and nulls count as absent") {
  const LlamaConfig config = parse(
      R"({"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2,
          "num_hidden_layers": 3, "intermediate_size": 768, "vocab_size": 32001,
          "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "attention_bias": true,
          "mlp_bias": true, "head_dim": null, "rope_scaling": null, "pad_token_id": -1,
          "max_position_embeddings": 4096, "torch_dtype": "float16", "pretraining_tp": 2})");
  CHECK(config.head_dim == 64);
  CHECK(config.kv_heads == 2);
  CHECK(config.layers == 3);
  CHECK(config.vocab == 32001);
  CHECK(config.rms_norm_epsilon == 1e-5f);
  CHECK(config.tied_embeddings);
  CHECK(config.attention_bias);
  CHECK(config.mlp_bias);
  CHECK(config.context == 4096);
  CHECK(parse(R"({"head_dim": 96})").head_dim == 96);
  CHECK(parse(R"({"max_position_embeddings": 2048.0})").context == 2048);
}

TEST_CASE("the quirks of early and late conversions are understood") {
  LoadReport report;
  const LlamaConfig decapoda = parse(
      R"({"architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1,
          "pad_token_id": -1, "max_sequence_length": 1024})",
      report);
  CHECK(decapoda.context == 1024);
  CHECK(decapoda.bos == 0);
  CHECK(has_line(report.warnings, {"bos_token_id 0", "tokenizer.model decides"}));

  report = {};
  CHECK(parse(R"({"eos_token_id": [128001, 128009]})", report).eos ==
        std::vector<int>({128001, 128009}));
  CHECK(has_line(report.decisions, {"eos_token_id", "first"}));
  CHECK(parse(R"({"eos_token_id": []})").eos == std::vector<int>({2}));
  CHECK(parse(R"({"eos_token_id": 7})").eos == std::vector<int>({7}));

  report = {};
  CHECK(
      parse(R"({"max_position_embeddings": 4096, "max_sequence_length": 2048})", report).context ==
      4096);
  CHECK(has_line(report.warnings, {"max_position_embeddings 4096", "2048"}));
}

TEST_CASE("rotary settings are found where old and new configurations put them") {
  using Kind = RotaryConfig::Kind;
  CHECK(parse(R"({"rope_theta": 500000})").rotary.theta == 500000);
  CHECK(parse(R"({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})")
            .rotary.theta == 5000);
  const RotaryConfig old_style =
      parse(R"({"rope_scaling": {"type": "linear", "factor": 2.0}})").rotary;
  CHECK(old_style.kind == Kind::linear);
  CHECK(old_style.factor == 2);
  const RotaryConfig new_style =
      parse(R"({"rope_parameters": {"rope_type": "dynamic", "factor": 4, "rope_theta": 10000}})")
          .rotary;
  CHECK(new_style.kind == Kind::dynamic);
  const RotaryConfig yarn =
      parse(
          R"({"max_position_embeddings": 65536, "rope_scaling": {"type": "yarn", "factor": 16.0,
          "original_max_position_embeddings": 4096, "finetuned": true, "beta_fast": 24}})")
          .rotary;
  CHECK(yarn.kind == Kind::yarn);
  CHECK(yarn.original_context == 4096);
  CHECK(yarn.beta_fast == 24);
  CHECK(yarn.beta_slow == 1);
  const RotaryConfig llama3 =
      parse(
          R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
          "high_freq_factor": 4, "original_max_position_embeddings": 8192}})")
          .rotary;
  CHECK(llama3.kind == Kind::llama3);
  CHECK(llama3.original_context == 8192);
  const RotaryConfig longrope = parse(
                                    R"({"head_dim": 4, "max_position_embeddings": 8192,
          "original_max_position_embeddings": 2048,
          "rope_scaling": {"type": "longrope", "short_factor": [1, 2], "long_factor": [3, 4]}})")
                                    .rotary;
  CHECK(longrope.kind == Kind::longrope);
  CHECK(longrope.factor == 4);
  CHECK(longrope.long_factor == std::vector<double>({3, 4}));
}

TEST_CASE("what is no LLaMA is refused by name") {
  for (const auto& [text, culprit] : std::vector<std::pair<const char*, const char*>>{
           {R"({"architectures": ["MistralForCausalLM"]})", "MistralForCausalLM"},
           {R"({"architectures": []})", "architectures"},
           {R"({"architectures": "LlamaForCausalLM"})", "architectures"},
           {R"({"model_type": "gpt_neox"})", "gpt_neox"},
           {R"({"hidden_act": "gelu"})", "gelu"},
           {R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor"},
           {R"({"rope_scaling": {"type": "ntk", "factor": 2}})", "ntk"},
           {R"({"rope_scaling": {"type": "mrope", "factor": 2}})", "mrope"},
           {R"({"rope_scaling": {"type": "linear", "factor": 2, "alpha": 8}})", "alpha"},
           {R"({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": false}})", "truncate"}}) {
    CAPTURE(text);
    check_refused(ErrorCode::unsupported, {"config.json", culprit},
                  [&, text = text] { parse(text); });
  }
}

TEST_CASE("every number out of its range and every contradiction of config.json is refused") {
  for (
      const auto& [text, culprit] : std::vector<std::pair<const char*, const char*>>{
          {R"({"hidden_size": 0})", "hidden_size"},
          {R"({"hidden_size": -4096})", "hidden_size"},
          {R"({"hidden_size": 1e30})", "hidden_size"},
          {R"({"hidden_size": 18446744073709551615})", "hidden_size"},
          {R"({"hidden_size": "4096"})", "hidden_size"},
          {R"({"hidden_size": 4096.5})", "hidden_size"},
          {R"({"hidden_size": [4096]})", "hidden_size"},
          {R"({"hidden_size": 4097})", "multiple of num_attention_heads"},
          {R"({"intermediate_size": 0})", "intermediate_size"},
          {R"({"num_hidden_layers": 1025})", "num_hidden_layers"},
          {R"({"num_hidden_layers": 0})", "num_hidden_layers"},
          {R"({"num_attention_heads": 65537})", "num_attention_heads"},
          {R"({"num_key_value_heads": 0})", "num_key_value_heads"},
          {R"({"num_key_value_heads": 5})", "multiple of num_key_value_heads"},
          {R"({"num_key_value_heads": 64})", "multiple of num_key_value_heads"},
          {R"({"head_dim": 127})", "even"},
          {R"({"head_dim": 65536})", "num_attention_heads * head_dim"},
          {R"({"hidden_size": 32})", "even"},
          {R"({"vocab_size": 0})", "vocab_size"},
          {R"({"vocab_size": 16777217})", "vocab_size"},
          {R"({"rms_norm_eps": 0})", "rms_norm_eps"},
          {R"({"rms_norm_eps": -1e-6})", "rms_norm_eps"},
          {R"({"rms_norm_eps": true})", "rms_norm_eps"},
          {R"({"max_position_embeddings": 0})", "max_position_embeddings"},
          {R"({"max_position_embeddings": 16777217})", "max_position_embeddings"},
          {R"({"max_sequence_length": -1})", "max_sequence_length"},
          {R"({"tie_word_embeddings": 1})", "tie_word_embeddings"},
          {R"({"attention_bias": "no"})", "attention_bias"},
          {R"({"bos_token_id": "<s>"})", "bos_token_id"},
          {R"({"eos_token_id": [[2]]})", "eos_token_id"},
          {R"({"eos_token_id": [2, -2]})", "eos_token_id"},
          {R"({"eos_token_id": -2})", "eos_token_id"},
          {R"({"rope_theta": 1})", "rope_theta"},
          {R"({"rope_theta": 1e300})", "rope_theta"},
          {R"({"rope_theta": 10000, "rope_parameters": {"rope_theta": 20000}})", "rope_theta"},
          {R"({"rope_scaling": "linear"})", "rope_scaling"},
          {R"({"rope_scaling": {"type": "linear"}})", "factor"},
          {R"({"rope_scaling": {"type": "linear", "factor": 0}})", "factor"},
          {R"({"rope_scaling": {"type": "linear", "factor": 1e9}})", "factor"},
          {R"({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}})", "differ"},
          {R"({"rope_scaling": {"type": "linear", "factor": 2},
                "rope_parameters": {"type": "linear", "factor": 4}})",
           "contradict"},
          {R"({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}})", "head_dim"},
          {R"({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}})",
           "beta_fast"},
          {R"({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4}})",
           "high_freq_factor"},
          {R"({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}})",
           "head_dim / 2 = 64"},
          {R"({"rope_scaling": {"type": "longrope", "short_factor": [0], "long_factor": [1]}})",
           "short_factor"},
          {R"({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}})",
           "original_max_position_embeddings"},
          {R"({"max_position_embeddings": 1, "rope_scaling": {"type": "yarn", "factor": 2}})",
           "at least 2"}}) {
    CAPTURE(text);
    check_refused(ErrorCode::malformed, {"config.json", culprit},
                  [&, text = text] { parse(text); });
  }
  LoadReport report;
  check_refused(ErrorCode::malformed, {"config.json", "object"},
                [&] { parse_llama_config(Json{Json::Array()}, report); });
}

QuantizationConfig parse_settings(const std::string& in_config, const std::string& quantize,
                                  const std::string& quant, LoadReport& report) {
  return parse_quantization_config(parse_json(in_config, "a"), parse_json(quantize, "b"),
                                   parse_json(quant, "c"), report);
}

TEST_CASE("quantisation settings are read under all their names") {
  LoadReport report;
  const QuantizationConfig nothing = parse_settings("null", "null", "null", report);
  CHECK(nothing.origin.empty());
  CHECK_FALSE(nothing.bits);
  CHECK(nothing.zero_points == ZeroPoints::automatic);
  for (const char* text :
       {R"({"bits": 4, "group_size": 32, "desc_act": true, "sym": false})",
        R"({"wbits": 4, "groupsize": 32, "act_order": true, "sym": false, "quant_method": "gptq"})",
        R"({"w_bit": 4, "q_group_size": 32, "desc_act": true, "sym": false, "method": "GPTQ"})"}) {
    const QuantizationConfig config = parse_settings("null", text, "null", report);
    CHECK(config.origin == "quantize_config.json");
    CHECK(config.bits == 4);
    CHECK(config.group_size == 32);
    CHECK(config.act_order == true);
    CHECK(config.symmetric == false);
    CHECK(config.zero_points == ZeroPoints::automatic);
  }
  const QuantizationConfig newest = parse_settings(
      R"({"bits": 8, "group_size": -1, "quant_method": "gptq", "method": "gptq", "format": "gptq_v2",
          "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "lm_head": true, "meta": {},
          "dynamic": {"-:.*": {}}})",
      "null", "null", report);
  CHECK(newest.zero_points == ZeroPoints::v2);
  CHECK(newest.group_size == -1);
  CHECK(newest.varies_by_module);
  CHECK(report.warnings.empty());
}

TEST_CASE("the first settings win and those that contradict them are named") {
  LoadReport report;
  const QuantizationConfig config =
      parse_settings(R"({"bits": 4, "group_size": 128, "quant_method": "gptq"})",
                     R"({"bits": 4, "group_size": 32, "desc_act": true})",
                     R"({"bits": 8, "sym": true, "checkpoint_format": "gptq_v2"})", report);
  CHECK(config.bits == 4);
  CHECK(config.group_size == 128);
  CHECK(config.act_order == true);
  CHECK(config.symmetric == true);
  CHECK(config.zero_points == ZeroPoints::v2);
  CHECK(report.warnings.size() == 2);
  CHECK(has_line(report.warnings, {"config.json", "128", "quantize_config.json", "32"}));
  CHECK(has_line(report.warnings, {"config.json", "4", "quant_config.json", "8"}));
  CHECK(has_line(report.decisions, {"desc_act true from quantize_config.json"}));
}

TEST_CASE("other quantisers are refused by name") {
  for (const auto& [text, culprit] : std::vector<std::pair<const char*, const char*>>{
           {R"({"quant_method": "awq", "bits": 4})", "awq"},
           {R"({"w_bit": 4, "q_group_size": 128, "zero_point": true, "version": "GEMM"})", "awq"},
           {R"({"quant_method": "bitsandbytes"})", "bitsandbytes"},
           {R"({"load_in_4bit": true})", "bitsandbytes"},
           {R"({"load_in_8bit": true})", "bitsandbytes"},
           {R"({"quant_method": "exl2", "bits": 4.5})", "exl2"},
           {R"({"quant_method": "exl3"})", "exl3"},
           {R"({"quant_method": "fp8"})", "fp8"},
           {R"({"quant_method": "compressed-tensors"})", "compressed-tensors"},
           {R"({"quant_method": "marlin"})", "marlin"},
           {R"({"bits": 4, "is_marlin_format": true})", "marlin"},
           {R"({"bits": 4, "checkpoint_format": "marlin"})", "marlin"},
           {R"({"bits": 4, "format": "gptq_p"})", "gptq_p"},
           {R"({"bits": 4, "format": "bitblas"})", "bitblas"},
           {R"({"bits": 5})", "bits"},
           {R"({"bits": 16})", "bits"},
           {R"({"bits": 4, "pack_dtype": "int16"})", "int16"}}) {
    CAPTURE(text);
    LoadReport report;
    check_refused(ErrorCode::unsupported, {"quantize_config.json", culprit},
                  [&, text = text] { parse_settings("null", text, "null", report); });
    check_refused(ErrorCode::unsupported, {"config.json", culprit},
                  [&, text = text] { parse_settings(text, "null", "null", report); });
  }
}

TEST_CASE("quantisation settings that make no sense are refused") {
  for (const auto& [text, culprit] : std::vector<std::pair<const char*, const char*>>{
           {R"([4])", "object"},
           {R"({"bits": "4"})", "bits"},
           {R"({"bits": 4.5})", "bits"},
           {R"({"bits": 0})", "bits"},
           {R"({"bits": 4, "wbits": 8})", "differ"},
           {R"({"group_size": 0})", "group_size"},
           {R"({"group_size": -2})", "group_size"},
           {R"({"group_size": 1e12})", "group_size"},
           {R"({"desc_act": "yes"})", "desc_act"},
           {R"({"sym": 1})", "sym"},
           {R"({"quant_method": 4})", "quant_method"},
           {R"({"model_file_base_name": 7})", "model_file_base_name"}}) {
    CAPTURE(text);
    LoadReport report;
    check_refused(ErrorCode::malformed, {"quantize_config.json", culprit},
                  [&, text = text] { parse_settings("null", text, "null", report); });
  }
}

// Rotary angles, against the formulas of reference/formats.md 2.3 in double.

std::vector<double> frequencies_of(const std::string& text, int position) {
  const LlamaConfig config = parse(text);
  const Rotary rotary(config.rotary, config.head_dim, config.context);
  std::vector<float> out(std::size_t(config.head_dim / 2));
  rotary.frequencies(position, out);
  return {out.begin(), out.end()};
}

/// theta^(-2i / 128)
double plain(double theta, int i) { return std::pow(theta, -2.0 * i / 128); }

TEST_CASE("plain and linear frequencies are powers of theta") {
  const auto base = frequencies_of("{}", 5),
             linear = frequencies_of(
                 R"({"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 4}})", 5);
  for (int i = 0; i < 64; ++i) {
    CHECK(base[std::size_t(i)] == doctest::Approx(plain(10000, i)).epsilon(2e-6));
    CHECK(linear[std::size_t(i)] == doctest::Approx(plain(500000, i) / 4).epsilon(2e-6));
  }
  CHECK(base[0] == 1);
  CHECK(base[32] == doctest::Approx(0.01).epsilon(1e-6));
}

TEST_CASE("dynamic frequencies change only past the trained context") {
  const std::string text = R"({"rope_scaling": {"type": "dynamic", "factor": 2}})";
  CHECK(frequencies_of(text, 2047) == frequencies_of("{}", 2047));
  const auto longer = frequencies_of(text, 4095);
  // Length 4096: growth 2 * 2 - 1 = 3.
  const double theta = 10000 * std::pow(3.0, 128.0 / 126.0);
  for (int i = 0; i < 64; ++i)
    CHECK(longer[std::size_t(i)] == doctest::Approx(plain(theta, i)).epsilon(3e-6));
  CHECK(frequencies_of(text, 2048) != frequencies_of(text, 2049));
}

TEST_CASE("dynamic frequencies past the context are those of a plain embedding of that theta") {
  RotaryConfig config;
  config.kind = RotaryConfig::Kind::dynamic;
  config.factor = 2;
  const Rotary dynamic(config, 128, 2048);
  for (const int position : {2048, 3000, 4095, 16383}) {
    RotaryConfig grown;
    grown.theta = 10000 * std::pow(2.0 * (position + 1.0) / 2048 - 1, 128 / 126.0);
    const Rotary same(grown, 128, 2048);
    std::vector<float> found(64), expected(64), cosine(64), sine(64), cosine2(64), sine2(64);
    dynamic.frequencies(position, found);
    same.frequencies(position, expected);
    CHECK(found == expected);
    dynamic.angles(position, cosine, sine);
    same.angles(position, cosine2, sine2);
    CHECK(cosine == cosine2);
    CHECK(sine == sine2);
  }
}

TEST_CASE("yarn keeps fast pairs and slows the others with a ramp between") {
  const auto found = frequencies_of(
      R"({"max_position_embeddings": 65536, "rope_scaling": {"type": "yarn", "factor": 16,
          "original_max_position_embeddings": 4096}})",
      0);
  // By hand: 128 ln(4096 / (2 pi r)) / (2 ln 10000) is 20.95 for r = 32 and 45.03 for r = 1.
  for (int i = 0; i < 64; ++i) {
    const double ramp = std::clamp((i - 20.0) / (46.0 - 20.0), 0.0, 1.0);
    const double wanted = plain(10000, i) * (ramp / 16 + 1 - ramp);
    CHECK(found[std::size_t(i)] == doctest::Approx(wanted).epsilon(4e-6));
  }
  RotaryConfig config;
  config.kind = RotaryConfig::Kind::yarn;
  config.factor = 16;
  config.original_context = 4096;
  CHECK(Rotary(config, 128, 65536).attention_factor() == doctest::Approx(1.2772588722239782));
  config.attention_factor = 1.5;
  CHECK(Rotary(config, 128, 65536).attention_factor() == 1.5f);
}

TEST_CASE("llama3 scaling divides long wavelengths and blends the middle") {
  const auto found = frequencies_of(
      R"({"rope_theta": 500000, "max_position_embeddings": 131072,
          "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
          "high_freq_factor": 4, "original_max_position_embeddings": 8192}})",
      0);
  int kept = 0, divided = 0;
  for (int i = 0; i < 64; ++i) {
    const double frequency = plain(500000, i), wavelength = 2 * std::numbers::pi / frequency;
    const double t = (8192 / wavelength - 1) / 3;
    double wanted = (1 - t) * frequency / 8 + t * frequency;
    if (wavelength < 2048) wanted = frequency, ++kept;
    if (wavelength > 8192) wanted = frequency / 8, ++divided;
    CHECK(found[std::size_t(i)] == doctest::Approx(wanted).epsilon(4e-6));
  }
  // By hand: 2 pi 500000^(i / 64) passes 2048 between i = 28 and 29, 8192 between 34 and 35.
  CHECK(kept == 29);
  CHECK(divided == 29);
}

TEST_CASE("longrope changes its divisors past the original context") {
  const std::string text =
      R"({"hidden_size": 128, "num_attention_heads": 32, "max_position_embeddings": 16384,
          "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope",
          "short_factor": [1, 2], "long_factor": [4, 8]}})";
  const auto near = frequencies_of(text, 4095), far = frequencies_of(text, 4096);
  CHECK(near[0] == doctest::Approx(1));
  CHECK(near[1] == doctest::Approx(0.01 / 2));
  CHECK(far[0] == doctest::Approx(0.25));
  CHECK(far[1] == doctest::Approx(0.01 / 8));
  const LlamaConfig config = parse(text);
  // sqrt(1 + ln 4 / ln 4096) = sqrt(7 / 6)
  CHECK(Rotary(config.rotary, 4, config.context).attention_factor() ==
        doctest::Approx(std::sqrt(7.0 / 6.0)));
}

TEST_CASE("angles are position times frequency in float") {
  RotaryConfig config;
  const Rotary rotary(config, 128, 2048);
  std::vector<float> cosine(64), sine(64), frequency(64);
  rotary.frequencies(0, frequency);
  for (const int position : {0, 1, 77, 2047, 100000}) {
    rotary.angles(position, cosine, sine);
    for (std::size_t i = 0; i < 64; ++i) {
      const double angle = double(float(position) * frequency[i]);
      CHECK(cosine[i] == float(std::cos(angle)));
      CHECK(sine[i] == float(std::sin(angle)));
    }
  }
  rotary.angles(1, cosine, sine);
  CHECK(cosine[0] == 0.5403023f);
  CHECK(sine[0] == 0.84147098f);

  config.kind = RotaryConfig::Kind::yarn;
  config.factor = 16;
  config.original_context = 4096;
  const Rotary scaled(config, 128, 65536);
  scaled.angles(0, cosine, sine);
  CHECK(cosine[0] == doctest::Approx(1.2772588722239782));
}

}  // namespace
}  // namespace guanaco
