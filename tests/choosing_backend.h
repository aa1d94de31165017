#pragma once

#include <algorithm>
#include <deque>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "model/loaded_model.h"
#include "session/run_ahead.h"
#include "steady.h"

namespace guanaco {

/// Allocations are not counted while the backend below plays a device.
class Uncounted {
 public:
  Uncounted() : before_(std::exchange(counting, false)) {}
  ~Uncounted() { counting = before_; }

 private:
  bool before_;
};

/// The CPU backend, with choices as a GPU makes them: what choose() chose is told only by chosen(),
/// and rows of chosen tokens are filled in here. Notes every breach of Backend's contract.
class ChoosingBackend : public Backend {
 public:
  ChoosingBackend(std::unique_ptr<Backend> cpu, int vocab)
      : cpu_(std::move(cpu)), vocab_(std::size_t(vocab)) {}

  // What happened.
  int passes = 0;                       ///< begun
  int rows_chosen = 0;                  ///< for which a token was chosen
  int ran_ahead = 0;                    ///< choose() while the choices before were not collected
  int logits_calls = 0;                 ///< without those that choose() makes
  int ended = 0;                        ///< end_pass()
  mutable std::vector<int> asked_rows;  ///< rows_of_pass()
  std::vector<std::string> breaches;

  // What is to happen.
  int most_rows = 8;
  int pass_rows = 1 << 20;  ///< most of a pass
  int fail_pass_in = -1;    ///< the pass after so many more fails
  int fail_chosen_in = -1;  ///< chosen() after so many more fails
  bool spoilt = false;      ///< logits have a NaN

  std::string description() const override { return cpu_->description(); }
  bool is_host() const override { return cpu_->is_host(); }
  int threads() const override { return cpu_->threads(); }
  std::uint64_t linear_bytes(std::span<const Linear> parts) const override {
    return cpu_->linear_bytes(parts);
  }
  std::uint64_t table_bytes(const StoredTensor& table) const override {
    return cpu_->table_bytes(table);
  }
  std::uint64_t norm_bytes(const LlamaConfig& config) const override {
    return cpu_->norm_bytes(config);
  }
  std::uint64_t scratch_bytes(const LlamaConfig& config, int rows) const override {
    return cpu_->scratch_bytes(config, rows);
  }
  std::uint64_t cache_bytes(const LlamaConfig& config, int tokens) const override {
    return cpu_->cache_bytes(config, tokens);
  }
  std::uint64_t loading_bytes(const Checkpoint& checkpoint) const override {
    return cpu_->loading_bytes(checkpoint);
  }
  std::uint64_t free_bytes() const override { return cpu_->free_bytes(); }
  void reserve(const LlamaConfig& config, int rows) override { cpu_->reserve(config, rows); }
  Weight load_linear(std::span<const Linear> parts) override { return cpu_->load_linear(parts); }
  Weight load_norm(const StoredTensor& norm) override { return cpu_->load_norm(norm); }
  Weight load_table(const StoredTensor& table) override { return cpu_->load_table(table); }
  std::unique_ptr<KvPages> make_pages(const LlamaConfig& config, int tokens) override {
    expect(open_.empty(), "make_pages() with a pass in flight");
    return cpu_->make_pages(config, tokens);
  }

  int rows_of_pass(int waiting) const override {
    asked_rows.push_back(waiting);
    return std::min(waiting, pass_rows);
  }

  void embed(const DeviceWeight& table, const Rows& rows) override {
    const Uncounted device;
    expect(rows.count() <= pass_rows, "a pass of more rows than the backend likes");
    if (fail_pass_in >= 0 && fail_pass_in-- == 0) fail("the device was lost");
    ++passes;
    tokens_.assign(rows.tokens.begin(), rows.tokens.end());
    if (rows.chosen) {
      expect(state_ == State::chosen, "rows of chosen tokens after a pass without choices");
      bool same = rows.tokens.size() == choices_.size() && positions_.size() == choices_.size();
      for (std::size_t i = 0; same && i < choices_.size(); ++i)
        same = rows.positions[i] == positions_[i] + 1 && cache_of(rows, i) == caches_[i];
      expect(same, "rows of chosen tokens that are not those of the pass before");
      for (std::size_t i = 0; same && i < choices_.size(); ++i)
        tokens_[i] = std::max(choices_[i].token, 0);
    } else {
      expect(open_.empty(), "a pass that knows its tokens before choices were collected");
    }
    expect(state_ != State::logits, "a pass was not ended");
    state_ = State::running;
    positions_.assign(rows.positions.begin(), rows.positions.end());
    caches_.clear();
    for (std::size_t i = 0; i < tokens_.size(); ++i) caches_.push_back(cache_of(rows, i));
    cpu_->embed(table, mine(rows));
  }
  void attention_input(const LayerWeights& layer, int index, const Rows& rows) override {
    cpu_->attention_input(layer, index, mine(rows));
  }
  void attend(int index, const Rows& rows) override { cpu_->attend(index, mine(rows)); }
  void attention_output(const LayerWeights& layer, const Rows& rows) override {
    cpu_->attention_output(layer, mine(rows));
  }
  void mlp_input(const LayerWeights& layer, const Rows& rows) override {
    cpu_->mlp_input(layer, mine(rows));
  }
  void mlp_output(const LayerWeights& layer, const Rows& rows) override {
    cpu_->mlp_output(layer, mine(rows));
  }
  void logits(const DeviceWeight& norm, const DeviceWeight& head, std::span<const int> which,
              std::span<float> out) override {
    ++logits_calls;
    expect(state_ == State::running || state_ == State::logits, "logits() outside a pass");
    expect(which.size() <= std::size_t(kLogitRows), "logits() of too many rows");
    state_ = State::logits;
    compute_logits(norm, head, which, out);
  }

