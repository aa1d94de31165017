// guanaco-bench: how fast a model reads prompts and decodes, as a share of what the machine can do.
//
//     guanaco-synth --shape 7b --layers 16 /tmp/7b && guanaco-bench --model /tmp/7b
//
// Decoding reads all weights for every token, so its yardstick is the memory's read bandwidth,
// measured before and after in the same process with the same threads. Token ids are arbitrary:
// speed does not depend on them.

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>
#include <nlohmann/json.hpp>

#include "support/bandwidth.h"
#include "support/program.h"
#include "support/progress.h"

namespace {

using namespace guanaco;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<TokenId> some_tokens(const Model& model, int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(3 + (i * 7919 + 11) % (model.info().vocab - 3));
  return tokens;
}

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

/// Seconds of one greedy step for `sessions` sessions that hold `depth` tokens each; median.
double step_seconds(const Model& model, int sessions, int depth, int steps) {
  std::vector<Session> all;
  std::vector<Generation> replies;
  std::vector<Generation*> pointers;
  for (int i = 0; i < sessions; ++i) all.emplace_back(model, SessionOptions{depth + steps + 4});
  for (Session& session : all)
    replies.push_back(session.generate(some_tokens(model, depth), Sampler({.temperature = 0}),
                                       {.max_tokens = steps + 3, .stop_at_end_of_text = false}));
  for (Generation& reply : replies) pointers.push_back(&reply);
  std::vector<double> times;
  for (int i = 0; i < steps + 2; ++i) {
    const auto start = Clock::now();
    step(pointers);
    for (Generation& reply : replies) reply.next();
    if (i >= 2) times.push_back(seconds_since(start));  // the first reads the prompts
  }
  return median(times);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures prompts and decoding of a model against the memory's bandwidth.",
               "guanaco-bench");
  support::ModelArguments arguments;
  support::add_model_option(app, arguments);
  support::add_device_options(app, arguments);
  int depth = 512, steps = 24;
  bool json = false;
  app.add_option("--depth", depth, "deepest context to decode at")
      ->check(support::in_range(16, 1 << 20))
      ->capture_default_str();
  app.add_option("--steps", steps, "decoding steps of a measurement")
      ->check(support::in_range(3, 10000))
      ->capture_default_str();
  app.add_flag("--json", json, "the table as JSON in the last line of stdout");

  return support::run_main(app, argc, argv, [&] {
    const Model model = support::load_model(app, arguments, [] { return false; });
    const ModelInfo& info = model.info();
    const auto ceiling = [&] {  // a GPU's memory is not measured
      return info.threads > 0 ? support::measure_read_bandwidth(info.threads) : 0.0;
    };

    nlohmann::json rows = nlohmann::json::array();
    support::Progress progress("measuring");
    constexpr int kMeasurements = 7;
    int done = 0;
    const auto report = [&] { progress.show(std::uint64_t(++done), kMeasurements); };
    double bandwidth = ceiling();
    const auto decode = [&](int sessions, int at) {
      const double seconds = step_seconds(model, sessions, at, steps);
      bandwidth = std::max(bandwidth, ceiling());
      const double bytes = double(info.bytes_per_token) +
                           double(info.kv_bytes_per_token) * sessions * (at + steps / 2.0);
      rows.push_back({{"what", fmt::format("decode, {} session{}, depth {}", sessions,
                                           sessions > 1 ? "s" : "", at)},
                      {"tokens_per_second", sessions / seconds},
                      {"bytes_per_second", bytes / seconds}});
      report();
      return sessions / seconds;
    };
    const auto prompt = [&](int length) {
      const double speed = length / prompt_seconds(model, length, 3);
      rows.push_back({{"what", fmt::format("prompt of {}", length)}, {"tokens_per_second", speed}});
      report();
      return speed;
    };
    const double decoding = decode(1, 1);
    decode(1, depth);
    decode(8, 128);
    prompt(16);
    const double reading = prompt(128);
    prompt(512);
    bandwidth = std::max(bandwidth, ceiling());
    report();
    progress.clear();

    fmt::print("{}, {:.2f} GB read for a token\n", info.device, double(info.bytes_per_token) / 1e9);
    if (bandwidth > 0)
      fmt::print("memory read bandwidth, best of {}: {:.1f} GB/s\n", 5, bandwidth / 1e9);
    for (auto& row : rows) {
      fmt::print("{:32} {:9.1f} tokens/s", row["what"].get<std::string>(),
                 row["tokens_per_second"].get<double>());
      if (row.contains("bytes_per_second")) {
        fmt::print("  {:7.1f} GB/s", row["bytes_per_second"].get<double>() / 1e9);
        if (bandwidth > 0) {
          row["share"] = row["bytes_per_second"].get<double>() / bandwidth;
          fmt::print("  {:3.0f} % of the bandwidth", 100 * row["share"].get<double>());
        }
      }
      fmt::print("\n");
    }
    fmt::print("a prompt of 128 runs at {:.1f} x the per-token speed of decoding\n",
               reading / decoding);
    if (json)
      fmt::print(
          "{}\n",
          nlohmann::json{{"device", info.device}, {"bandwidth", bandwidth}, {"rows", rows}}.dump());
    return int(support::kOk);
  });
}
