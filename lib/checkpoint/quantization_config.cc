#include <algorithm>
#include <array>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/fields.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

std::string lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  return text;
}

[[noreturn]] void refuse(const Fields& fields, std::string_view what, std::string_view name) {
  fail(ErrorCode::unsupported, "{}: {} {} is not supported: expected gptq", fields.origin(), what,
       printable(name));
}

/// Files of other quantisers name themselves in several ways, the oldest only by their settings.
void check_method(const Fields& fields) {
  const auto method = fields.text({"quant_method", "method"});
  if (method && lower_case(*method) != "gptq") refuse(fields, "quantisation method", *method);
  if (fields.boolean({"is_marlin_format"}).value_or(false)) refuse(fields, "format", "marlin");
  if (fields.boolean({"load_in_4bit"}).value_or(false) ||
      fields.boolean({"load_in_8bit"}).value_or(false))
    refuse(fields, "quantisation method", "bitsandbytes");
  if (!method && fields.find({"zero_point"}) && fields.find({"version"}))
    refuse(fields, "quantisation method", "awq");
}

ZeroPoints parse_format(const Fields& fields) {
  const auto format = fields.text({"checkpoint_format", "format"});
  if (!format) return ZeroPoints::automatic;
  const std::string name = lower_case(*format);
  if (name == "gptq") return ZeroPoints::v1;
  if (name == "gptq_v2") return ZeroPoints::v2;
  refuse(fields, "format", *format);
}

QuantizationConfig parse_one(const Fields& fields) {
  check_method(fields);
  QuantizationConfig config;
  config.origin = fields.origin();
  config.zero_points = parse_format(fields);
  const auto pack_type = fields.text({"pack_dtype"});
  require(!pack_type || lower_case(*pack_type) == "int32" || *pack_type == "torch.int32",
          ErrorCode::unsupported, "{}: pack_dtype: expected int32, found {}", fields.origin(),
          printable(pack_type.value_or("")));
  config.bits = fields.integer({"bits", "w_bit", "wbits"}, 1, 64);
  require(!config.bits || *config.bits == 2 || *config.bits == 3 || *config.bits == 4 ||
              *config.bits == 8,
          ErrorCode::unsupported, "{}: bits: expected 2, 3, 4 or 8, found {}", fields.origin(),
          config.bits.value_or(0));
  config.group_size = fields.integer({"group_size", "q_group_size", "groupsize"}, -1, 1 << 24);
  require(config.group_size != 0, ErrorCode::malformed,
          "{}: group_size: expected -1 or a positive number, found 0", fields.origin());
  config.act_order = fields.boolean({"desc_act", "act_order"});
  config.symmetric = fields.boolean({"sym"});
  const Json* dynamic = fields.find({"dynamic"});
  config.varies_by_module =
      dynamic && *dynamic != Json{Json::Object()} && *dynamic != Json{Json::Array()};
  config.weight_file = fields.text({"model_file_base_name"}).value_or("");
  return config;
}

std::string text_of(int value) { return std::to_string(value); }
std::string text_of(bool value) { return value ? "true" : "false"; }

/// Fills what `field` does not say from `other`, or warns where the two contradict each other.
template <typename T>
void merge(std::optional<T>& field, const std::optional<T>& other, const char* name,
           const QuantizationConfig& first, const QuantizationConfig& second, LoadReport& report) {
  if (!other || field == other) return;
  if (!field) {
    field = other;
    report.decisions.push_back(fmt::format("{} {} from {}: {} does not say", name, text_of(*other),
                                           second.origin, first.origin));
    return;
  }
  report.warnings.push_back(fmt::format("{} says {} {}, {} says {}: the former is taken",
                                        first.origin, name, text_of(*field), second.origin,
                                        text_of(*other)));
}

void merge(QuantizationConfig& first, const QuantizationConfig& second, LoadReport& report) {
  merge(first.bits, second.bits, "bits", first, second, report);
  merge(first.group_size, second.group_size, "group_size", first, second, report);
  merge(first.act_order, second.act_order, "desc_act", first, second, report);
  merge(first.symmetric, second.symmetric, "sym", first, second, report);
  if (first.zero_points == ZeroPoints::automatic) {
    first.zero_points = second.zero_points;
  } else if (second.zero_points != ZeroPoints::automatic &&
             first.zero_points != second.zero_points) {
    report.warnings.push_back(
        fmt::format("{} and {} name different checkpoint formats: the "
                    "former is taken",
                    first.origin, second.origin));
  }
  first.varies_by_module |= second.varies_by_module;
  if (first.weight_file.empty()) first.weight_file = second.weight_file;
}

}  // namespace

QuantizationConfig parse_quantization_config(const Json& in_config, const Json& quantize_config,
                                             const Json& quant_config, LoadReport& report) {
  const std::array<std::pair<const Json*, const char*>, 3> sources = {
      {{&in_config, "config.json: quantization_config"},
       {&quantize_config, "quantize_config.json"},
       {&quant_config, "quant_config.json"}}};
  std::optional<QuantizationConfig> merged;
  for (const auto& [json, origin] : sources) {
    if (json->is_null()) continue;
    const QuantizationConfig config = parse_one(Fields(*json, origin));
    if (merged)
      merge(*merged, config, report);
    else
      merged = config;
  }
  return merged.value_or(QuantizationConfig{});
}

}  // namespace guanaco
