#include <algorithm>
#include <exception>
#include <optional>

#include <guanaco/session.h>
#include <guanaco/stream.h>

#include "session/session_state.h"
#include "support/check.h"

namespace guanaco {

struct GenerationState {
  GenerationState(std::shared_ptr<SessionState> session_in, Sampler sampler_in,
                  GenerateOptions options_in, std::span<const TokenId> prompt_in)
      : session(std::move(session_in)),
        sampler(std::move(sampler_in)),
        options(std::move(options_in)),
        stream({options.stops, options.drop_leading_space}),
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
  std::optional<Piece> ready;  ///< computed, not handed out
  std::string text;            ///< what the ready piece shows

  /// What step() works on when this generation is its first: kept, so that a steady step allocates
  /// nothing.
  struct StepLists {
    std::vector<GenerationState*> waiting;
    std::vector<InnerFeed> feeds;
    std::vector<std::stop_token> cancel;
  } step_lists;

  ~GenerationState() {
    session->generating = false;
    if (!prompt && !pending.empty()) session->unfed = pending.back();
  }

  /// What was pending is in the session now.
  void fed() {
    pending.clear();
    prompt = false;
  }

  /// Ends the reply; what the stream held back becomes part of the ready piece, or one of its own.
  void end(Finish why) {
    finish = why;
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

  /// Chooses the next token from the session's logits.
  void choose() {
    const LoadedModel& model = session->loaded;
    const std::span<const float> logits = session->logits;
    const TokenId token = sampler.sample(logits.first(std::size_t(model.choices())));
    if (options.stop_at_end_of_text && token == model.end_of_text())
      return end(Finish::end_of_text);
    const std::string_view bytes =
        model.tokenizer ? model.tokenizer->piece(token) : std::string_view();
    text = stream.push(bytes);
    ready = Piece{text, bytes, token, log_probability(logits, token)};
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
  const Tokenizer& tokenizer = state_->model.tokenizer();
  const std::vector<TokenId> tokens =
      state_->position() == 0 ? tokenizer.encode(prompt) : tokenizer.encode_continuation(prompt);
  return generate(std::span<const TokenId>(tokens), std::move(sampler), std::move(options));
}

Generation Session::generate(std::span<const TokenId> prompt, Sampler sampler,
                             GenerateOptions options) {
  require(!state_->generating, ErrorCode::invalid_argument,
          "the session is in use by a generation");
  require(options.max_tokens >= 1, ErrorCode::invalid_argument,
          "GenerateOptions::max_tokens is {}, expected 1 or more", options.max_tokens);
  require(!prompt.empty() || state_->has_logits || state_->unfed, ErrorCode::invalid_argument,
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

std::optional<Piece> Generation::next() {
  GenerationState& self = *state_;
  if (self.wants_pass()) {
    if (!self.pending.empty()) {
      const InnerFeed feed{self.session.get(), self.pending};
      try {
        feed_sessions({&feed, 1}, {.cancel = {&self.options.cancel, 1},
                                   .progress = self.prompt ? &self.options.progress : nullptr});
      } catch (const Error& error) {
        if (error.code() != ErrorCode::cancelled) throw;
        self.end(Finish::cancelled);
      }
    }
    if (self.finish == Finish::none) {
      self.fed();
      self.choose();
    }
  }
  return std::exchange(self.ready, std::nullopt);
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
  auto& [waiting, feeds, cancel] = generations[0]->state_->step_lists;
  for (;;) {
    waiting.clear();
    feeds.clear();
    cancel.clear();
    for (Generation* const generation : generations) {
      GenerationState& self = *generation->state_;
      if (!self.wants_pass()) continue;
      waiting.push_back(&self);
      feeds.push_back({self.session.get(), self.pending});
      if (self.options.cancel.stop_possible()) cancel.push_back(self.options.cancel);
    }
    if (waiting.empty()) return;
    try {
      feed_sessions(feeds, {.cancel = cancel});
      break;
    } catch (const Error& error) {
      // One of them was cancelled in mid-pass: it ends at the top of the loop, the others are
      // computed anew.
      if (error.code() != ErrorCode::cancelled) throw;
    }
  }
  for (GenerationState* const self : waiting) self->fed();
  std::exception_ptr failure;  // one that cannot choose does not keep the others from it
  for (GenerationState* const self : waiting) try {
      self->choose();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace guanaco
