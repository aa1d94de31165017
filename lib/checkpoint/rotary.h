#pragma once

#include <span>
#include <vector>

#include "checkpoint/config.h"

namespace guanaco {

/// Rotary angles as transformers computes them (reference/formats.md 2.1, 2.3): element i of a head
/// pairs with element i + head_dim / 2 and turns by position * frequency(i). Immutable; any thread.
///
/// The kinds whose base depends on the length of the text (dynamic, longrope) use, for position p,
/// the length p + 1: what decoding token by token gives. So the angles are a function of the
/// position alone, and feeding in slices equals feeding at once.
class Rotary {
 public:
  Rotary(const RotaryConfig& config, int head_dim, int context);

  /// cosine[i], sine[i] for i in [0, head_dim / 2), both times the attention factor of yarn and
  /// longrope.
  void angles(int position, std::span<float> cosine, std::span<float> sine) const;

  /// Fills out[head_dim / 2] with the frequencies that hold at `position`.
  void frequencies(int position, std::span<float> out) const;
  float attention_factor() const noexcept { return attention_factor_; }

 private:
  RotaryConfig config_;
  int head_dim_, context_;
  float attention_factor_ = 1;
  std::vector<float> frequencies_;       ///< of short texts (longrope, dynamic) or of all
  std::vector<float> long_frequencies_;  ///< of texts longer than original_context (longrope)
};

}  // namespace guanaco
