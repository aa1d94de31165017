#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <guanaco/tokenizer.h>

namespace guanaco {

struct SamplerAccess;  // for choices that a device makes; the library's own

/// How the next token is chosen. Applied in this order, which is transformers': repetition,
/// frequency and presence penalty, temperature, top-k, top-p, min-p; then one draw from what is
/// left. Wherever tokens are equally likely, the lower id goes first.
struct SamplerOptions {
  /// >= 0; divides the logits. 0 = greedy: the largest logit, no draw.
  float temperature = 0.7f;
  /// >= 0; keep the k most likely. 0 = off.
  int top_k = 0;
  /// 0 < p <= 1; keep the fewest most likely that together have probability >= p, of what top-k
  /// left (nucleus sampling, arXiv:1904.09751). 1 = off.
  float top_p = 0.9f;
  /// 0 <= p <= 1; keep those at least p times as likely as the likeliest. 0 = off.
  float min_p = 0;
  /// > 0; divides positive and multiplies negative logits of seen tokens. 1 = off
  /// (arXiv:1909.05858).
  float repetition_penalty = 1;
  float frequency_penalty = 0;  ///< subtracted once for every time a token was seen. 0 = off
  float presence_penalty = 0;   ///< subtracted once if a token was seen. 0 = off
  /// >= 0; only the last n tokens count as seen, prompt included. 0 = all. Room for 65,536 is
  /// reserved at the first sample; a longer window grows as it fills, which allocates.
  int penalty_window = 0;
  std::uint64_t seed = 0;  ///< draws depend on (seed, number of the draw) alone
};

/// One sequence's choices. Copy it to branch. One thread at a time.
class Sampler {
 public:
  /// Throws invalid_argument naming the field, its range and the value found.
  explicit Sampler(const SamplerOptions& options = {});

  /// Chooses from natural-log-scale scores, one per token id, and counts the choice as seen. -inf
  /// bans a token. Allocates nothing after its first call. Throws invalid_argument if `logits` is
  /// empty, holds a NaN or +inf, or bans every token.
  TokenId sample(std::span<const float> logits);

  /// Counts tokens that were not chosen here, such as a prompt, as seen by the penalties. Throws
  /// invalid_argument for an id outside [0, 2^24).
  void accept(std::span<const TokenId> tokens);

  const SamplerOptions& options() const noexcept { return options_; }

 private:
  friend struct SamplerAccess;
  struct Candidate {
    float logit;
    TokenId token;
  };
  class Ranking;

  bool penalises() const noexcept;
  float penalised(float logit, std::size_t token) const noexcept;
  TokenId greedy(std::span<const float> logits) const;
  TokenId draw(std::span<const float> logits);
  void see(TokenId token);

  SamplerOptions options_;
  std::uint64_t draws_ = 0;
  std::vector<int> seen_;              ///< [token] how often it was seen; empty without penalties
  std::vector<TokenId> window_;        ///< the seen tokens if penalty_window limits them, a ring
  std::size_t oldest_ = 0;             ///< where the ring starts once it is full
  std::vector<Candidate> candidates_;  ///< scratch, reused between calls
};

}  // namespace guanaco
