#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include <guanaco/session.h>

#include "model/loaded_model.h"

namespace guanaco {

/// What a Session and the Generation that uses it share.
struct SessionState {
  SessionState(Model model_in, LoadedModel& loaded_in, int context_in)
      : model(std::move(model_in)), loaded(loaded_in), context(context_in) {}

  Model model;  ///< keeps `loaded` alive
  LoadedModel& loaded;
  int context;
  std::unique_ptr<KvPages> pages;
  std::vector<TokenId> tokens;     ///< what the cache holds; room for `context` is reserved
  std::vector<float> logits;       ///< [vocab] after the last token
  std::vector<float> next_logits;  ///< [vocab] of a feed under way, swapped in when it succeeds
  bool has_logits = false;         ///< false where the device chose the token after them itself
  /// A live Generation uses this session. Cleared last, maybe by another thread than the next call:
  /// who reads false sees all that the Generation left.
  std::atomic<bool> generating = false;
  std::optional<TokenId> unfed;  ///< the last token a Generation handed out, not in the cache yet

  int position() const { return int(tokens.size()); }
};

/// One sequence's part in a feed, seen from inside.
struct InnerFeed {
  SessionState* session;
  std::span<const TokenId> tokens;
  std::span<float> logprobs = {};      ///< [tokens] if scores are wanted, else empty
  std::optional<TokenId> before = {};  ///< fed in front of them, not scored

  int rows() const { return int(tokens.size()) + int(before.has_value()); }
  TokenId token(int row) const {
    return before && row == 0 ? *before : tokens[std::size_t(row - int(before.has_value()))];
  }
};

/// The one way tokens get into sessions: all or nothing (design.md 4). Arguments were checked.
void feed_sessions(std::span<const InnerFeed> feeds, Watch watch);

/// Computes the last token again if its logits are not here: after a rewind, or when they stayed on
/// the device. Not for a session whose last token is unfed.
void restore_logits(SessionState& session, const Watch& watch);

/// Throws invalid_argument while a Generation uses the session. Comes before all else that is read.
void check_unused(const SessionState& session);

/// Throws invalid_argument or context_full if `tokens` cannot be appended to what was shown.
void check_feed(const SessionState& session, std::span<const TokenId> tokens);

/// Natural log-probability of `token` under softmax(logits), added up in double.
float log_probability(std::span<const float> logits, TokenId token);

}  // namespace guanaco
