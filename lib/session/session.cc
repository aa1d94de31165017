#include <guanaco/session.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "session/session_state.h"
#include "support/check.h"

namespace guanaco {
namespace {

/// Cuts feeds into passes of at most `rows` rows: first comes first, a sequence's rows stay
/// together.
class PassCutter {
 public:
  PassCutter(std::span<const InnerFeed> feeds, LoadedModel& model) : feeds_(feeds), model_(model) {}

  /// One sequence's share of the pass: tokens [begin, end) of feeds[feed], rows from `row` on.
  struct Slice {
    std::size_t feed;
    int begin, end, row;
  };

  /// True when all feeds are used up.
  bool done() const {
    for (std::size_t i = feed_; i < feeds_.size(); ++i)
      if (!feeds_[i].tokens.empty()) return false;
    return true;
  }

  /// Fills the model's pass with the next rows.
  void next() {
    LoadedModel::Pass& pass = model_.pass;
    first_ = feed_;
    first_begin_ = done_;
    int row = 0, sequence = 0;
    while (feed_ < feeds_.size() && row < model_.rows) {
      const InnerFeed& feed = feeds_[feed_];
      const int take = std::min(int(feed.tokens.size()) - done_, model_.rows - row);
      for (int i = 0; i < take; ++i) {
        const auto at = std::size_t(row + i);
        pass.tokens[at] = feed.tokens[std::size_t(done_ + i)];
        pass.positions[at] = feed.session->position() + done_ + i;
        pass.sequences[at] = sequence;
      }
      if (take > 0) pass.caches[std::size_t(sequence++)] = feed.session->pages.get();
      row += take;
      done_ += take;
      if (done_ == int(feed.tokens.size())) {
        ++feed_;
        done_ = 0;
      }
    }
    const auto n = std::size_t(row);
    rows_ = {{pass.tokens.data(), n},
             {pass.positions.data(), n},
             {pass.sequences.data(), n},
             {pass.caches.data(), std::size_t(sequence)}};
  }

  const Rows& rows() const { return rows_; }

  template <typename F>
  void for_each_slice(F&& f) const {
    int row = 0, begin = first_begin_;
    for (std::size_t i = first_; i < feeds_.size() && row < rows_.count(); ++i) {
      const int end = std::min(int(feeds_[i].tokens.size()), begin + rows_.count() - row);
      if (end > begin) f(Slice{i, begin, end, row});
      row += end - begin;
      begin = 0;
    }
  }

