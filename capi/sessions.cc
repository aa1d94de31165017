// Sampler, session and generation.

#include <algorithm>

#include "handles.h"

using namespace guanaco::capi;
using guanaco::ErrorCode;
using guanaco::Finish;
using guanaco::Generation;
using guanaco::Sampler;

static_assert(int(Finish::none) == GUANACO_FINISH_NONE &&
              int(Finish::end_of_text) == GUANACO_FINISH_END_OF_TEXT &&
              int(Finish::stop_text) == GUANACO_FINISH_STOP_TEXT &&
              int(Finish::max_tokens) == GUANACO_FINISH_MAX_TOKENS &&
              int(Finish::context_full) == GUANACO_FINISH_CONTEXT_FULL &&
              int(Finish::cancelled) == GUANACO_FINISH_CANCELLED);

namespace {

/// Starts a reply to a prompt, which is text or tokens.
template <typename Prompt>
guanaco_status start(guanaco_session* session, const guanaco_sampler* sampler, Prompt prompt,
                     const guanaco_options* options, guanaco_generation** out) {
  const guanaco_options& chosen = options_or_defaults(options);
  std::stop_source stop;
  guanaco::GenerateOptions generate = chosen.generate;
  generate.drop_leading_space = chosen.drop_leading_space.value_or(true);
  generate.cancel = stop.get_token();
  generate.progress = prompt_progress(chosen, stop);
  Generation reply =
      need(session, "session")
          .session.generate(prompt, sampler != nullptr ? sampler->sampler : Sampler(chosen.sampler),
                            std::move(generate));
  *out = new guanaco_generation{std::move(stop), std::move(reply)};
  return GUANACO_OK;
}

}  // namespace

guanaco_status guanaco_sampler_new(const guanaco_options* options, guanaco_sampler** out,
                                   guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_sampler{Sampler(options_or_defaults(options).sampler)};
    return GUANACO_OK;
  });
}
guanaco_status guanaco_sampler_copy(const guanaco_sampler* sampler, guanaco_sampler** out,
                                    guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_sampler(need(sampler, "sampler"));
    return GUANACO_OK;
  });
}
void guanaco_sampler_free(guanaco_sampler* sampler) { delete sampler; }

guanaco_status guanaco_sampler_sample(guanaco_sampler* sampler, const float* logits, size_t count,
                                      int32_t* token, guanaco_error* error) {
  if (token != nullptr) *token = 0;
  return guard(error, [&] {
    need(token, "token");
    *token = need(sampler, "sampler").sampler.sample(span_of(logits, count, "logits"));
    return GUANACO_OK;
  });
}
guanaco_status guanaco_sampler_accept(guanaco_sampler* sampler, const int32_t* tokens, size_t count,
                                      guanaco_error* error) {
  return guard(error, [&] {
    need(sampler, "sampler").sampler.accept(span_of(tokens, count, "tokens"));
    return GUANACO_OK;
  });
}

guanaco_status guanaco_session_new(const guanaco_model* model, const guanaco_options* options,
                                   guanaco_session** out, guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_session{
        guanaco::Session(need(model, "model").model, options_or_defaults(options).session)};
    return GUANACO_OK;
  });
}
void guanaco_session_free(guanaco_session* session) { delete session; }

guanaco_status guanaco_session_feed(guanaco_session* session, const int32_t* tokens, size_t count,
                                    const guanaco_options* options, guanaco_error* error) {
  return guard(error, [&] {
    need(session, "session")
        .session.feed(span_of(tokens, count, "tokens"),
                      feed_options(options_or_defaults(options), std::stop_source()));
    return GUANACO_OK;
  });
}

guanaco_status guanaco_session_feed_many(guanaco_session* const* sessions,
                                         const int32_t* const* tokens, const size_t* counts,
                                         size_t count, const guanaco_options* options,
                                         guanaco_error* error) {
  return guard(error, [&] {
    span_of(sessions, count, "sessions");
    span_of(tokens, count, "tokens");
    span_of(counts, count, "counts");
    std::vector<guanaco::Feed> feeds;
    feeds.reserve(count);
    for (size_t i = 0; i < count; ++i)
      feeds.push_back({&need(sessions[i], "sessions[...]").session,
                       span_of(tokens[i], counts[i], "tokens[...]")});
    guanaco::feed(feeds, feed_options(options_or_defaults(options), std::stop_source()));
    return GUANACO_OK;
  });
}