  void end_pass() override {
    expect(state_ == State::running || state_ == State::logits, "end_pass() outside a pass");
    state_ = State::ended;
    ++ended;
  }
  int most_choices() const override { return most_rows; }
  unsigned choose(const DeviceWeight& norm, const DeviceWeight& head,
                  std::span<const ChoiceRule> rules) override {
    const Uncounted device;
    expect(state_ == State::running, "choose() outside a pass");
    expect(rules.size() == tokens_.size(), "choose() with rules for other rows");
    expect(open_.size() < std::size_t(kChoicesAhead), "too many open tickets");
    state_ = State::chosen;
    ran_ahead += !open_.empty();
    rows_chosen += int(rules.size());
    choices_.clear();
    for (std::size_t i = 0; i < rules.size(); ++i)
      choices_.push_back(choice(norm, head, int(i), rules[i]));
    open_.push_back({++ticket_, choices_});
    return ticket_;
  }
  void chosen(unsigned ticket, std::span<Choice> out) override {
    const Uncounted device;
    expect(!open_.empty() && open_.front().ticket == ticket, "chosen() of a ticket not open");
    expect(out.size() == open_.front().choices.size(), "chosen() into another number of rows");
    const Ticket done = std::move(open_.front());
    open_.pop_front();
    if (fail_chosen_in >= 0 && fail_chosen_in-- == 0) fail("the device was lost");
    std::copy(done.choices.begin(), done.choices.end(), out.begin());
  }

  std::vector<float> read(Activation activation, int rows) const override {
    return cpu_->read(activation, rows);
  }
  void write(Activation activation, std::span<const float> values) override {
    cpu_->write(activation, values);
  }

 private:
  struct Ticket {
    unsigned ticket;
    std::vector<Choice> choices;
  };
  enum class State { ended, running, logits, chosen };

  [[noreturn]] static void fail(const char* why) { throw Error(ErrorCode::device, why); }
  void expect(bool kept, const char* breach) {
    const Uncounted test;
    if (!kept) breaches.push_back(breach);
  }
  static KvPages* cache_of(const Rows& rows, std::size_t row) {
    return rows.caches[std::size_t(rows.sequences[row])];
  }
  Rows mine(Rows rows) const {
    rows.tokens = tokens_;
    rows.chosen = false;
    return rows;
  }
  void compute_logits(const DeviceWeight& norm, const DeviceWeight& head,
                      std::span<const int> which, std::span<float> out) {
    cpu_->logits(norm, head, which, out);
    if (spoilt) out[7] = std::numeric_limits<float>::quiet_NaN();
  }
  Choice choice(const DeviceWeight& norm, const DeviceWeight& head, int row,
                const ChoiceRule& rule) {
    std::vector<float> logits(vocab_);
    compute_logits(norm, head, {&row, 1}, logits);
    logits.resize(std::size_t(rule.choices));
    Sampler sampler({.temperature = rule.temperature,
                     .top_k = rule.top_k,
                     .top_p = rule.top_p,
                     .min_p = rule.min_p,
                     .seed = rule.seed});
    for (std::uint64_t i = 0; i < rule.draws; ++i) SamplerAccess::drawn(sampler);
    try {
      const TokenId token = sampler.sample(logits);
      return {token, log_probability(logits, token)};
    } catch (const Error&) {
      return {};
    }
  }

  std::unique_ptr<Backend> cpu_;
  std::size_t vocab_;
  State state_ = State::ended;
  std::vector<TokenId> tokens_;   ///< of the pass under way
  std::vector<int> positions_;    ///< of the last pass
  std::vector<KvPages*> caches_;  ///< of the last pass, by row
  std::vector<Choice> choices_;   ///< made last
  std::deque<Ticket> open_;
  unsigned ticket_ = 1000;
};

}  // namespace guanaco