 private:
  std::span<const InnerFeed> feeds_;
  LoadedModel& model_;
  std::size_t feed_ = 0, first_ = 0;
  int done_ = 0, first_begin_ = 0;
  Rows rows_;
};

/// Scores tokens begin + 1 .. end (as far as there are any) of a feed from the logits of the rows
/// before them.
void score_slice(LoadedModel& model, const InnerFeed& feed, const PassCutter::Slice& slice) {
  const auto vocab = std::size_t(model.config.vocab);
  const int last =
      std::min(slice.end, int(feed.tokens.size()) - 1);  // rows [begin, last) have a successor
  int which[Backend::kLogitRows];
  for (int at = slice.begin; at < last; at += Backend::kLogitRows) {
    const int count = std::min(Backend::kLogitRows, last - at);
    for (int i = 0; i < count; ++i) which[i] = slice.row + at - slice.begin + i;
    const std::span<float> logits(model.pass.logits.data(), std::size_t(count) * vocab);
    model.backend->logits(*model.weights.norm, *model.weights.head, {which, std::size_t(count)},
                          logits);
    for (int i = 0; i < count; ++i) {
      const auto next = std::size_t(at + i + 1);
      feed.logprobs[next] =
          log_probability(logits.subspan(std::size_t(i) * vocab, vocab), feed.tokens[next]);
    }
  }
}

}  // namespace

float log_probability(std::span<const float> logits, TokenId token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += double(std::exp(logit - largest));
  return float(double(logits[std::size_t(token)]) - double(largest) - std::log(sum));
}

void check_feed(const SessionState& session, std::span<const TokenId> tokens) {
  const int vocab = session.loaded.config.vocab;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    require(tokens[i] >= 0 && tokens[i] < vocab, ErrorCode::invalid_argument,
            "token {} of {} is {}, expected 0 to {}", i, tokens.size(), tokens[i], vocab - 1);
  require(tokens.size() <= std::size_t(session.context - session.position()),
          ErrorCode::context_full, "{} tokens do not fit: the session holds {} and has room for {}",
          tokens.size(), session.position(), session.context);
}

void feed_sessions(std::span<const InnerFeed> feeds, Watch watch) {
  for (const InnerFeed& feed : feeds) watch.total += int(feed.tokens.size());
  if (watch.total == 0) return;
  LoadedModel& model = feeds.front().session->loaded;
  for (const InnerFeed& feed : feeds)
    if (!feed.logprobs.empty())
      feed.logprobs[0] =
          feed.session->has_logits ? log_probability(feed.session->logits, feed.tokens[0]) : 0.0f;
  for (PassCutter cutter(feeds, model); !cutter.done();) {
    model.pass.queue.lock([&] { watch.look(); });
    const std::unique_lock turn(model.pass.queue, std::adopt_lock);
    cutter.next();
    forward(*model.backend, model.weights, cutter.rows(), watch);
    cutter.for_each_slice([&](const PassCutter::Slice& slice) {
      const InnerFeed& feed = feeds[slice.feed];
      if (!feed.logprobs.empty()) score_slice(model, feed, slice);
      if (slice.end == int(feed.tokens.size())) {
        const int last = slice.row + slice.end - slice.begin - 1;
        model.backend->logits(*model.weights.norm, *model.weights.head, {&last, 1},
                              feed.session->next_logits);
      }
    });
    watch.done += cutter.rows().count();
  }
  if (watch.progress != nullptr && *watch.progress) (*watch.progress)(watch.total, watch.total);

  // Everything was computed: from here on nothing fails. What a failed feed wrote lies in the cache
  // behind position().
  for (const InnerFeed& feed : feeds) {
    if (feed.tokens.empty()) continue;
    SessionState& session = *feed.session;
    session.tokens.insert(session.tokens.end(), feed.tokens.begin(), feed.tokens.end());
    std::swap(session.logits, session.next_logits);
    session.has_logits = true;
    session.unfed.reset();
  }
}

void catch_up(std::span<const InnerFeed> feeds, const Watch& watch) {
  for (const InnerFeed& feed : feeds) {
    SessionState& session = *feed.session;
    if (!session.unfed) continue;
    const TokenId token = *session.unfed;
    check_feed(session, {&token, 1});
    const InnerFeed one{&session, {&token, 1}};
    feed_sessions({&one, 1}, {.cancel = watch.cancel});
  }
}

Session::Session(Model model, const SessionOptions& options) {
  require(options.context >= 1 && options.context <= (1 << 24), ErrorCode::invalid_argument,
          "SessionOptions::context is {}, expected 1 to {}", options.context, 1 << 24);
  LoadedModel& loaded = *model.loaded_;
  const auto vocab = std::size_t(loaded.config.vocab);
  const std::uint64_t wanted = loaded.backend->cache_bytes(loaded.config, options.context);
  const std::uint64_t free = loaded.backend->free_bytes();
  require(wanted <= free, ErrorCode::out_of_memory,
          "a session of {} tokens needs {} bytes on {}, {} are free", options.context, wanted,
          loaded.info.device, free);
  try {
    state_ =
        std::make_shared<SessionState>(SessionState(std::move(model), loaded, options.context));
    {
      const std::lock_guard turn(loaded.pass.queue);
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
  require(!state_->generating, ErrorCode::invalid_argument,
          "the session is in use by a generation");
  check_feed(*state_, tokens);
  std::vector<float> logprobs(tokens.size());
  const InnerFeed feed{state_.get(), tokens, logprobs};
  const Watch watch{.cancel = {&options.cancel, 1}, .progress = &options.progress};
  // The first score needs the logits before it; a rewind dropped them, so the last kept token is
  // computed again.
  if (!state_->has_logits && !state_->tokens.empty() && !state_->unfed) {
    state_->unfed = state_->tokens.back();
    state_->tokens.pop_back();
    try {
      catch_up({&feed, 1}, watch);
    } catch (...) {
      state_->tokens.push_back(*state_->unfed);
      state_->unfed.reset();
      throw;
    }
  }
  catch_up({&feed, 1}, watch);
  check_feed(*state_, tokens);
  feed_sessions({&feed, 1}, watch);
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
  require(!state_->generating, ErrorCode::invalid_argument,
          "the session is in use by a generation");
  require(position >= 0 && position <= state_->position(), ErrorCode::invalid_argument,
          "cannot rewind to position {}, expected 0 to {}", position, state_->position());
  state_->unfed.reset();
  if (position == state_->position()) return;
  state_->tokens.resize(std::size_t(position));
  state_->has_logits = false;
}

int Session::reuse(std::span<const TokenId> prompt) {
  const std::span<const TokenId> held = state_->tokens;
  const auto most = prompt.empty() ? 0 : std::min(held.size(), prompt.size() - 1);
  const auto [end, unused] =
      std::mismatch(held.begin(), held.begin() + std::ptrdiff_t(most), prompt.begin());
  rewind(int(end - held.begin()));
  return state_->position();
}

void feed(std::span<const Feed> feeds, const FeedOptions& options) {
  // One feed, as in every step of a chat, needs no list on the heap.
  InnerFeed one{};
  std::vector<InnerFeed> many(feeds.size() > 1 ? feeds.size() : 0);
  const std::span<InnerFeed> inner =
      feeds.size() > 1 ? std::span(many) : std::span(&one, feeds.size());
  for (std::size_t i = 0; i < feeds.size(); ++i) {
    require(feeds[i].session != nullptr && feeds[i].session->state_ != nullptr,
            ErrorCode::invalid_argument, "feed {} of {} has no session", i, feeds.size());
    SessionState& session = *feeds[i].session->state_;
    require(!session.generating, ErrorCode::invalid_argument,
            "feed {} of {}: the session is in use by a generation", i, feeds.size());
    require(&session.loaded == &feeds[0].session->state_->loaded, ErrorCode::invalid_argument,
            "feed {} of {} has another model than the first", i, feeds.size());
    for (std::size_t j = 0; j < i; ++j)
      require(inner[j].session != &session, ErrorCode::invalid_argument,
              "feeds {} and {} have the same session", j, i);
    check_feed(session, feeds[i].tokens);
    inner[i] = {&session, feeds[i].tokens};
  }
  if (inner.empty()) return;
  const Watch watch{.cancel = {&options.cancel, 1}, .progress = &options.progress};
  catch_up(inner, watch);
  for (const InnerFeed& feed : inner) check_feed(*feed.session, feed.tokens);
  feed_sessions(inner, watch);
}

}  // namespace guanaco
