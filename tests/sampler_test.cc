// Sampling: the order and meaning of the filters, exact probabilities, seeds, penalties.
#include <doctest/doctest.h>
#include <guanaco/error.h>
#include <guanaco/sampler.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <string>

#include "steady.h"
#include "text/philox.h"

namespace guanaco {
namespace {

using Logits = std::vector<float>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Everything off: draws from softmax(logits).
SamplerOptions plain() { return {.temperature = 1, .top_p = 1}; }

Logits logs(const std::vector<double>& probabilities) {
  Logits logits;
  for (double p : probabilities) logits.push_back(float(std::log(p)));
  return logits;
}

Logits random_logits(std::size_t count, unsigned seed, float spread = 3) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  Logits logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

/// Whether `draws` draws agree with exact probabilities; a probability of 0 must not be drawn.
/// The seeds are fixed, so a right sampler passes always; 1 in 1000 wrong seeds would not.
void check_distribution(const SamplerOptions& options, const Logits& logits,
                        const std::vector<double>& probabilities, int draws = 20000) {
  Sampler sampler(options);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) ++counts[std::size_t(sampler.sample(logits))];
  double chi_square = 0;
  int cells = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    CAPTURE(i);
    if (probabilities[i] == 0) {
      CHECK(counts[i] == 0);
      continue;
    }
    const double expected = probabilities[i] * draws;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++cells;
  }
  const double freedom = cells - 1;  // the 0.999 quantile, by Wilson and Hilferty
  const double root = 1 - 2 / (9 * freedom) + 3.09 * std::sqrt(2 / (9 * freedom));
  if (freedom > 0) CHECK(chi_square < freedom * root * root * root);
}

