#pragma once

#include <span>
#include <string_view>
#include <vector>

#include <guanaco/guanaco.h>

namespace guanaco {

/// The bundled model, loaded once with short passes, so that a prompt of 40 tokens takes several.
inline const Model& bundled() {
  static const Model model =
      Model::load(GUANACO_MODEL, {.device = Device::cpu, .threads = 2, .rows = 16});
  return model;
}

inline std::vector<TokenId> ids(std::string_view text) {
  return bundled().tokenizer().encode(text);
}

inline constexpr std::string_view kPrompt =
    "### Human: What are the benefits of regular exercise? ### Assistant:";
inline constexpr std::string_view kStory =
    "Once upon a time there was a king who had three daughters, and the youngest of them asked her "
    "father every evening "
    "for a story before she went to sleep, whatever the weather was.";

inline std::vector<float> copy(std::span<const float> values) {
  return {values.begin(), values.end()};
}

/// The logits after `tokens` in a session of their own.
inline std::vector<float> logits_after(const Model& model, std::span<const TokenId> tokens) {
  Session session(model, {.context = 256});
  session.feed(tokens);
  return copy(session.logits());
}

}  // namespace guanaco