guanaco_status guanaco_session_score(guanaco_session* session, const int32_t* tokens, size_t count,
                                     float* logprobs, const guanaco_options* options,
                                     guanaco_error* error) {
  if (logprobs != nullptr) std::fill_n(logprobs, count, 0.0f);
  return guard(error, [&] {
    span_of(logprobs, count, "logprobs");
    const std::vector<float> scores =
        need(session, "session")
            .session.score(span_of(tokens, count, "tokens"),
                           feed_options(options_or_defaults(options), std::stop_source()));
    std::copy(scores.begin(), scores.end(), logprobs);
    return GUANACO_OK;
  });
}

const float* guanaco_session_logits(const guanaco_session* session, size_t* count) {
  const std::span<const float> logits =
      session != nullptr ? session->session.logits() : std::span<const float>();
  if (count != nullptr) *count = logits.size();
  return logits.empty() ? nullptr : logits.data();
}
const int32_t* guanaco_session_tokens(const guanaco_session* session, size_t* count) {
  const std::span<const guanaco::TokenId> tokens =
      session != nullptr ? session->session.tokens() : std::span<const guanaco::TokenId>();
  if (count != nullptr) *count = tokens.size();
  return tokens.empty() ? nullptr : tokens.data();
}
int64_t guanaco_session_position(const guanaco_session* session) {
  return session != nullptr ? session->session.position() : -1;
}
int64_t guanaco_session_context(const guanaco_session* session) {
  return session != nullptr ? session->session.context() : -1;
}

guanaco_status guanaco_session_rewind(guanaco_session* session, int64_t position,
                                      guanaco_error* error) {
  return guard(error, [&] {
    guanaco::Session& of = need(session, "session").session;
    if (position != int(position))
      guanaco::fail(ErrorCode::invalid_argument, "position {}: must be 0 to {}", position,
                    of.position());
    of.rewind(int(position));
    return GUANACO_OK;
  });
}

guanaco_status guanaco_session_reuse(guanaco_session* session, const int32_t* tokens, size_t count,
                                     size_t* known, guanaco_error* error) {
  if (known != nullptr) *known = 0;
  return guard(error, [&] {
    need(known, "known");
    *known = size_t(need(session, "session").session.reuse(span_of(tokens, count, "tokens")));
    return GUANACO_OK;
  });
}

guanaco_status guanaco_generate(guanaco_session* session, const guanaco_sampler* sampler,
                                const char* prompt, size_t length, const guanaco_options* options,
                                guanaco_generation** out, guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    return start(session, sampler, text_of(prompt, length, "prompt"), options, out);
  });
}
guanaco_status guanaco_generate_tokens(guanaco_session* session, const guanaco_sampler* sampler,
                                       const int32_t* tokens, size_t count,
                                       const guanaco_options* options, guanaco_generation** out,
                                       guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    return start(session, sampler, span_of(tokens, count, "tokens"), options, out);
  });
}
void guanaco_generation_free(guanaco_generation* generation) { delete generation; }

guanaco_status guanaco_generation_next(guanaco_generation* generation, const char** text,
                                       size_t* length, int32_t* token, float* logprob,
                                       guanaco_error* error) {
  clear(text, length);
  if (token != nullptr) *token = 0;
  if (logprob != nullptr) *logprob = 0;
  return guard(error, [&]() -> guanaco_status {
    need(text, "text");
    need(length, "length");
    Generation& of = need(generation, "generation").generation;
    const std::optional<guanaco::Piece> piece = of.next();
    if (!piece) return of.finish() == Finish::cancelled ? GUANACO_CANCELLED : GUANACO_END;
    give(piece->text, text, length);
    if (token != nullptr) *token = piece->token;
    if (logprob != nullptr) *logprob = piece->logprob;
    return GUANACO_OK;
  });
}

guanaco_status guanaco_generation_step(guanaco_generation* const* generations, size_t count,
                                       guanaco_error* error) {
  return guard(error, [&] {
    span_of(generations, count, "generations");
    std::vector<Generation*> replies;
    replies.reserve(count);
    for (size_t i = 0; i < count; ++i)
      replies.push_back(&need(generations[i], "generations[...]").generation);
    guanaco::step(replies);
    return GUANACO_OK;
  });
}

int32_t guanaco_generation_finish(const guanaco_generation* generation) {
  return generation != nullptr ? int32_t(generation->generation.finish()) : GUANACO_FINISH_NONE;
}
int64_t guanaco_generation_tokens(const guanaco_generation* generation) {
  return generation != nullptr ? generation->generation.tokens() : 0;
}
void guanaco_generation_cancel(guanaco_generation* generation) {
  if (generation != nullptr) generation->stop.request_stop();
}
