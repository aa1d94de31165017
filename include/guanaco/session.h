#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <guanaco/model.h>
#include <guanaco/sampler.h>

namespace guanaco {

class Generation;
struct Feed;
struct SessionState;  // what a Session and its Generation share; the library's own
struct GenerationState;

struct SessionOptions {
  int context = 2048;  ///< >= 1; tokens the session has room for, reserved at construction
};

/// How a long feed is watched and stopped.
struct FeedOptions {
  std::stop_token cancel = {};  ///< looked at before every layer; feed() then throws cancelled
  /// Tokens computed so far and in all, on the calling thread, at least once a layer and while it
  /// waits for others that use the Model. What would compute with a Model (a new Session, feed,
  /// score, next, step) throws invalid_argument in it. It must not change or destroy what the call
  /// uses, nor wait for a thread that uses the Model, and should be short: others wait behind it.
  std::function<void(int done, int total)> progress = {};
};

/// Why a generation ended.
enum class Finish { none, end_of_text, stop_text, max_tokens, context_full, cancelled };

struct GenerateOptions {
  int max_tokens = 512;  ///< >= 1; tokens of the reply at most
  std::vector<std::string> stops =
      {};                          ///< matched on text, across tokens; never part of the stream
  bool drop_leading_space = true;  ///< of the reply, if it begins with one
  bool trim_before_stop = true;    ///< drop the ASCII white space that stands before a stop text
  bool stop_at_end_of_text =
      true;  ///< end at the tokenizer's eos(); false: go on past it, for measuring
  std::stop_token cancel = {};  ///< looked at before every layer, in a long prompt too
  std::function<void(int done, int total)> progress =
      {};  ///< of the prompt, as in FeedOptions; not by step()
};

/// One conversation: the tokens so far and their key/value cache. Move-only; keeps its Model alive.
/// One thread at a time, any thread. Two sessions of one Model on two threads take turns pass by
/// pass; to go faster, give both to one feed() or step(). A call that throws leaves the session as
/// it was.
class Session {
 public:
  /// Reserves all memory the session will use. Throws invalid_argument, out_of_memory.
  explicit Session(Model model, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Appends tokens and computes the logits after the last one. Reads the weights ceil(n /
  /// ModelOptions::rows) times. Nothing happens for no tokens. Throws invalid_argument (an id
  /// outside the vocabulary), context_full, cancelled, device.
  void feed(std::span<const TokenId> tokens, const FeedOptions& options = {});

  /// Like feed(), and gives the natural log-probability of each token after all before it. The
  /// first token of an empty session is preceded by nothing and gets 0. Where logits() is empty the
  /// last token is computed again, since they are needed.
  std::vector<float> score(std::span<const TokenId> tokens, const FeedOptions& options = {});

  /// [vocab] unnormalised natural-log scores of the next token; empty before the first feed, after
  /// a rewind() that dropped tokens, and after a Generation whose tokens were chosen on a GPU,
  /// where their logits stay. After another Generation they are those that its last token was
  /// chosen from: feed() something first. Lives until the next call that is not const, or next().
  std::span<const float> logits() const noexcept;

  std::span<const TokenId> tokens() const noexcept;  ///< all that the cache holds
  int position() const noexcept;                     ///< tokens().size()
  int context() const noexcept;                      ///< as in SessionOptions
  const Model& model() const noexcept;

  /// Forgets all tokens from `position` on; no device work. Throws invalid_argument outside [0,
  /// position()].
  void rewind(int position);

  /// Rewinds to the longest common beginning of tokens() and `prompt`, short of the whole prompt,
  /// and returns its length: what need not be fed again. A chat renders its whole conversation
  /// every turn and feeds the rest.
  int reuse(std::span<const TokenId> prompt);

  /// Starts a reply. The prompt is appended: as the beginning of a text (bos() first) if the
  /// session is empty, else as its continuation. No device work happens before the first next().
  /// The Generation uses this session alone until it is destroyed; it stays valid if the session
  /// object is moved. An empty prompt goes on after the last token. Throws invalid_argument,
  /// context_full.
  Generation generate(std::string_view prompt, Sampler sampler, GenerateOptions options = {});
  Generation generate(std::span<const TokenId> prompt, Sampler sampler,
                      GenerateOptions options = {});

 private:
  friend void feed(std::span<const Feed>, const FeedOptions&);
  std::shared_ptr<SessionState> state_;
};

struct Feed {
  Session* session;
  std::span<const TokenId> tokens;
};

/// Feeds many sessions of one Model together, in as few passes over the weights as the device
/// likes. All or nothing: if it throws, every session is as before. Equal, bit for bit on the CPU,
/// to feeding each alone. Throws invalid_argument if sessions repeat or have different models, else
/// as Session::feed().
void feed(std::span<const Feed> feeds, const FeedOptions& options = {});

/// One token of a reply.
struct Piece {
  std::string_view
      text;  ///< whole code points that it releases, possibly none; until the next call
  std::string_view bytes;  ///< what the token itself stands for; lives as long as the model
  TokenId token;           ///< -1 in the last piece if that only releases text that was held back
  /// Natural log, before temperature and penalties, among the ids that may be chosen: those with a
  /// piece, where there is a tokenizer.
  float logprob;
};

/// Text, token by token. Move-only; one thread at a time with its Session. Without a tokenizer all
/// text is empty. The last token handed out is computed when something comes after it: the session
/// holds it once it is fed, scored or generated from again, and forgets it when it is rewound or
/// reused. A GPU may already compute the token after it, while the program works on this one.
class Generation {
 public:
  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;
  ~Generation();

  /// The next token, computed now unless step() did; nullopt once finish() is not none. A
  /// stop_token ends the generation with Finish::cancelled; the session is then as before this
  /// call. Throws device, and invalid_argument if the model's logits allow no choice.
  std::optional<Piece> next();

  /// Runs to the end and returns the whole text from here.
  std::string rest();

  Finish finish() const noexcept;
  int tokens() const noexcept;  ///< of the reply so far

 private:
  friend class Session;
  friend void step(std::span<Generation* const>);
  explicit Generation(std::unique_ptr<GenerationState> state);
  std::unique_ptr<GenerationState> state_;
};

/// Computes one token for each unfinished generation, in as few passes over the weights as the
/// device likes; the next() that follows hands it out. Prompts may still be unfed. A full
/// context or a cancel ends that generation, not the others. Throws invalid_argument if generations
/// repeat or have different models; and what next() throws, once all others have their token.
void step(std::span<Generation* const> generations);

}  // namespace guanaco
