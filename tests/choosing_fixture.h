#pragma once

// A model whose device chooses tokens beside one whose host does, and what their replies show.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "choosing_backend.h"

namespace guanaco {

inline Model load() {
  return Model::load(GUANACO_MODEL, {.device = Device::cpu, .threads = 2, .rows = 32});
}

/// Where the host chooses.
inline const Model& host() {
  static const Model model = load();
  return model;
}

/// Where the device chooses; checks at its end that the backend was used as it may be.
class DeviceModel {
 public:
  DeviceModel() {
    LoadedModel& loaded = LoadedModel::of(model);
    auto choosing =
        std::make_unique<ChoosingBackend>(std::move(loaded.backend), loaded.config.vocab);
    backend = choosing.get();
    loaded.backend = std::move(choosing);
  }
  ~DeviceModel() {
    for (const std::string& breach : backend->breaches) FAIL_CHECK(breach);
  }

  Model model = load();
  ChoosingBackend* backend;
};

inline std::vector<TokenId> ids(std::string_view text) { return host().tokenizer().encode(text); }

inline constexpr std::string_view kPrompt =
    "### Human: What are the benefits of regular exercise? ### Assistant:";
inline constexpr std::string_view kPrompts[] = {kPrompt, "The king had three daughters, and",
                                                "Hello"};

/// All that a reply shows.
struct Reply {
  std::string text;
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  Finish finish = Finish::none;

  void take(const Piece& piece) {
    text += piece.text;
    tokens.push_back(piece.token);
    logprobs.push_back(piece.logprob);
  }
  bool operator==(const Reply&) const = default;
};

/// Up to `most` tokens of a generation.
inline Reply run(Generation& generation, int most = 1 << 20) {
  Reply reply;
  for (int i = 0; i < most; ++i) {
    const std::optional<Piece> piece = generation.next();
    if (!piece) break;
    reply.take(*piece);
  }
  reply.finish = generation.finish();
  return reply;
}

inline Reply reply_of(Session& session, std::string_view prompt, const Sampler& sampler,
                      const GenerateOptions& options, int most = 1 << 20) {
  Generation generation = session.generate(prompt, sampler, options);
  return run(generation, most);
}
inline Reply reply_of(const Model& model, std::string_view prompt, const Sampler& sampler,
                      const GenerateOptions& options) {
  Session session(model, {.context = 256});
  return reply_of(session, prompt, sampler, options);
}

/// What a session holds, seen from its position, its tokens and the scores of what follows.
struct Held {
  std::vector<TokenId> tokens;
  std::vector<float> scores, logits;
  bool operator==(const Held&) const = default;
};
inline Held held(Session& session) {
  Held held;
  held.tokens.assign(session.tokens().begin(), session.tokens().end());
  if (session.position() + 8 > session.context()) return held;  // no room for more
  held.scores = session.score(ids("and then"));
  held.logits.assign(session.logits().begin(), session.logits().end());
  return held;
}

inline const SamplerOptions kSamplings[] = {
    {.temperature = 0},
    {.temperature = 1, .top_p = 1},
    {.temperature = 0.8f, .top_k = 40, .top_p = 1},
    {.temperature = 0.9f, .top_p = 0.9f},
    {.temperature = 1.2f, .top_p = 1, .min_p = 0.05f},
    {.temperature = 0.7f, .top_k = 50, .top_p = 0.95f, .min_p = 0.02f},
};
inline Sampler sampler(SamplerOptions options, std::uint64_t seed) {
  options.seed = seed;
  return Sampler(options);
}
inline const Sampler kGreedy({.temperature = 0});

}  // namespace guanaco
