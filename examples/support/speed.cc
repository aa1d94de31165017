#include "support/speed.h"

#include <fmt/format.h>

#include "support/bandwidth.h"

namespace support {

void Speed::start(int held, int prompt_tokens) {
  held_ = held;
  prompt_tokens_ = prompt_tokens;
  tokens_ = 0;
  start_ = Clock::now();
}

void Speed::token() {
  last_ = Clock::now();
  if (tokens_++ == 0) first_ = last_;
}

void Speed::print(const guanaco::Model& model) {
  if (tokens_ == 0) return;
  const auto seconds = [](Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  };
  const double prompt_seconds = seconds(first_ - start_);
  fmt::print(stderr, "prompt: {} tokens in {:.2f} s, {:.1f} tokens/s\n", prompt_tokens_,
             prompt_seconds, prompt_tokens_ / prompt_seconds);
  const int steps = tokens_ - 1;
  if (steps == 0) return;
  const double step_seconds = seconds(last_ - first_) / steps;

  // A step reads the weights once and the cache of every token before it.
  const guanaco::ModelInfo& info = model.info();
  const double mean_position = held_ + prompt_tokens_ + steps / 2.0;
  const double bytes = static_cast<double>(info.bytes_per_token) +
                       static_cast<double>(info.kv_bytes_per_token) * mean_position;
  const double rate = bytes / step_seconds;
  fmt::print(stderr, "reply: {} tokens in {:.2f} s, {:.1f} tokens/s, reading {:.1f} GB/s", tokens_,
             seconds(last_ - start_), 1 / step_seconds, rate / 1e9);
  if (info.threads > 0) {
    if (bandwidth_ == 0) bandwidth_ = measure_read_bandwidth(info.threads);
    fmt::print(stderr, ", {:.0f} % of the {:.1f} GB/s that {} thread{} can read",
               100 * rate / bandwidth_, bandwidth_ / 1e9, info.threads,
               info.threads == 1 ? "" : "s");
  }
  fmt::print(stderr, "\n");
}

}  // namespace support
