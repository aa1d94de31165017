// Whole models on a GPU, as an application uses them.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "cuda_fixture.h"
#include "error_of.h"
#include "synthetic.h"

namespace guanaco {
namespace {

using cuda::has_device;

SyntheticOptions small(std::uint64_t seed) {
  SyntheticOptions options;
  options.layers = 3;
  options.hidden = 512;
  options.ffn = 1024;
  options.heads = options.kv_heads = 4;
  options.seed = seed;
  options.tokenizer = false;
  return options;
}

/// A model of its own on the GPU.
struct OnGpu {
  explicit OnGpu(const SyntheticOptions& options) {
    write_synthetic(folder.path(), options);
    model.emplace(Model::load(folder.path(), {.device = Device::cuda, .rows = 64}));
  }
  TemporaryFolder folder;
  std::optional<Model> model;
};

constexpr int kTokens = 40;
const GenerateOptions kReply{.max_tokens = kTokens, .stop_at_end_of_text = false};

std::vector<TokenId> prompt(int i) { return {3 + i, 40 + 7 * i, 11, 200 - i}; }

std::vector<TokenId> reply(const Model& model, int i) {
  Session session(model, {.context = 64});
  Generation generation = session.generate(prompt(i), Sampler({.temperature = 0}), kReply);
  std::vector<TokenId> tokens;
  while (const auto piece = generation.next()) tokens.push_back(piece->token);
  return tokens;
}

TEST_CASE("cuda: more sessions than one pass takes decode what each decodes alone") {
  if (!has_device()) return;
  const OnGpu gpu(small(1));
  for (const int count : {9, 21}) {
    std::vector<Session> sessions;
    std::vector<Generation> generations;
    std::vector<Generation*> all;
    for (int i = 0; i < count; ++i)
      sessions.emplace_back(*gpu.model, SessionOptions{.context = 64});
    for (int i = 0; i < count; ++i)
      generations.push_back(
          sessions[std::size_t(i)].generate(prompt(i), Sampler({.temperature = 0}), kReply));
    for (Generation& generation : generations) all.push_back(&generation);
    std::vector<std::vector<TokenId>> tokens(std::size_t(count), std::vector<TokenId>{});
    for (int t = 0; t < kTokens; ++t) {
      step(all);
      for (std::size_t i = 0; i < all.size(); ++i)
        if (const auto piece = generations[i].next()) tokens[i].push_back(piece->token);
    }
    for (int i = 0; i < count; ++i) {
      CAPTURE(i);
      CHECK(tokens[std::size_t(i)].size() == kTokens);
      CHECK(tokens[std::size_t(i)] == reply(*gpu.model, i));
    }
  }
}

TEST_CASE("cuda: two models on one GPU do not disturb each other") {
  if (!has_device()) return;
  const OnGpu first(small(1)), second(small(2));
  const std::vector<TokenId> alone[2] = {reply(*first.model, 0), reply(*second.model, 0)};
  CHECK(alone[0] != alone[1]);
  int wrong[2] = {};
  const auto repeat = [&](int which) {
    for (int i = 0; i < 10; ++i)
      wrong[which] += reply(which == 0 ? *first.model : *second.model, 0) != alone[which];
  };
  std::thread other([&] { repeat(1); });
  repeat(0);
  other.join();
  CHECK(wrong[0] == 0);
  CHECK(wrong[1] == 0);
}

TEST_CASE("cuda: the estimate is the device memory that a model and a session take") {
  if (!has_device()) return;
  TemporaryFolder folder;
  SyntheticOptions options = synthetic_shape("7b");
  options.layers = 3;
  options.tokenizer = false;
  write_synthetic(folder.path(), options);
  const ModelOptions on_gpu{.device = Device::cuda};
  const auto taken_beside = [&](const auto& use) {
    std::size_t before = 0, after = 0, total = 0;
    cuda::check(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    const Model model = Model::load(folder.path(), on_gpu);
    Session session(model, {.context = 2048});
    use(session);
    cuda::check(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    return std::int64_t(before) - std::int64_t(after);
  };
  const auto feed = [](Session& session) { session.feed(std::vector<TokenId>(600, 5)); };
  taken_beside(feed);  // kernels are loaded with their first use, and stay
  const std::int64_t estimate = std::int64_t(Model::estimate(folder.path(), on_gpu, 2048).device);
  const std::int64_t taken = taken_beside(feed);
  MESSAGE("estimate " << estimate << ", taken " << taken);
  CHECK(std::llabs(taken - estimate) < (std::int64_t(12) << 20));  // pages are of 2 MiB
}

TEST_CASE("cuda: a scale that is no finite number is refused by name") {
  if (!has_device()) return;
  TemporaryFolder folder;
  write_synthetic(folder.path(), small(1));
  const std::string name = "model.layers.1.mlp.up_proj.scales";
  std::filesystem::path file;
  std::uint64_t offset = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    if (entry.path().extension() == ".safetensors") file = entry.path();
  {
    const SafetensorsFile tensors(file);
    offset = tensors.find(name)->offset + 2 * 77;
  }
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  bytes.seekp(std::streamoff(offset));
  bytes.write("\x00\x7c", 2);  // infinity in fp16
  bytes.close();
  const Error error =
      error_of([&] { Model::load(folder.path(), {.device = Device::cuda, .rows = 32}); });
  CHECK(error.code() == ErrorCode::malformed);
  CHECK(contains(error, name + ": a scale is inf"));
}

}  // namespace
}  // namespace guanaco
