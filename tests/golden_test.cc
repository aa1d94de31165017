#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>
#include <nlohmann/json.hpp>

// Compares with transformers in float32 on a small real model family
// (examples/models/tiny-guanaco/MODEL_CARD.md, "Goldens"). The bundled variant is always tested,
// the others where ../shared/models is present.

namespace guanaco {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

/// The float32 values of a version 1 .npy file.
std::vector<float> read_npy(const fs::path& path) {
  const std::string bytes = read_file(path);
  REQUIRE(bytes.substr(1, 5) == "NUMPY");
  const std::size_t start =
      10 + std::size_t(std::uint8_t(bytes[8])) + 256 * std::size_t(std::uint8_t(bytes[9]));
  std::vector<float> values((bytes.size() - start) / sizeof(float));
  std::copy_n(bytes.data() + start, values.size() * sizeof(float),
              reinterpret_cast<char*>(values.data()));
  return values;
}

struct Variant {
  fs::path model, goldens;
  std::string name;
  bool present() const {
    if (fs::exists(model)) return true;
    std::cout << "[skipped] " << model << " is not there\n";
    return false;
  }
};

/// Where the build put something, or where the environment says it is on a machine that only runs.
fs::path place(const char* variable, const char* built) {
  const char* const moved = std::getenv(variable);
  return moved != nullptr ? moved : built;
}
fs::path test_data() { return place("GUANACO_TEST_DATA", GUANACO_TEST_DATA); }

Variant bundled() { return {place("GUANACO_MODEL", GUANACO_MODEL), test_data(), "gptq-4bit-128g"}; }
Variant shared(const std::string& name) {
  const fs::path root = place("GUANACO_SHARED_MODELS", GUANACO_SHARED_MODELS);
  return {root / name, root / "goldens", name};
}

double relative_distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
    norm += double(b[i]) * double(b[i]);
  }
  return std::sqrt(difference / norm);
}

