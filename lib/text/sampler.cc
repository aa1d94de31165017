#include <guanaco/sampler.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/check.h"
#include "text/philox.h"

namespace guanaco {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr TokenId kTokenLimit = 1 << 24;  // far above any vocabulary; bounds what accept() reserves

void expect(bool condition, const char* field, const char* range, double found) {
  require(condition, ErrorCode::invalid_argument, "{}: expected {}, found {}", field, range, found);
}

void check_logits(std::span<const float> logits) {
  require(!logits.empty(), ErrorCode::invalid_argument,
          "logits: expected one for each token, found none");
  bool sound = true, allowed = false;
  for (float logit : logits) {
    sound &= logit < kInfinity;  // false for a NaN too
    allowed |= logit > -kInfinity;
  }
  if (!sound) {
    const auto bad = std::find_if_not(logits.begin(), logits.end(),
                                      [](float logit) { return logit < kInfinity; });
    fail(ErrorCode::invalid_argument, "logits: expected numbers or -inf, found {} for token {}",
         std::isnan(*bad) ? "NaN" : "+inf", bad - logits.begin());
  }
  require(allowed, ErrorCode::invalid_argument,
          "logits: expected at least one above -inf, found all {} tokens banned", logits.size());
}

}  // namespace

/// Candidates in descending order, sorted only as far as anyone looks: a draw seldom needs more
/// than the first few of 32,000.
class Sampler::Ranking {
 public:
  explicit Ranking(std::span<Candidate> candidates) : candidates_(candidates) {}

  static bool precedes(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }

  const Candidate& operator[](std::size_t place) {
    while (place >= sorted_) {
      const std::size_t next = std::min(std::max<std::size_t>(64, 2 * sorted_), candidates_.size());
      const auto begin = candidates_.begin();
      std::partial_sort(begin + std::ptrdiff_t(sorted_), begin + std::ptrdiff_t(next),
                        candidates_.end(), precedes);
      sorted_ = next;
    }
    return candidates_[place];
  }

 private:
  std::span<Candidate> candidates_;
  std::size_t sorted_ = 0;
};

Sampler::Sampler(const SamplerOptions& options) : options_(options) {
  const SamplerOptions& o = options_;
  expect(o.temperature >= 0 && o.temperature < kInfinity, "temperature", "a number >= 0",
         o.temperature);
  expect(o.top_k >= 0, "top_k", "a number >= 0", o.top_k);
  expect(o.top_p > 0 && o.top_p <= 1, "top_p", "0 < p <= 1", o.top_p);
  expect(o.min_p >= 0 && o.min_p <= 1, "min_p", "0 <= p <= 1", o.min_p);
  expect(o.repetition_penalty > 0 && o.repetition_penalty < kInfinity, "repetition_penalty",
         "a number > 0", o.repetition_penalty);
  expect(std::isfinite(o.frequency_penalty), "frequency_penalty", "a number", o.frequency_penalty);
  expect(std::isfinite(o.presence_penalty), "presence_penalty", "a number", o.presence_penalty);
  expect(o.penalty_window >= 0, "penalty_window", "a number >= 0", o.penalty_window);
}

TokenId Sampler::sample(std::span<const float> logits) {
  check_logits(logits);
  if (penalises()) {
    if (seen_.size() < logits.size()) seen_.resize(logits.size());
    // No context is longer than this yet; a window that is grows as it fills.
    window_.reserve(std::size_t(std::min(options_.penalty_window, 1 << 16)));
  }
  const TokenId token = options_.temperature == 0 ? greedy(logits) : draw(logits);
  see(token);
  return token;
}

void Sampler::accept(std::span<const TokenId> tokens) {
  for (TokenId token : tokens)
    require(token >= 0 && token < kTokenLimit, ErrorCode::invalid_argument,
            "token: expected an id in [0, {}), found {}", kTokenLimit, token);
  for (TokenId token : tokens) see(token);
}

bool Sampler::penalises() const noexcept {
  return options_.repetition_penalty != 1 || options_.frequency_penalty != 0 ||
         options_.presence_penalty != 0;
}

float Sampler::penalised(float logit, std::size_t token) const noexcept {
  if (seen_.empty() || seen_[token] == 0 || logit == -kInfinity) return logit;
  const double repetition = options_.repetition_penalty;
  const double score = (logit > 0 ? logit / repetition : logit * repetition) -
                       seen_[token] * double(options_.frequency_penalty) -
                       options_.presence_penalty;
  constexpr double kLargest = std::numeric_limits<float>::max();
  return float(std::clamp(score, -kLargest, kLargest));  // a penalty never bans
}

TokenId Sampler::greedy(std::span<const float> logits) const {
  float largest = -kInfinity;
  std::size_t best = 0;
  for (std::size_t token = 0; token < logits.size(); ++token) {
    const float logit = penalised(logits[token], token);
    if (logit > largest) {
      largest = logit;
      best = token;
    }
  }
  return TokenId(best);
}

TokenId Sampler::draw(std::span<const float> logits) {
  candidates_.clear();
  candidates_.reserve(logits.size());
  double largest = -kInfinity;
  for (std::size_t token = 0; token < logits.size(); ++token) {
    if (logits[token] == -kInfinity) continue;
    candidates_.push_back({penalised(logits[token], token), TokenId(token)});
    largest = std::max(largest, double(candidates_.back().logit));
  }
  // Probability in units of the likeliest token's, so that nothing overflows.
  const auto weight = [&](const Candidate& candidate) {
    return std::exp((candidate.logit - largest) / options_.temperature);
  };
  Ranking ranked(candidates_);
  std::size_t kept = candidates_.size();
  double mass = 0;
  if (options_.top_k > 0) {
    kept = std::min(kept, std::size_t(options_.top_k));
    for (std::size_t place = 0; place < kept; ++place) mass += weight(ranked[place]);
  } else {
    for (const Candidate& candidate : candidates_) mass += weight(candidate);
  }
  if (options_.top_p < 1 || options_.min_p > 0) {
    const double enough = options_.top_p < 1 ? options_.top_p * mass : double(kInfinity);
    const std::size_t limit = kept;
    mass = 0;
    for (kept = 0; kept < limit && mass < enough; ++kept) {
      const double next = weight(ranked[kept]);
      if (next < options_.min_p) break;
      mass += next;
    }
  }

  const double target = uniform(options_.seed, draws_++) * mass;
  double passed = weight(ranked[0]);
  std::size_t place = 0;
  while (passed <= target && place + 1 < kept) {
    const double next = weight(ranked[place + 1]);
    if (next == 0) break;  // rounding in `mass` must not let the impossible through
    passed += next;
    ++place;
  }
  return ranked[place].token;
}

void Sampler::see(TokenId token) {
  if (!penalises()) return;
  if (seen_.size() <= std::size_t(token)) seen_.resize(std::size_t(token) + 1);
  const auto limit = std::size_t(options_.penalty_window);
  if (limit > 0 && window_.size() == limit) {
    --seen_[std::size_t(window_[oldest_])];
    window_[oldest_] = token;
    oldest_ = (oldest_ + 1) % limit;
  } else if (limit > 0) {
    window_.push_back(token);
  }
  ++seen_[std::size_t(token)];
}

}  // namespace guanaco
