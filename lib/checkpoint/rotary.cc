#include "checkpoint/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace guanaco {
namespace {

using Kind = RotaryConfig::Kind;

/// theta^(2i / d), rounded to float as transformers has it.
float wavelength(double theta, int head_dim, int i) {
  return float(std::pow(theta, double(float(2 * i) / float(head_dim))));
}

std::vector<float> wavelengths(double theta, int head_dim) {
  std::vector<float> result(std::size_t(head_dim / 2));
  for (int i = 0; i < head_dim / 2; ++i) result[std::size_t(i)] = wavelength(theta, head_dim, i);
  return result;
}

/// One over base[i] * divisor(i).
template <typename F>
std::vector<float> inverse(std::vector<float> base, F&& divisor) {
  for (std::size_t i = 0; i < base.size(); ++i) base[i] = 1.0f / (base[i] * divisor(i));
  return base;
}

std::vector<float> plain(double theta, int head_dim) {
  return inverse(wavelengths(theta, head_dim), [](std::size_t) { return 1.0f; });
}

/// Turns the pairs that complete many rounds over the original context as before, and the slow ones
/// 1 / factor as fast, with a ramp between (arXiv:2309.00071).
std::vector<float> yarn(const RotaryConfig& config, int head_dim) {
  const auto index_of_rounds = [&](double rounds) {
    return head_dim * std::log(config.original_context / (rounds * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double low = std::max(std::floor(index_of_rounds(config.beta_fast)), 0.0);
  double high = std::min(std::ceil(index_of_rounds(config.beta_slow)), head_dim - 1.0);
  if (low == high) high += 0.001;
  const std::vector<float> base = wavelengths(config.theta, head_dim);
  std::vector<float> result(base.size());
  for (std::size_t i = 0; i < base.size(); ++i) {
    const float slow = float(std::clamp((double(i) - low) / (high - low), 0.0, 1.0));
    result[i] = slow / (float(config.factor) * base[i]) + (1 - slow) / base[i];
  }
  return result;
}

/// As Llama 3.1: keeps short wavelengths, divides long ones by the factor, blends between.
std::vector<float> llama3(const RotaryConfig& config, int head_dim) {
  std::vector<float> result = plain(config.theta, head_dim);
  const float factor = float(config.factor), low = float(config.low_frequency_factor),
              high = float(config.high_frequency_factor), original = float(config.original_context);
  for (float& frequency : result) {
    const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      frequency /= factor;
    } else {
      const float kept = (original / wavelength - low) / (high - low);
      frequency = (1 - kept) * frequency / factor + kept * frequency;
    }
  }
  return result;
}

}  // namespace

Rotary::Rotary(const RotaryConfig& config, int head_dim, int context)
    : config_(config), head_dim_(head_dim), context_(context) {
  const auto divided_by = [](const std::vector<double>& factors) {
    return [&factors](std::size_t i) { return float(factors[i]); };
  };
  switch (config.kind) {
    case Kind::none:
    case Kind::dynamic:
      frequencies_ = plain(config.theta, head_dim);
      break;
    case Kind::linear:
      frequencies_ = plain(config.theta, head_dim);
      for (float& frequency : frequencies_) frequency /= float(config.factor);
      break;
    case Kind::yarn:
      frequencies_ = yarn(config, head_dim);
      attention_factor_ =
          float(config.attention_factor.value_or(0.1 * std::log(config.factor) + 1));
      break;
    case Kind::longrope:
      frequencies_ = inverse(wavelengths(config.theta, head_dim), divided_by(config.short_factor));
      long_frequencies_ =
          inverse(wavelengths(config.theta, head_dim), divided_by(config.long_factor));
      attention_factor_ = float(config.attention_factor.value_or(
          config.factor > 1
              ? std::sqrt(1 + std::log(config.factor) / std::log(config.original_context))
              : 1));
      break;
    case Kind::llama3:
      frequencies_ = llama3(config, head_dim);
      break;
  }
}

void Rotary::frequencies(int position, std::span<float> out) const {
  const double length = double(position) + 1;
  if (config_.kind == Kind::dynamic && length > context_) {
    const double growth = config_.factor * length / context_ - (config_.factor - 1);
    const double theta = config_.theta * std::pow(growth, head_dim_ / (head_dim_ - 2.0));
    // In place: this happens at every token.
    for (int i = 0; i < head_dim_ / 2; ++i)
      out[std::size_t(i)] = 1.0f / wavelength(theta, head_dim_, i);
  } else if (config_.kind == Kind::longrope && length > config_.original_context) {
    std::ranges::copy(long_frequencies_, out.begin());
  } else {
    std::ranges::copy(frequencies_, out.begin());
  }
}

void Rotary::angles(int position, std::span<float> cosine, std::span<float> sine) const {
  frequencies(position, cosine);
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const float angle = float(position) * cosine[i];
    cosine[i] = float(std::cos(double(angle))) * attention_factor_;
    sine[i] = float(std::sin(double(angle))) * attention_factor_;
  }
}

}  // namespace guanaco