/// Token ids, last logits, log-probabilities of the prompt, and 64 greedy tokens along the
/// reference's own path.
void check_prompts(const Variant& variant, Device device) {
  const Model model = Model::load(variant.model, {.device = device});
  const json golden = json::parse(read_file(variant.goldens / (variant.name + ".json")));
  const std::vector<float> logits = read_npy(variant.goldens / (variant.name + ".logits.npy"));
  const auto vocab = std::size_t(model.info().vocab);
  Session session(model, {.context = 1024});
  double worst = 0;
  int compared = 0;
  for (std::size_t p = 0; p < golden["prompts"].size(); ++p) {
    const json& prompt = golden["prompts"][p];
    CAPTURE(prompt["name"].get<std::string>());
    const auto ids = prompt["input_ids"].get<std::vector<TokenId>>();
    CHECK(model.tokenizer().encode(prompt["text"].get<std::string>()) == ids);

    session.rewind(0);
    const std::vector<float> scores = session.score(ids);
    const auto expected = prompt["prompt_logprobs"].get<std::vector<float>>();
    REQUIRE(expected.size() + 1 == scores.size());
    const double tolerance = device == Device::cpu ? 5e-3 : 1.5e-2;  // prompts are fp16 on a GPU
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK(std::abs(scores[i + 1] - expected[i]) < tolerance);

    const double distance =
        relative_distance(session.logits(), std::span(logits).subspan(p * vocab, vocab));
    CHECK(distance < 1e-3);
    worst = std::max(worst, distance);

    const auto greedy = prompt["greedy_ids"].get<std::vector<TokenId>>();
    const auto margins = prompt["greedy_margins"].get<std::vector<double>>();
    for (std::size_t i = 0; i < greedy.size(); ++i) {
      const std::span<const float> now = session.logits();
      const auto best = TokenId(std::max_element(now.begin(), now.end()) - now.begin());
      if (margins[i] > 1e-3) {
        CHECK(best == greedy[i]);
        ++compared;
      }
      session.feed(std::span(greedy).subspan(i, 1));
    }
  }
  CHECK(compared > 6 * 60);
  MESSAGE(variant.name << ": worst relative distance of final logits " << worst << ", " << compared
                       << " greedy tokens compared");
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kMostWindows = 3;  // sanitizers are slow, and all windows take the same way
#else
constexpr std::size_t kMostWindows = 1000;
#endif

/// The protocol of the goldens: runs of 511 tokens, each behind a BOS token.
void check_perplexity(const Variant& variant, Device device) {
  const Model model = Model::load(variant.model, {.device = device});
  const json golden =
      json::parse(read_file(variant.goldens / (variant.name + ".json")))["perplexity"];
  const std::vector<TokenId> text =
      model.tokenizer().encode(read_file(test_data() / "eval.txt"), false);
  REQUIRE(text.size() == golden["tokens"].get<std::size_t>());
  Session session(model, {.context = 512});
  double sum = 0;
  std::size_t window = 0;
  for (std::size_t i = 0; i < text.size() && window < kMostWindows; i += 511, ++window) {
    session.rewind(0);
    const TokenId bos = model.tokenizer().bos();
    session.feed({&bos, 1});
    double nll = 0;
    for (const float score :
         session.score(std::span(text).subspan(i, std::min<std::size_t>(511, text.size() - i))))
      nll -= double(score);
    CHECK(nll == doctest::Approx(golden["window_nll"][window].get<double>()).epsilon(2e-3));
    sum += nll;
  }
  if (window == kMostWindows) return;
  CHECK(window == golden["windows"].get<std::size_t>());
  const double perplexity = std::exp(sum / double(text.size()));
  MESSAGE(variant.name << ": perplexity " << perplexity << ", golden "
                       << golden["value"].get<double>());
  CHECK(std::abs(perplexity / golden["value"].get<double>() - 1) < 5e-4);
}

void check_prompts_if_present(const std::string& name) {
  if (shared(name).present()) check_prompts(shared(name), Device::cpu);
}
void check_perplexity_if_present(const std::string& name) {
  if (shared(name).present()) check_perplexity(shared(name), Device::cpu);
}

/// Tokens of the replies to some questions, one after the other or all in one batch.
std::vector<std::vector<TokenId>> replies(const Model& model, const SamplerOptions& sampling,
                                          bool together) {
  const char* const kQuestions[] = {"What colour is the sky?", "Who are you?", "Count to ten."};
  std::vector<Session> sessions;
  std::vector<Generation> generations;
  std::vector<Generation*> all;
  for (int i = 0; i < 3; ++i) sessions.emplace_back(model, SessionOptions{.context = 256});
  for (int i = 0; i < 3; ++i)
    generations.push_back(sessions[std::size_t(i)].generate(
        std::string("### Human: ") + kQuestions[i] + "\n### Assistant:", Sampler(sampling),
        {.max_tokens = 48, .stop_at_end_of_text = false}));
  for (Generation& generation : generations) all.push_back(&generation);
  std::vector<std::vector<TokenId>> tokens(3);
  for (int i = 0; i < 48 && together; ++i) {
    step(all);
    for (std::size_t g = 0; g < 3; ++g)
      if (const auto piece = generations[g].next()) tokens[g].push_back(piece->token);
  }
  for (std::size_t g = 0; g < 3; ++g)
    while (const auto piece = generations[g].next()) tokens[g].push_back(piece->token);
  return tokens;
}

/// The same text alone, again, and in a batch; `expected`: of another device, or empty.
void check_replies(Device device, const std::vector<std::vector<TokenId>>& expected) {
  const Model model = Model::load(bundled().model, {.device = device});
  const SamplerOptions greedy{.temperature = 0},
      drawn{.temperature = 0.7f, .top_p = 0.9f, .seed = 5};
  const auto alone = replies(model, greedy, false);
  for (const auto& tokens : alone) CHECK(tokens.size() >= 48);
  if (!expected.empty()) CHECK(alone == expected);
  CHECK(replies(model, greedy, false) == alone);
  CHECK(replies(model, greedy, true) == alone);
  CHECK(replies(model, drawn, false) == replies(model, drawn, false));
}

#if GUANACO_CUDA
/// The reason is printed where there is no usable GPU.
bool has_gpu() {
  try {
    Model::estimate(bundled().model, {.device = Device::cuda});
    return true;
  } catch (const Error& error) {
    std::cout << "[skipped] " << error.what() << '\n';
    return false;
  }
}
TEST_CASE("cuda: goldens of the bundled model") {
  if (has_gpu()) check_prompts(bundled(), Device::cuda);
}
TEST_CASE("cuda: perplexity of the bundled model") {
  if (has_gpu()) check_perplexity(bundled(), Device::cuda);
}
TEST_CASE("cuda: replies are those of the CPU and the same every time and in a batch") {
  if (!has_gpu()) return;
  const Model on_cpu = Model::load(bundled().model, {.device = Device::cpu});
  check_replies(Device::cuda, replies(on_cpu, {.temperature = 0}, false));
}
TEST_CASE("cuda: goldens of the other variants") {
  for (const char* name :
       {"gptq-4bit-128g-actorder", "gptq-4bit-32g", "gptq-4bit-perchannel", "base", "merged"})
    if (has_gpu() && shared(name).present()) check_prompts(shared(name), Device::cuda);
}
#endif

TEST_CASE("replies are the same every time and in a batch") { check_replies(Device::cpu, {}); }
TEST_CASE("goldens: the bundled model") { check_prompts(bundled(), Device::cpu); }
TEST_CASE("goldens: groups of 128 in activation order") {
  check_prompts_if_present("gptq-4bit-128g-actorder");
}
TEST_CASE("goldens: groups of 32") { check_prompts_if_present("gptq-4bit-32g"); }
TEST_CASE("goldens: one group per column") { check_prompts_if_present("gptq-4bit-perchannel"); }
TEST_CASE("goldens: the base model in fp16") { check_prompts_if_present("base"); }
TEST_CASE("goldens: the merged model in fp16") { check_prompts_if_present("merged"); }

TEST_CASE("perplexity: the bundled model") { check_perplexity(bundled(), Device::cpu); }
TEST_CASE("perplexity: groups of 128 in activation order") {
  check_perplexity_if_present("gptq-4bit-128g-actorder");
}
TEST_CASE("perplexity: groups of 32") { check_perplexity_if_present("gptq-4bit-32g"); }
TEST_CASE("perplexity: one group per column") {
  check_perplexity_if_present("gptq-4bit-perchannel");
}
TEST_CASE("perplexity: the base model in fp16") { check_perplexity_if_present("base"); }
TEST_CASE("perplexity: the merged model in fp16") { check_perplexity_if_present("merged"); }

}  // namespace
}  // namespace guanaco
