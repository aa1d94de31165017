#include "tokens.h"

#include <time.h>

#include <algorithm>
#include <chrono>

#include <fmt/format.h>
#include <guanaco/guanaco.h>

#include "first_token.h"
#include "support/bandwidth.h"
#include "support/check.h"
#include "support/progress.h"

namespace bench {
namespace {

using namespace guanaco;
using Clock = std::chrono::steady_clock;

constexpr int kWarmUp = 4;  ///< steps before those that are measured

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

/// Token ids are arbitrary: speed does not depend on them.
std::vector<TokenId> some_tokens(const Model& model, int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(3 + (i * 7919 + 11) % (model.info().vocab - 3));
  return tokens;
}

/// Sessions that hold `depth` tokens each and decode together.
class Decoding {
 public:
  Decoding(const Model& model, int sessions, int depth, int steps, const SamplerOptions& sampling)
      : model_(model), sampling_(sampling), steps_(steps) {
    for (int i = 0; i < sessions; ++i)
      sessions_.emplace_back(model, SessionOptions{depth + steps + kWarmUp + 4});
    const std::vector<TokenId> prompt = some_tokens(model, depth);
    std::vector<Feed> feeds;
    for (Session& session : sessions_) feeds.push_back({&session, prompt});
    if (depth > 0) feed(feeds);
    depth_ = depth;
  }

  /// Tokens in a session's cache in the middle of the steps.
  double mean_depth() const { return depth_ + kWarmUp + steps_ / 2.0; }

  /// Decodes from the same depth. A GPU's steps run into each other: what counts is their mean. A
  /// CPU may have other things to do in between: what counts is each.
  void run() {
    start();
    const bool each = model_.info().threads > 0;
    const double cpu = thread_seconds();
    const auto begin = Clock::now();
    for (int i = 0; i < steps_; ++i) {
      const auto step_begin = Clock::now();
      next();
      if (each) seconds_.push_back(seconds_since(step_begin));
    }
    if (!each) seconds_.push_back(seconds_since(begin) / steps_);
    cpu_.push_back((thread_seconds() - cpu) / steps_);
    replies_.clear();
  }

  /// Seconds of a step whose results were there before it began: what is left is the caller's work.
  double host_seconds() {
    start();
    const double wait = 2 * median(seconds_);
    std::vector<double> times;
    for (int i = 0; i < std::min(steps_, 24); ++i) {
      for (const auto since = Clock::now(); seconds_since(since) < wait;) {
      }
      const auto begin = Clock::now();
      next();
      times.push_back(seconds_since(begin));
    }
    replies_.clear();
    return median(times);
  }

  /// Of a step, of the clock and of the calling thread.
  double seconds() const { return median(seconds_); }
  double cpu_seconds() const { return median(cpu_); }

 private:
  void start() {
    const TokenId token = some_tokens(model_, 1)[0];
    for (Session& session : sessions_) {
      session.rewind(depth_);
      replies_.push_back(
          session.generate({&token, 1}, Sampler(sampling_),
                           {.max_tokens = steps_ + kWarmUp + 2, .stop_at_end_of_text = false}));
    }
    pointers_.clear();
    for (Generation& reply : replies_) pointers_.push_back(&reply);
    for (int i = 0; i < kWarmUp; ++i) next();
  }

  void next() {
    if (replies_.size() > 1) step(pointers_);
    for (Generation& reply : replies_) reply.next();
  }

  const Model& model_;
  SamplerOptions sampling_;
  int steps_, depth_ = 0;
  std::vector<Session> sessions_;
  std::vector<Generation> replies_;
  std::vector<Generation*> pointers_;
  std::vector<double> seconds_, cpu_;
};

/// Seconds to read a prompt into an empty session; median.
double prompt_seconds(const Model& model, int length, int repeats) {
  const std::vector<TokenId> prompt = some_tokens(model, length);
  Session session(model, {.context = length});
  std::vector<double> times;
  for (int i = 0; i <= repeats; ++i) {
    session.rewind(0);
    const auto start = Clock::now();
    session.feed(prompt);
    if (i > 0) times.push_back(seconds_since(start));  // the first touches the memory
  }
  return median(times);
}

/// Floating point operations of a prompt's matrix products and attention, with logits of its last
/// token.
double prompt_operations(const ModelInfo& info, double length) {
  const double width = double(info.heads) * info.head_dim, hidden = info.hidden;
  const double layer = hidden * (width + 2.0 * info.kv_heads * info.head_dim) + width * hidden +
                       3 * hidden * info.ffn;
  const double attention = 2 * length * (length + 1) * width;
  return info.layers * (2 * length * layer + attention) + 2 * hidden * info.vocab;
}

/// What is measured of a model, in order, with progress.
class Measuring {
 public:
  Measuring(const Model& model, Ceilings& ceilings, const TokenOptions& options,
            support::Progress& progress, std::vector<TokenRow>& rows)
      : model_(model), ceilings_(ceilings), options_(options), progress_(progress), rows_(rows) {}

