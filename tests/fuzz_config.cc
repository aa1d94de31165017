// Fuzz target: config.json and quantize_config.json of any text are understood or refused with an
// Error. Built and run like fuzz_safetensors.cc, with lib/checkpoint/*.cc beside it.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <guanaco/error.h>

#include "checkpoint/config.h"
#include "checkpoint/rotary.h"
#include "io/json.h"

namespace {

using guanaco::Json;
using guanaco::LoadReport;

void expect(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

/// Anything but an Error of one line goes through to the fuzzer.
template <typename F>
void attempt(F&& f) {
  try {
    f();
  } catch (const guanaco::Error& error) {
    expect(std::string_view(error.what()).find('\n') == std::string_view::npos,
           "a message of several lines");
  }
}

/// What was let through is a checkpoint whose sizes can be multiplied and whose angles are numbers.
void check(const guanaco::LlamaConfig& config) {
  const auto within = [](int value, int least, int most) {
    return least <= value && value <= most;
  };
  expect(within(config.layers, 1, 1024) && within(config.hidden, 1, 1 << 20) &&
             within(config.ffn, 1, 1 << 22) && within(config.heads, 1, 1 << 16) &&
             within(config.kv_heads, 1, config.heads) && config.heads % config.kv_heads == 0 &&
             within(config.vocab, 1, 1 << 24) && within(config.context, 1, 1 << 24),
         "a size out of its range");
  expect(within(config.head_dim, 2, (1 << 20) / config.heads) && config.head_dim % 2 == 0,
         "heads of an impossible width");
  expect(config.rms_norm_epsilon > 0, "an epsilon that divides by zero");
  if (config.head_dim > 1024) return;  // angles are as good, and slow
  const guanaco::Rotary rotary(config.rotary, config.head_dim, config.context);
  std::vector<float> cosine(std::size_t(config.head_dim / 2)), sine(cosine.size());
  for (const int position : {0, 1, config.context, 1 << 24}) {
    rotary.angles(position, cosine, sine);
    for (std::size_t i = 0; i < cosine.size(); ++i)
      expect(std::isfinite(cosine[i]) && std::isfinite(sine[i]), "an angle that is no number");
  }
}

void check(const guanaco::QuantizationConfig& config) {
  const int bits = config.bits.value_or(4), size = config.group_size.value_or(128);
  expect(bits == 2 || bits == 3 || bits == 4 || bits == 8, "a width out of its range");
  expect(size == -1 || (size >= 1 && size <= 1 << 24), "a group size out of its range");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  attempt([&] {
    const Json json =
        guanaco::parse_json(std::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
    attempt([&] {
      LoadReport report;
      check(guanaco::parse_llama_config(json, report));
    });
    attempt([&] {
      LoadReport report;
      check(guanaco::parse_quantization_config({}, json, {}, report));
    });
    // As published: the object inside config.json, contradicted by a file beside it.
    attempt([&] {
      LoadReport report;
      const Json* inside = json.find("quantization_config");
      check(guanaco::parse_quantization_config(inside ? *inside : Json(), json, json, report));
    });
  });
  return 0;
}
