#include <guanaco/session.h>

#include <algorithm>
#include <new>

#include "session/session_state.h"
#include "support/check.h"

namespace guanaco {

Session::Session(Model model, const SessionOptions& options) {
  require(options.context >= 1 && options.context <= (1 << 24), ErrorCode::invalid_argument,
          "SessionOptions::context is {}, expected 1 to {}", options.context, 1 << 24);
  LoadedModel& loaded = LoadedModel::of(model);
  const auto vocab = std::size_t(loaded.config.vocab);
  const std::uint64_t wanted = loaded.backend->cache_bytes(loaded.config, options.context);
  const std::uint64_t free = loaded.backend->free_bytes();
  require(wanted <= free, ErrorCode::out_of_memory,
          "a session of {} tokens needs {} bytes on {}, {} are free", options.context, wanted,
          loaded.info.device, free);
  try {
    state_ = std::make_shared<SessionState>(std::move(model), loaded, options.context);
    {
      const std::lock_guard turn(loaded.pass.queue);
      loaded.pass.choosing.collect_all(*loaded.backend);
      state_->pages = loaded.backend->make_pages(loaded.config, options.context);
    }
    state_->tokens.reserve(std::size_t(options.context));
    state_->logits.resize(vocab);
    state_->next_logits.resize(vocab);
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, "out of host memory for a session of {} tokens",
         options.context);
  }
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

void Session::feed(std::span<const TokenId> tokens, const FeedOptions& options) {
  const Feed one{this, tokens};
  guanaco::feed({&one, 1}, options);
}

std::vector<float> Session::score(std::span<const TokenId> tokens, const FeedOptions& options) {
  check_unused(*state_);
  check_feed(*state_, tokens);
  std::vector<float> logprobs(tokens.size());
  if (tokens.empty()) return logprobs;
  InnerFeed feed{state_.get(), tokens, logprobs, state_->unfed};
  // The first score needs the logits after the token before it: that is fed again if they are gone.
  std::vector<TokenId>& held = state_->tokens;
  const bool again = !feed.before && !state_->has_logits && !held.empty();
  if (again) {
    feed.before = held.back();
    held.pop_back();
  }
  try {
    feed_sessions({&feed, 1}, {.cancel = {&options.cancel, 1}, .progress = &options.progress});
  } catch (...) {
    if (again) held.push_back(*feed.before);
    throw;
  }
  return logprobs;
}

std::span<const float> Session::logits() const noexcept {
  return state_->has_logits ? std::span<const float>(state_->logits) : std::span<const float>();
}
std::span<const TokenId> Session::tokens() const noexcept { return state_->tokens; }
int Session::position() const noexcept { return state_->position(); }
int Session::context() const noexcept { return state_->context; }
const Model& Session::model() const noexcept { return state_->model; }

void Session::rewind(int position) {
  check_unused(*state_);
  require(position >= 0 && position <= state_->position(), ErrorCode::invalid_argument,
          "cannot rewind to position {}, expected 0 to {}", position, state_->position());
  state_->unfed.reset();
  if (position == state_->position()) return;
  state_->tokens.resize(std::size_t(position));
  state_->has_logits = false;
}

int Session::reuse(std::span<const TokenId> prompt) {
  check_unused(*state_);
  const std::span<const TokenId> held = state_->tokens;
  const auto most = prompt.empty() ? 0 : std::min(held.size(), prompt.size() - 1);
  const auto [end, unused] =
      std::mismatch(held.begin(), held.begin() + std::ptrdiff_t(most), prompt.begin());
  rewind(int(end - held.begin()));
  return state_->position();
}

}  // namespace guanaco
