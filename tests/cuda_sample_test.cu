// Sampling on the device against lib/text/sampler.cc. Needs a GPU.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include <doctest/doctest.h>
#include <guanaco/sampler.h>

#include "cuda_fixture.h"
#include "kernels.h"

using namespace guanaco;
using namespace guanaco::cuda;

namespace {

constexpr int kRows = kStreamRows;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A pass of eight rows that ends in sampling, and the host's end of it.
struct Pass {
  int vocab;
  DeviceBuffer logits, scratch, tokens;
  PinnedBuffer sampled{kRows * sizeof(SampledToken), "a test"};
  SampleRows rows;
  DeviceLimits limits;
  unsigned step = 0;

  explicit Pass(int vocab)
      : vocab(vocab),
        logits(std::size_t(kRows) * vocab * sizeof(float), "a test"),
        scratch(sample_scratch_bytes(vocab, kRows), "a test"),
        tokens(kRows * sizeof(int), "a test") {
    check(cudaMemset(scratch.as<void>(), 0, scratch.bytes()), "cudaMemset");
    check(cudaMemset(tokens.as<void>(), 0xff, tokens.bytes()), "cudaMemset");
    std::fill_n(sampled.as<SampledToken>(), kRows, SampledToken{0, -2, 0});
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    limits.dependent_launch = major >= 9;
  }
  void set(const std::vector<SampleParameters>& values) {
    rows.count = int(values.size());
    std::copy(values.begin(), values.end(), rows.of);
  }
  void set(const std::vector<float>& values) {
    check(cudaMemcpy(logits.as<void>(), values.data(), values.size() * sizeof(float),
                     cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  void launch(cudaStream_t stream) {
    sample(logits.as<float>(), vocab, rows, step, tokens.as<int>(), sampled.as<SampledToken>(),
           scratch.as<void>(), limits, stream);
  }
  std::vector<SampledToken> run() {
    ++step;
    launch(nullptr);
    check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    const SampledToken* line = sampled.as<SampledToken>();
    for (int r = 0; r < rows.count; ++r)
      if (rows.of[r].temperature > 0 && line[r].token >= 0) ++rows.of[r].draws;
    return {line, line + kRows};
  }
};

SamplerOptions random_options(std::mt19937& random) {
  const auto pick = [&](auto... values) {
    const double all[] = {double(values)...};
    return all[random() % sizeof...(values)];
  };
  SamplerOptions options;
  options.temperature = float(pick(0, 0.1, 0.7, 0.7, 1, 1.5));
  options.top_p = float(pick(0.9, 0.9, 1, 0.5, 0.99, 1e-6));
  options.top_k = int(pick(0, 0, 1, 40, 1000, 100000));
  options.min_p = float(pick(0, 0, 0, 0.05, 1, 1e-4));
  options.seed = random();
  return options;
}

SampleParameters parameters_of(const SamplerOptions& options, int choices) {
  return {
      options.temperature, options.top_p, options.min_p, options.top_k, choices, options.seed, 0};
}

std::vector<float> random_logits(int count, std::mt19937& random) {
  const int shape = int(random() % 6);
  const float spread[] = {0.01f, 1.4f, 3, 6, 12, 3};
  std::normal_distribution<float> normal(0, spread[shape]);
  std::vector<float> logits(static_cast<std::size_t>(count));
  for (float& logit : logits) {
    logit = normal(random);
    if (shape == 5) logit = std::round(logit);  // ties, -0 too
    if (shape == 3 && random() % 3 == 0) logit = -kInfinity;
  }
  logits[random() % logits.size()] = shape == 4 ? 60.0f : 2.0f;
  return logits;
}

}  // namespace

TEST_CASE("the device samples the tokens that the host samples") {
  if (!has_device()) return;
  std::mt19937 random(1);
  int choices_made = 0, different = 0, wrong_rows = 0;
  double worst = 0;
  for (int vocab : {1, 7, 512, 513, 1000, 32000, 128256, 300000})
    for (int round = 0; round < (vocab > 32000 ? 8 : 60); ++round) {
      Pass pass(vocab);
      std::vector<Sampler> samplers;
      std::vector<SampleParameters> parameters;
      for (int r = 0; r < kRows; ++r) {
        samplers.emplace_back(random_options(random));
        parameters.push_back(parameters_of(samplers.back().options(), vocab));
      }
      pass.set(parameters);
      for (int step = 0; step < 4; ++step) {
        std::vector<float> logits;
        for (int r = 0; r < kRows; ++r) {
          const auto row = random_logits(vocab, random);
          logits.insert(logits.end(), row.begin(), row.end());
        }
        pass.set(logits);
        const auto sampled = pass.run();
        const auto tokens = download<int>(pass.tokens.as<void>(), kRows);
        for (int r = 0; r < kRows; ++r) {
          const std::span<const float> row(logits.data() + std::size_t(r) * vocab,
                                           std::size_t(vocab));
          const int expected = samplers[std::size_t(r)].sample(row);
          const SampledToken& found = sampled[std::size_t(r)];
          ++choices_made;
          different += found.token != expected;
          wrong_rows += found.step != pass.step || tokens[std::size_t(r)] != found.token;
          if (found.token < 0 || found.token >= vocab) continue;
          const double largest = *std::max_element(row.begin(), row.end());
          double sum = 0;
          for (float logit : row) sum += std::exp(logit - largest);
          const double logprob = row[std::size_t(found.token)] - largest - std::log(sum);
          worst =
              std::max(worst, std::abs(logprob - found.logprob) / std::max(1.0, std::abs(logprob)));
        }
      }
    }
  std::printf("sampling: %d of %d choices differ from the host's; log-probabilities within %.1e\n",
              different, choices_made, worst);
  CHECK(different == 0);
  CHECK(wrong_rows == 0);
  CHECK(worst < 1e-6);
}

TEST_CASE("draws on the device have the probabilities of the logits") {
  if (!has_device()) return;
  constexpr int kVocab = 12, kDraws = 4000;
  Pass pass(kVocab);
  std::vector<float> logits;
  std::vector<SampleParameters> parameters;
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVocab; ++i) logits.push_back(0.25f * float(i * 5 % kVocab));
    parameters.push_back({1.0f, 1.0f, 0, 0, kVocab - 2, std::uint64_t(r), 0});
  }
  pass.set(logits);
  pass.set(parameters);
  std::vector<int> seen(kVocab);
  for (int draw = 0; draw < kDraws; ++draw)
    for (const SampledToken& token : pass.run()) ++seen[std::size_t(token.token)];
  double sum = 0, chi = 0;
  for (int i = 0; i < kVocab - 2; ++i) sum += std::exp(logits[std::size_t(i)]);
  for (int i = 0; i < kVocab - 2; ++i) {
    const double expected = kDraws * kRows * std::exp(logits[std::size_t(i)]) / sum;
    chi += (seen[std::size_t(i)] - expected) * (seen[std::size_t(i)] - expected) / expected;
  }
  CHECK(seen[kVocab - 2] + seen[kVocab - 1] == 0);  // ids that are no choices
  CHECK(chi < 33.7);                                // nine degrees of freedom: one in 10,000
  CHECK(pass.rows.of[0].draws == kDraws);
}

TEST_CASE("logits that are no numbers choose nothing and rows not in use are left alone") {
  if (!has_device()) return;
  constexpr int kVocab = 2000;
  Pass pass(kVocab);
  std::vector<float> logits(std::size_t(kRows) * kVocab, 1.0f);
  logits[1234] = NAN;
  logits[kVocab + 5] = kInfinity;
  std::fill_n(logits.begin() + 2 * kVocab, kVocab, -kInfinity);
  logits[3 * kVocab + 1999] = NAN;  // no choice
  pass.set(logits);
  for (float temperature : {0.0f, 0.8f}) {
    pass.set(std::vector<SampleParameters>(kRows, {temperature, 0.9f, 0, 0, kVocab - 1, 7, 3}));
    auto sampled = pass.run();
    for (int r = 0; r < 3; ++r) CHECK(sampled[std::size_t(r)].token == -1);
    for (int r = 3; r < kRows; ++r) CHECK(sampled[std::size_t(r)].token >= 0);
    CHECK(download<int>(pass.tokens.as<void>(), 1)[0] == 0);

    pass.rows.count = 2;
    sampled = pass.run();
    CHECK(sampled[1].step == pass.step);
    CHECK(sampled[2].step == pass.step - 1);
  }
}

TEST_CASE("sampling takes microseconds") {
  if (!has_device()) return;
  constexpr int kVocab = 32000, kLaunches = 200;
  Pass pass(kVocab);
  std::mt19937 random(2);
  std::puts("sample, vocabulary 32000                         us/launch, 1 row   8 rows");
  const auto time = [&](const char* name, float spread, const SampleParameters& parameters) {
    std::vector<float> logits(std::size_t(kRows) * kVocab);
    for (float& logit : logits) logit = std::normal_distribution<float>(0, spread)(random);
    pass.set(logits);
    pass.set(std::vector<SampleParameters>(kRows, parameters));
    double us[2];
    for (int i = 0; i < 2; ++i) {
      pass.rows.count = i == 0 ? 1 : kRows;
      const Stream stream = make_stream();
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
            "cudaStreamBeginCapture");
      for (int j = 0; j < kLaunches; ++j) pass.launch(stream);
      cudaGraph_t graph;
      cudaGraphExec_t launchable;
      check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
      check(cudaGraphInstantiate(&launchable, graph, 0), "cudaGraphInstantiate");
      us[i] =
          1000 / double(kLaunches) *
          milliseconds(
              [&](cudaStream_t on) { check(cudaGraphLaunch(launchable, on), "cudaGraphLaunch"); },
              5);
      check(cudaGraphExecDestroy(launchable), "cudaGraphExecDestroy");
      check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
    std::printf("  %-46s %14.2f %10.2f\n", name, us[0], us[1]);
    return us[0];
  };
  time("greedy", 3, {0, 1, 0, 0, kVocab, 1, 0});
  time("temperature 0.7, top-p 0.9, peaked (sd 4)", 4, {0.7f, 0.9f, 0, 0, kVocab, 1, 0});
  time("temperature 0.7, top-p 0.9, flat (sd 1.4)", 1.4f, {0.7f, 0.9f, 0, 0, kVocab, 1, 0});
  time("temperature 1, flat (sd 0.01)", 0.01f, {1, 1, 0, 0, kVocab, 1, 0});
  time("temperature 1, top-p 0.95, flat (sd 0.01)", 0.01f, {1, 0.95f, 0, 0, kVocab, 1, 0});
  CHECK(time("temperature 0.7, top-k 40, top-p 0.9, min-p 0.05", 3,
             {0.7f, 0.9f, 0.05f, 40, kVocab, 1, 0}) < 50);
}
