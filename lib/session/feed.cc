#include <algorithm>
#include <cmath>

#include <guanaco/session.h>

#include "session/session_state.h"
#include "support/check.h"

namespace guanaco {
namespace {

/// Cuts feeds into passes of as many rows as the backend likes and the model has room for: first
/// comes first, a sequence's rows stay together.
class PassCutter {
 public:
  PassCutter(std::span<const InnerFeed> feeds, LoadedModel& model) : feeds_(feeds), model_(model) {}

  /// One sequence's share of the pass: rows [begin, end) of feeds[feed], those of the pass from
  /// `row` on.
  struct Slice {
    std::size_t feed;
    int begin, end, row;
  };

  /// True when all feeds are used up.
  bool done() const {
    for (std::size_t i = feed_; i < feeds_.size(); ++i)
      if (feeds_[i].rows() > 0) return false;
    return true;
  }

  /// Fills the model's pass with the next rows.
  void next() {
    LoadedModel::Pass& pass = model_.pass;
    first_ = feed_;
    first_begin_ = done_;
    const int most = model_.backend->rows_of_pass(std::min(waiting(), model_.rows));
    int row = 0, sequence = 0;
    while (feed_ < feeds_.size() && row < most) {
      const InnerFeed& feed = feeds_[feed_];
      const int take = std::min(feed.rows() - done_, most - row);
      for (int i = 0; i < take; ++i) {
        const auto at = std::size_t(row + i);
        pass.tokens[at] = feed.token(done_ + i);
        pass.positions[at] = feed.session->position() + done_ + i;
        pass.sequences[at] = sequence;
      }
      if (take > 0) pass.caches[std::size_t(sequence++)] = feed.session->pages.get();
      row += take;
      done_ += take;
      if (done_ == feed.rows()) {
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
      const int end = std::min(feeds_[i].rows(), begin + rows_.count() - row);
      if (end > begin) f(Slice{i, begin, end, row});
      row += end - begin;
      begin = 0;
    }
  }

 private:
  /// Rows of all passes to come, or enough of them.
  int waiting() const {
    int rows = -done_;
    for (std::size_t i = feed_; i < feeds_.size() && rows < model_.rows; ++i)
      rows += feeds_[i].rows();
    return rows;
  }

  std::span<const InnerFeed> feeds_;
  LoadedModel& model_;
  std::size_t feed_ = 0, first_ = 0;
  int done_ = 0, first_begin_ = 0;
  Rows rows_;
};

/// Gathers the rows of a pass that end a feed and reads their logits, many at a time, into the
/// sessions' next_logits.
class LastRows {
 public:
  explicit LastRows(LoadedModel& model) : model_(model) {}

  void add(int row, SessionState& session) {
    if (count_ == Backend::kLogitRows) read();
    rows_[count_] = row;
    sessions_[count_++] = &session;
  }

  void read() {
    if (count_ == 0) return;
    const auto vocab = std::size_t(model_.config.vocab), n = std::size_t(count_);
    const std::span<float> logits = n == 1 ? std::span(sessions_[0]->next_logits)
                                           : std::span(model_.pass.logits).first(n * vocab);
    model_.backend->logits(*model_.weights.norm, *model_.weights.head, {rows_, n}, logits);
    for (std::size_t i = 0; n > 1 && i < n; ++i)
      std::ranges::copy(logits.subspan(i * vocab, vocab), sessions_[i]->next_logits.begin());
    count_ = 0;
  }