std::string refusal(const SamplerOptions& options) {
  try {
    Sampler sampler(options);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return "accepted";
}

std::string refusal(const Logits& logits, const SamplerOptions& options) {
  Sampler sampler(options);
  try {
    sampler.sample(logits);
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::invalid_argument);
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("philox gives the known answers published with it") {
  using Four = std::array<std::uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
        Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("sampler: without filters tokens come as often as softmax says") {
  const std::vector<double> p = {0.4, 0.05, 0.2, 0.1, 0.15, 0.02, 0.05, 0.03};
  for (std::uint64_t seed : {1ull, 77ull, 0xffffffffffffffffull}) {
    auto options = plain();
    options.seed = seed;
    check_distribution(options, logs(p), p);
  }
}

TEST_CASE("sampler: temperature divides the logits") {
  const std::vector<double> p = {0.4, 0.05, 0.2, 0.1, 0.25};
  for (float temperature : {0.5f, 2.0f}) {
    std::vector<double> heated;
    double sum = 0;
    for (double x : p) sum += std::pow(x, 1 / temperature);
    for (double x : p) heated.push_back(std::pow(x, 1 / temperature) / sum);
    auto options = plain();
    options.temperature = temperature;
    check_distribution(options, logs(p), heated);
  }
}

TEST_CASE("sampler: each filter keeps what its definition says") {
  const Logits logits = logs({0.05, 0.4, 0.1, 0.25, 0.2});
  auto options = plain();
  options.top_k = 2;
  check_distribution(options, logits, {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
  options.top_k = 1;
  check_distribution(options, logits, {0, 1, 0, 0, 0}, 100);
  options.top_k = 99;
  check_distribution(options, logits, {0.05, 0.4, 0.1, 0.25, 0.2});
  options = plain();
  options.top_p = 0.7f;  // 0.4 + 0.25 falls short; the token that crosses stays
  check_distribution(options, logits, {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85});
  options.top_p = 1e-6f;  // one always stays
  check_distribution(options, logits, {0, 1, 0, 0, 0}, 100);
  options = plain();
  options.min_p = 0.45f;  // of 0.4: at least 0.18
  check_distribution(options, logits, {0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85});
  options.min_p = 1;
  check_distribution(options, logits, {0, 1, 0, 0, 0}, 100);
}

TEST_CASE("sampler: filters work in the documented order") {
  const Logits logits = logs({0.4, 0.3, 0.2, 0.1});
  auto options = plain();
  // top-k first: of 0.4 and 0.3 alone the likeliest has 0.571. Top-p first would keep three.
  options.top_k = 2;
  options.top_p = 0.55f;
  check_distribution(options, logits, {1, 0, 0, 0}, 200);
  options.top_p = 0.6f;
  check_distribution(options, logits, {0.4 / 0.7, 0.3 / 0.7, 0, 0});
  // Temperature before top-p: at 1/2 the likeliest has 0.16 / 0.30 = 0.533.
  options = plain();
  options.temperature = 0.5f;
  options.top_p = 0.53f;
  check_distribution(options, logits, {1, 0, 0, 0}, 200);
  // ... and before min-p: at 1/2 the second is (3/4)^2 = 0.5625 times as likely as the first.
  options = plain();
  options.temperature = 0.5f;
  options.min_p = 0.6f;
  check_distribution(options, logits, {1, 0, 0, 0}, 200);
  options.min_p = 0.55f;
  check_distribution(options, logits, {0.16 / 0.25, 0.09 / 0.25, 0, 0});
  // Penalties before top-k: the likeliest is pushed out by them.
  options = plain();
  options.top_k = 1;
  options.presence_penalty = 1;
  Sampler sampler(options);
  CHECK(sampler.sample(logits) == 0);
  CHECK(sampler.sample(logits) == 1);
}

TEST_CASE("sampler: a partly sorted large vocabulary draws as a fully sorted one") {
  for (float spread : {0.0f, 0.3f, 3.0f, 30.0f}) {
    const Logits logits = random_logits(5000, 3, spread);
    std::vector<std::pair<float, TokenId>> ranked;
    for (std::size_t i = 0; i < logits.size(); ++i) ranked.push_back({-logits[i], TokenId(i)});
    std::sort(ranked.begin(), ranked.end());  // descending, the lower id first on ties
    for (float top_p : {0.2f, 0.9f, 1.0f}) {
      for (int top_k : {0, 40, 700}) {
        auto options = plain();
        options.top_p = top_p;
        options.top_k = top_k;
        options.seed = 5;
        Sampler sampler(options);
        const std::size_t count = top_k > 0 ? std::size_t(top_k) : logits.size();
        const auto weight = [&](std::size_t i) {
          return std::exp(double(ranked[0].first) - double(ranked[i].first));
        };
        double all = 0, mass = 0;
        for (std::size_t i = 0; i < count; ++i) all += weight(i);
        std::size_t kept = 0;
        while (kept < count && (top_p == 1 || mass < double(top_p) * all)) mass += weight(kept++);
        for (std::uint64_t draw = 0; draw < 10; ++draw) {
          const double target = uniform(5, draw) * mass;
          std::size_t place = 0;
          for (double sum = weight(0); sum <= target && place + 1 < kept;) sum += weight(++place);
          CAPTURE(spread);
          CAPTURE(top_p);
          CAPTURE(top_k);
          CHECK(sampler.sample(logits) == ranked[place].second);
        }
      }
    }
  }
}

TEST_CASE("sampler: greedy takes the largest and the lowest id of equals") {
  Sampler sampler({.temperature = 0, .seed = 9});
  CHECK(sampler.sample(Logits{1, 3, 2, 3}) == 1);
  CHECK(sampler.sample(Logits{-kInfinity, -5, -kInfinity, -5}) == 1);
  CHECK(sampler.sample(Logits{7}) == 0);
  Sampler narrow({.temperature = 1, .top_k = 2, .top_p = 1});
  std::map<TokenId, int> seen;
  for (int i = 0; i < 100; ++i) ++seen[narrow.sample(Logits{1, 3, 3, 3, 3})];
  CHECK(seen.size() == 2);
  CHECK(seen.count(1) + seen.count(2) == 2);
}

TEST_CASE("sampler: penalties change the logits by hand computed amounts") {
  // Greedy, so each case shows on which side of a rival the penalised logit falls.
  const auto choice = [](SamplerOptions options, std::vector<TokenId> seen, const Logits& logits) {
    options.temperature = 0;
    Sampler sampler(options);
    sampler.accept(seen);
    return sampler.sample(logits);
  };
  SamplerOptions repetition{.repetition_penalty = 2};
  CHECK(choice(repetition, {0}, {4, 2.01f}) == 1);  // 4 / 2
  CHECK(choice(repetition, {0}, {4, 1.99f}) == 0);
  CHECK(choice(repetition, {0, 0, 0}, {4, 1.99f}) == 0);  // once, however often it was seen
  CHECK(choice(repetition, {0}, {-1, -1.99f}) == 1);      // -1 * 2
  CHECK(choice(repetition, {0}, {-1, -2.01f}) == 0);
  SamplerOptions frequency{.frequency_penalty = 0.5f};
  CHECK(choice(frequency, {0, 0, 0}, {2, 0.51f}) == 1);  // 2 - 3 * 0.5
  CHECK(choice(frequency, {0, 0, 0}, {2, 0.49f}) == 0);
  CHECK(choice({.frequency_penalty = -0.5f}, {1, 1}, {2, 1.01f}) == 1);  // a reward: 1.01 + 1
  SamplerOptions presence{.presence_penalty = 0.5f};
  CHECK(choice(presence, {0, 0, 0}, {2, 1.51f}) == 1);  // 2 - 0.5
  CHECK(choice(presence, {0, 0, 0}, {2, 1.49f}) == 0);
  SamplerOptions all{.repetition_penalty = 2, .frequency_penalty = 0.25f, .presence_penalty = 1};
  CHECK(choice(all, {0, 0}, {4, 0.51f}) == 1);  // 4 / 2 - 2 * 0.25 - 1
  CHECK(choice(all, {0, 0}, {4, 0.49f}) == 0);
  CHECK(choice(repetition, {0}, {-kInfinity, -9}) == 1);  // banned stays banned
  CHECK(choice({.repetition_penalty = 1e30f}, {0, 1}, {-1e30f, -1e31f}) == 0);  // nothing overflows
  CHECK(choice(repetition, {1000}, {4, 2.01f}) == 0);  // ids beyond the logits are harmless
}

TEST_CASE("sampler: penalties forget what has left the window") {
  SamplerOptions options{.temperature = 0, .presence_penalty = 1, .penalty_window = 3};
  Sampler sampler(options);
  const Logits logits = {1.5f, 1.4f, 1.3f, 1.2f, 0.1f};
  std::vector<TokenId> chosen;
  for (int i = 0; i < 9; ++i) chosen.push_back(sampler.sample(logits));
  CHECK(chosen == std::vector<TokenId>{0, 1, 2, 3, 0, 1, 2, 3, 0});
  Sampler prompted(options);
  prompted.accept(std::vector<TokenId>{0, 1, 1, 1});  // 0 has left, 1 fills the window
  CHECK(prompted.sample(logits) == 0);
  CHECK(prompted.sample(logits) == 2);
}

TEST_CASE("sampler: draws depend on the seed and their number alone") {
  const Logits a = random_logits(300, 1), b = random_logits(300, 2);
  const auto options = [](std::uint64_t seed) {
    return SamplerOptions{.temperature = 1, .top_k = 50, .top_p = 0.95f, .seed = seed};
  };
  std::vector<TokenId> alone, beside, other;
  Sampler first(options(7));
  for (int i = 0; i < 64; ++i) alone.push_back(first.sample(i % 2 ? a : b));
  Sampler second(options(7)), neighbour(options(8));
  for (int i = 0; i < 64; ++i) {
    for (int k = 0; k < i % 3; ++k) other.push_back(neighbour.sample(b));
    beside.push_back(second.sample(i % 2 ? a : b));
  }
  CHECK(alone == beside);
  other.clear();
  Sampler third(options(std::uint64_t(7) << 32));
  for (int i = 0; i < 64; ++i) other.push_back(third.sample(i % 2 ? a : b));
  CHECK(alone != other);
}

TEST_CASE("sampler: a copy goes on as the original would") {
  const Logits logits = random_logits(100, 4, 1);
  Sampler original({.temperature = 1, .frequency_penalty = 1, .penalty_window = 8, .seed = 3});
  for (int i = 0; i < 20; ++i) original.sample(logits);
  Sampler branch = original;
  std::vector<TokenId> left, right;
  for (int i = 0; i < 30; ++i) left.push_back(original.sample(logits));
  for (int i = 0; i < 30; ++i) right.push_back(branch.sample(logits));
  CHECK(left == right);
}

TEST_CASE("sampler: a refused call changes nothing") {
  const Logits logits = random_logits(50, 6, 1), nan = {1, NAN};
  const SamplerOptions options{.temperature = 1, .presence_penalty = 1, .seed = 2};
  Sampler calm(options), disturbed(options);
  for (int i = 0; i < 20; ++i) {
    CHECK_THROWS_AS(disturbed.sample(nan), Error);
    CHECK_THROWS_AS(disturbed.accept(std::vector<TokenId>{3, -1}), Error);
    CHECK(calm.sample(logits) == disturbed.sample(logits));
  }
}

TEST_CASE("sampler: extreme logits and temperatures still give a legal token") {
  for (float temperature : {1e-38f, 1e-3f, 1.0f, 1e38f}) {
    Sampler sampler({.temperature = temperature, .top_p = 1, .repetition_penalty = 1e-38f});
    for (int i = 0; i < 20; ++i) {
      const TokenId token =
          sampler.sample(Logits{-kInfinity, 3e38f, -3e38f, -kInfinity, 0, 1e-45f});
      CHECK((token == 1 || token == 2 || token >= 4));
    }
  }
}

TEST_CASE("sampler: no call after the first allocates") {
  const Logits logits = random_logits(32000, 8, 0.5f);  // flat: top-p keeps most of them
  const SamplerOptions shared{.repetition_penalty = 1.1f, .frequency_penalty = 0.1f};
  for (int window : {0, 16, 4096}) {
    for (float temperature : {0.0f, 0.7f}) {
      for (int top_k : {0, 40}) {
        SamplerOptions options = shared;
        options.temperature = temperature;
        options.top_k = top_k;
        options.penalty_window = window;
        Sampler sampler(options);
        sampler.sample(logits);
        const long before = allocations;
        for (int i = 0; i < 30; ++i) sampler.sample(logits);
        CHECK(allocations == before);
      }
    }
  }
}

TEST_CASE("sampler: an invalid option is refused with its name and range and the value found") {
  CHECK(refusal({.temperature = -1}) == "temperature: expected a number >= 0, found -1");
  CHECK(refusal({.temperature = NAN}) == "temperature: expected a number >= 0, found nan");
  CHECK(refusal({.temperature = kInfinity}) == "temperature: expected a number >= 0, found inf");
  CHECK(refusal({.top_k = -1}) == "top_k: expected a number >= 0, found -1");
  CHECK(refusal({.top_p = 0}) == "top_p: expected 0 < p <= 1, found 0");
  CHECK(refusal({.top_p = 1.5f}) == "top_p: expected 0 < p <= 1, found 1.5");
  CHECK(refusal({.top_p = NAN}) == "top_p: expected 0 < p <= 1, found nan");
  CHECK(refusal({.min_p = -0.5f}) == "min_p: expected 0 <= p <= 1, found -0.5");
  CHECK(refusal({.min_p = 2}) == "min_p: expected 0 <= p <= 1, found 2");
  CHECK(refusal({.repetition_penalty = 0}) == "repetition_penalty: expected a number > 0, found 0");
  CHECK(refusal({.frequency_penalty = kInfinity}) ==
        "frequency_penalty: expected a number, found inf");
  CHECK(refusal({.presence_penalty = NAN}) == "presence_penalty: expected a number, found nan");
  CHECK(refusal({.penalty_window = -3}) == "penalty_window: expected a number >= 0, found -3");
  CHECK(refusal(SamplerOptions{}) == "accepted");
}

TEST_CASE("sampler: logits that mean nothing are refused") {
  for (float temperature : {0.0f, 1.0f}) {
    const SamplerOptions options{.temperature = temperature};
    CHECK(refusal(Logits{}, options) == "logits: expected one for each token, found none");
    CHECK(refusal(Logits{1, NAN, 2}, options) ==
          "logits: expected numbers or -inf, found NaN for token 1");
    CHECK(refusal(Logits{1, -NAN}, options) ==
          "logits: expected numbers or -inf, found NaN for token 1");
    CHECK(refusal(Logits{1, 2, kInfinity}, options) ==
          "logits: expected numbers or -inf, found +inf for token 2");
    CHECK(refusal(Logits{-kInfinity, -kInfinity}, options) ==
          "logits: expected at least one above -inf, found all 2 tokens banned");
  }
  Sampler sampler;
  CHECK_THROWS_WITH_AS(sampler.accept(std::vector<TokenId>{1 << 24}),
                       "token: expected an id in [0, 16777216), found 16777216", Error);
}

}  // namespace guanaco
