#pragma once

#include <chrono>

#include <guanaco/model.h>

namespace support {

/// How fast one reply went. The first token is the prompt's work, every later one a decoding step.
class Speed {
 public:
  /// Before the generation's first next(), with the tokens it has to feed behind those the session
  /// already holds.
  void start(int held, int prompt_tokens);

  /// After every next() that gave a token.
  void token();

  /// Tokens a second, and the share of the memory bandwidth that decoding reached, on stderr.
  /// Measures the bandwidth, once.
  void print(const guanaco::Model& model);

 private:
  using Clock = std::chrono::steady_clock;

  int held_ = 0, prompt_tokens_ = 0, tokens_ = 0;
  Clock::time_point start_, first_, last_;
  double bandwidth_ = 0;  ///< bytes a second; 0 = not measured yet
};

}  // namespace support