 private:
  LoadedModel& model_;
  int count_ = 0;
  int rows_[Backend::kLogitRows];
  SessionState* sessions_[Backend::kLogitRows];
};

/// Scores the tokens of rows begin + 1 .. end (as far as there are any) of a feed from the logits
/// of the rows before them.
void score_slice(LoadedModel& model, const InnerFeed& feed, const PassCutter::Slice& slice) {
  const auto vocab = std::size_t(model.config.vocab);
  const int last = std::min(slice.end, feed.rows() - 1);  // rows [begin, last) have a successor
  int which[Backend::kLogitRows];
  for (int at = slice.begin; at < last; at += Backend::kLogitRows) {
    const int count = std::min(Backend::kLogitRows, last - at);
    for (int i = 0; i < count; ++i) which[i] = slice.row + at - slice.begin + i;
    const std::span<float> logits(model.pass.logits.data(), std::size_t(count) * vocab);
    model.backend->logits(*model.weights.norm, *model.weights.head, {which, std::size_t(count)},
                          logits);
    for (int i = 0; i < count; ++i) {
      const auto next = std::size_t(at + i + 1 - int(feed.before.has_value()));
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

void check_unused(const SessionState& session) {
  require(!session.generating, ErrorCode::invalid_argument,
          "the session is in use by a generation: free that first");
}

void check_feed(const SessionState& session, std::span<const TokenId> tokens) {
  const int vocab = session.loaded.config.vocab;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    require(tokens[i] >= 0 && tokens[i] < vocab, ErrorCode::invalid_argument,
            "token {} of {} is {}, expected 0 to {}", i, tokens.size(), tokens[i], vocab - 1);
  const int held = session.position() + int(session.unfed.has_value());
  require(tokens.empty() || std::int64_t(tokens.size()) <= session.context - held,
          ErrorCode::context_full, "{} tokens do not fit: the session holds {} and has room for {}",
          tokens.size(), held, session.context);
}

void feed_sessions(std::span<const InnerFeed> feeds, Watch watch) {
  for (const InnerFeed& feed : feeds) watch.total += feed.rows();
  if (watch.total == 0) return;
  LoadedModel& model = feeds.front().session->loaded;
  for (const InnerFeed& feed : feeds)
    if (!feed.logprobs.empty() && !feed.before)
      feed.logprobs[0] =
          feed.session->has_logits ? log_probability(feed.session->logits, feed.tokens[0]) : 0.0f;
  for (PassCutter cutter(feeds, model); !cutter.done();) {
    model.pass.queue.lock([&] { watch.report(0); });
    const std::unique_lock turn(model.pass.queue, std::adopt_lock);
    model.pass.choosing.collect_all(*model.backend);
    cutter.next();
    forward(*model.backend, model.weights, cutter.rows(), watch);
    LastRows last_rows(model);
    cutter.for_each_slice([&](const PassCutter::Slice& slice) {
      const InnerFeed& feed = feeds[slice.feed];
      if (slice.end == feed.rows())
        last_rows.add(slice.row + slice.end - slice.begin - 1, *feed.session);
    });
    last_rows.read();
    cutter.for_each_slice([&](const PassCutter::Slice& slice) {
      const InnerFeed& feed = feeds[slice.feed];
      if (!feed.logprobs.empty()) score_slice(model, feed, slice);
    });
    model.backend->end_pass();
    watch.done += cutter.rows().count();
    watch.report(0);  // within the turn: no callback may start a pass that overtakes this feed
  }

  // Everything was computed: from here on nothing fails. What a failed feed wrote lies in the cache
  // behind position().
  for (const InnerFeed& feed : feeds) {
    if (feed.rows() == 0) continue;
    SessionState& session = *feed.session;
    if (feed.before) session.tokens.push_back(*feed.before);
    session.tokens.insert(session.tokens.end(), feed.tokens.begin(), feed.tokens.end());
    std::swap(session.logits, session.next_logits);
    session.has_logits = true;
    session.unfed.reset();
  }
}

void restore_logits(SessionState& session, const Watch& watch) {
  if (session.has_logits || session.tokens.empty()) return;
  const TokenId last = session.tokens.back();
  session.tokens.pop_back();
  const InnerFeed one{&session, {&last, 1}};
  try {
    feed_sessions({&one, 1}, watch);
  } catch (...) {
    session.tokens.push_back(last);
    throw;
  }
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
    const auto check = [&](auto&& what) {  // and say which of them it was
      try {
        what();
      } catch (const Error& error) {
        if (feeds.size() == 1) throw;
        fail(error.code(), "feed {} of {}: {}", i, feeds.size(), error.what());
      }
    };
    check([&] { check_unused(session); });
    require(&session.loaded == &feeds[0].session->state_->loaded, ErrorCode::invalid_argument,
            "feed {} of {} has another model than the first", i, feeds.size());
    for (std::size_t j = 0; j < i; ++j)
      require(inner[j].session != &session, ErrorCode::invalid_argument,
              "feeds {} and {} have the same session", j, i);
    check([&] { check_feed(session, feeds[i].tokens); });
    inner[i] = {.session = &session, .tokens = feeds[i].tokens};
    if (!feeds[i].tokens.empty()) inner[i].before = session.unfed;
  }
  if (inner.empty()) return;
  feed_sessions(inner, {.cancel = {&options.cancel, 1}, .progress = &options.progress});
}

}  // namespace guanaco
