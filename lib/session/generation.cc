#include <algorithm>
#include <exception>
#include <optional>

#include <guanaco/session.h>
#include <guanaco/stream.h>

#include "session/run_ahead.h"
#include "session/session_state.h"
#include "support/check.h"

namespace guanaco {

struct GenerationState {
  GenerationState(std::shared_ptr<SessionState> session_in, Sampler sampler_in,
                  GenerateOptions options_in, std::span<const TokenId> prompt_in)
      : session(std::move(session_in)),
        sampler(std::move(sampler_in)),
        options(std::move(options_in)),
        stream({options.stops, options.drop_leading_space, options.trim_before_stop}),
        pending(prompt_in.begin(), prompt_in.end()) {
    if (session->unfed) pending.insert(pending.begin(), *session->unfed);
  }

  std::shared_ptr<SessionState> session;
  Sampler sampler;
  GenerateOptions options;
  TextStream stream;
  std::vector<TokenId> pending;  ///< chosen or given, not fed yet: the prompt, later the last token
  Finish finish = Finish::none;
  int tokens = 0;              ///< of the reply
  bool prompt = true;          ///< pending is the prompt
  Claim claim;                 ///< to what the device chooses after pending
  std::optional<Piece> ready;  ///< computed, not handed out
  std::string text;            ///< what the ready piece shows

  /// What a step works on when this generation is its first: kept, so that a steady step allocates
  /// nothing.
  struct StepLists {
    std::vector<GenerationState*> all;
    std::vector<GenerationState*> waiting;  ///< those that need a pass
    std::vector<StepRow> rows;              ///< [waiting]
    std::vector<InnerFeed> feeds;
    std::vector<std::stop_token> cancel;
  } step_lists;

  ~GenerationState() {
    if (!prompt && !pending.empty()) session->unfed = pending.back();
    session->generating = false;
  }

  /// Ends the reply; what the stream held back becomes part of the ready piece, or one of its own.
  void end(Finish why) {
    finish = why;
    claim = {};
    if (why == Finish::stop_text) return;
    const std::string_view held = stream.finish();
    text += held;
    if (ready) {
      ready->text = text;
    } else if (!held.empty()) {
      ready = Piece{text, {}, -1, 0};
    }
  }

  /// True if a pass is needed before the next token; ends the reply where none is possible.
  bool wants_pass() {
    if (finish != Finish::none || ready) return false;
    text.clear();
    if (options.cancel.stop_requested()) {
      end(Finish::cancelled);
    } else if (pending.size() > std::size_t(session->context - session->position())) {
      end(Finish::context_full);
    }
    return finish == Finish::none;
  }

  StepRow step_row() {
    const int choices = session->loaded.choices();
    return {
        .session = session.get(),
        .claim = &claim,
        .token = pending.empty() ? -1 : pending.back(),
        .steady = !prompt && pending.size() == 1 && !SamplerAccess::penalises(sampler),
        .goes_on = tokens + 1 < options.max_tokens && session->position() + 2 <= session->context,
        .rule = SamplerAccess::rule(sampler, choices)};
  }

  /// Goes on with the choice that the device made, or makes one from the session's logits; what was
  /// pending has been fed.
  void choose() {
    if (claim.choice) {
      const Choice choice = *std::exchange(claim.choice, std::nullopt);
      session->tokens.push_back(pending.back());
      session->has_logits = false;
      pending.clear();
      if (choice.token < 0) claim = {};
      require(
          choice.token >= 0, ErrorCode::invalid_argument,
          "logits: expected numbers or -inf and at least one above -inf, so that a token can be "
          "chosen");
      SamplerAccess::drawn(sampler);
      show(choice.token, choice.logprob);
    } else {
      pending.clear();
      prompt = false;
      const std::span<const float> logits =
          std::span<const float>(session->logits).first(std::size_t(session->loaded.choices()));
      const TokenId token = sampler.sample(logits);
      show(token, log_probability(logits, token));
    }
  }