  void run() {
    const ModelInfo& info = model_.info();
    const bool host = info.threads > 0;
    std::vector<int> depths = options_.depths;
    if (depths.empty()) depths = host ? std::vector{0, 512} : std::vector{0, 512, 2000};
    if (options_.depths.empty())
      std::erase_if(depths, [&](int depth) { return depth >= info.context; });
    for (const int depth : depths)
      require(depth < info.context, ErrorCode::invalid_argument,
              "--depth: {} does not fit, the model's context is {}", depth, info.context);
    std::vector<int> prompts = host ? std::vector{16, 128, 512} : std::vector{128, 512, 2048};
    std::erase_if(prompts, [&](int length) { return length > info.context; });
    if (options_.quick) prompts.resize(std::min<std::size_t>(prompts.size(), 2));
    total_ = depths.size() + 2 + prompts.size();

    for (const int depth : depths) decode(fmt::format("decode, depth {}", depth), 1, depth, 0);
    decode("decode, sampled", 1, 0, 0.7f);
    decode("decode, 8 sessions, depth 128", 8, 128, 0);
    for (const int length : prompts) prompt(length);
  }

 private:
  void decode(const std::string& what, int sessions, int depth, float temperature) {
    begin(what);
    Decoding decoding(model_, sessions, depth, options_.steps,
                      {.temperature = temperature, .top_p = temperature > 0 ? 0.9f : 1.0f});
    const bool host = model_.info().threads > 0;
    const int runs = host || options_.quick ? 1 : 5;
    for (int i = 0; i < runs; ++i) {
      look();
      decoding.run();
    }
    TokenRow row;
    row.what = what;
    row.sessions = row.tokens = sessions;
    row.depth = decoding.mean_depth();
    row.seconds = decoding.seconds();
    row.cpu = decoding.cpu_seconds();
    if (!host) row.host = decoding.host_seconds();
    row.bytes = double(model_.info().bytes_per_token) +
                double(model_.info().kv_bytes_per_token) * sessions * row.depth;
    if (host)
      ceilings_.read =
          std::max(ceilings_.read, support::measure_read_bandwidth(model_.info().threads));
    rows_.push_back(std::move(row));
  }

  void prompt(int length) {
    begin(fmt::format("prompt of {}", length));
    TokenRow row;
    row.what = fmt::format("prompt of {}", length);
    row.sessions = 0;
    row.tokens = length;
    row.seconds = prompt_seconds(model_, length, options_.quick ? 1 : 3);
    row.operations = prompt_operations(model_.info(), length);
    rows_.push_back(std::move(row));
  }

  void begin(const std::string& what) {
    look();
    progress_.show(done_++, total_, what);
  }
  void look() const {
    if (options_.interrupted()) throw Error(ErrorCode::cancelled, "interrupted");
  }

  const Model& model_;
  Ceilings& ceilings_;
  const TokenOptions& options_;
  support::Progress& progress_;
  std::vector<TokenRow>& rows_;
  std::uint64_t done_ = 0, total_ = 1;
};

}  // namespace

ModelRows measure_model(const std::filesystem::path& folder, const std::string& name,
                        Ceilings& ceilings, const TokenOptions& options) {
  Model::inspect(folder, options.model);  // says what is wrong with it, if anything is
  ModelRows result;
  result.name = name;
  support::Progress progress("tokens of " + name);
  const int starts = options.quick ? 1 : 3;
  std::vector<double> times;
  for (int i = 0; i <= starts; ++i) {
    progress.show(0, 1, "starting");
    const double seconds = first_token_seconds(folder, options.device, options.model.threads);
    if (i > 0) times.push_back(seconds);  // the first brings the file into the page cache
  }
  result.first_token = median(times);

  ModelOptions watched = options.model;
  watched.progress = [&](std::uint64_t done, std::uint64_t total) {
    progress.show(done, total, "loading");
    return !options.interrupted();
  };
  const auto start = Clock::now();
  const Model model = Model::load(folder, watched);
  result.load = seconds_since(start);
  result.info = model.info();
  Measuring(model, ceilings, options, progress, result.rows).run();
  return result;
}

ModelRows measure_shape(const std::string& shape, Ceilings& ceilings, const TokenOptions& options) {
  const TemporaryFolder folder;
  {
    support::Progress progress("writing " + shape);
    write_synthetic(folder.path(), named_shape(shape),
                    [&](std::uint64_t done, std::uint64_t total) {
                      progress.show(done, total);
                      return !options.interrupted();
                    });
  }
  return measure_model(folder.path(), shape, ceilings, options);
}

}  // namespace bench