  /// Makes a piece of the chosen token, or ends the reply.
  void show(TokenId token, float logprob) {
    const LoadedModel& model = session->loaded;
    if (options.stop_at_end_of_text && token == model.end_of_text())
      return end(Finish::end_of_text);
    const std::string_view bytes =
        model.tokenizer ? model.tokenizer->piece(token) : std::string_view();
    text = stream.push(bytes);
    ready = Piece{text, bytes, token, logprob};
    pending.push_back(token);
    ++tokens;
    if (stream.stop()) {
      end(Finish::stop_text);
    } else if (tokens == options.max_tokens) {
      end(Finish::max_tokens);
    }
  }
};

Generation::Generation(std::unique_ptr<GenerationState> state) : state_(std::move(state)) {}
Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;
Generation::~Generation() = default;

Generation Session::generate(std::string_view prompt, Sampler sampler, GenerateOptions options) {
  check_unused(*state_);
  const Tokenizer& tokenizer = state_->model.tokenizer();
  const std::vector<TokenId> tokens =
      state_->position() == 0 ? tokenizer.encode(prompt) : tokenizer.encode_continuation(prompt);
  return generate(std::span<const TokenId>(tokens), std::move(sampler), std::move(options));
}

Generation Session::generate(std::span<const TokenId> prompt, Sampler sampler,
                             GenerateOptions options) {
  check_unused(*state_);
  require(options.max_tokens >= 1, ErrorCode::invalid_argument,
          "GenerateOptions::max_tokens is {}, expected 1 or more", options.max_tokens);
  require(!prompt.empty() || !state_->tokens.empty() || state_->unfed, ErrorCode::invalid_argument,
          "the prompt is empty and the session has nothing to go on from");
  check_feed(*state_, prompt);
  sampler.accept(state_->tokens);
  if (state_->unfed) sampler.accept({&*state_->unfed, 1});
  sampler.accept(prompt);
  auto state =
      std::make_unique<GenerationState>(state_, std::move(sampler), std::move(options), prompt);
  state_->generating = true;
  return Generation(std::move(state));
}

namespace {

/// Feeds those whose token the device does not choose.
void feed_the_rest(GenerationState::StepLists& lists,
                   const std::function<void(int, int)>* progress) {
  lists.feeds.clear();
  const Watch watch{.cancel = lists.cancel, .progress = progress};
  for (GenerationState* const self : lists.waiting) {
    if (self->claim.choice) continue;
    if (self->pending.empty()) restore_logits(*self->session, watch);
    lists.feeds.push_back({self->session.get(), self->pending});
  }
  feed_sessions(lists.feeds, watch);
}

/// Computes one token for each that needs one.
void compute_tokens(std::span<GenerationState* const> generations,
                    const std::function<void(int, int)>* progress) {
  GenerationState::StepLists& lists = generations.front()->step_lists;
  for (;;) {
    lists.waiting.clear();
    lists.rows.clear();
    lists.cancel.clear();
    for (GenerationState* const self : generations) {
      if (!self->wants_pass()) continue;
      lists.waiting.push_back(self);
      lists.rows.push_back(self->step_row());
      if (self->options.cancel.stop_possible()) lists.cancel.push_back(self->options.cancel);
    }
    if (lists.waiting.empty()) return;
    try {
      choose_on_device(lists.waiting.front()->session->loaded, lists.rows, lists.cancel);
      feed_the_rest(lists, progress);
      break;
    } catch (const Error& error) {
      // One of them was cancelled in mid-pass: it ends at the top of the loop, the others go on.
      if (error.code() != ErrorCode::cancelled ||
          std::ranges::none_of(lists.cancel, &std::stop_token::stop_requested))
        throw;
    }
  }
  std::exception_ptr failure;  // one that cannot choose does not keep the others from it
  for (GenerationState* const self : lists.waiting) try {
      self->choose();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

std::optional<Piece> Generation::next() {
  GenerationState* const self = state_.get();
  compute_tokens({&self, 1}, self->prompt ? &self->options.progress : nullptr);
  return std::exchange(self->ready, std::nullopt);
}

std::string Generation::rest() {
  std::string all;
  while (const std::optional<Piece> piece = next()) all += piece->text;
  return all;
}

Finish Generation::finish() const noexcept { return state_->finish; }
int Generation::tokens() const noexcept { return state_->tokens; }

void step(std::span<Generation* const> generations) {
  for (std::size_t i = 0; i < generations.size(); ++i) {
    require(generations[i] != nullptr && generations[i]->state_ != nullptr,
            ErrorCode::invalid_argument, "generation {} of {} is empty", i, generations.size());
    require(&generations[i]->state_->session->loaded == &generations[0]->state_->session->loaded,
            ErrorCode::invalid_argument, "generation {} of {} has another model than the first", i,
            generations.size());
    for (std::size_t j = 0; j < i;
         ++j)  // a session has one generation, so this covers sessions too
      require(generations[i] != generations[j], ErrorCode::invalid_argument,
              "generations {} and {} are the same", j, i);
  }

  if (generations.empty()) return;
  std::vector<GenerationState*>& all = generations[0]->state_->step_lists.all;
  all.clear();
  for (Generation* const generation : generations) all.push_back(generation->state_.get());
  compute_tokens(all, nullptr);
}

}  // namespace guanaco
