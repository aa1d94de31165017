#include <functional>
#include <iostream>
#include <optional>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "stages.h"

// Every stage on the GPU against the CPU backend, which tests/backend_test.cc compares with plain
// double precision. Fresh random inputs, poisoned outputs. Skipped, with the reason, where there is
// no usable GPU.
namespace guanaco {
namespace {

/// Relative L2 distance allowed. Few rows multiply integers as the CPU does; many rows multiply in
/// fp16.
struct Tolerance {
  double few = 1e-4, many = 2e-3;
  double attend = 1.5e-3;  ///< fp16 keys and values, which the CPU keeps more closely
};

std::unique_ptr<Backend> gpu() {
  try {
    return make_cuda_backend(0);
  } catch (const Error& error) {
    std::cout << "[skipped] " << error.what() << '\n';
    return nullptr;
  }
}

std::vector<double> doubles(std::span<const float> values) {
  return {values.begin(), values.end()};
}

/// The same checkpoint and the same rows on both.
class Pair {
 public:
  Pair(Backend& gpu, const SyntheticOptions& options, int rows)
      : cpu_(make_cpu_backend(0)), on_cpu_(*cpu_, options, rows), on_gpu_(gpu, options, rows) {}

  void check(std::vector<std::vector<int>> passes, const Tolerance& tolerance = {}) {
    const std::size_t count = passes[0].size();
    Sequences cpu_sequences(on_cpu_, int(count), 320), gpu_sequences(on_gpu_, int(count), 320);
    unsigned seed = 1;
    for (const std::vector<int>& pass : passes) {
      cpu_sequences.begin_pass();
      gpu_sequences.begin_pass();
      for (std::size_t s = 0; s < count; ++s) {
        const std::vector<TokenId> tokens = random_tokens(pass[s], on_cpu_.config().vocab, ++seed);
        cpu_sequences.add(int(s), tokens);
        gpu_sequences.add(int(s), tokens);
      }
      check_pass(cpu_sequences.rows(), gpu_sequences.rows(), tolerance, ++seed);
    }
  }

 private:
  void same_input(Activation activation, int rows, int width, unsigned seed) {
    const std::vector<float> values = random_values(std::size_t(rows * width), seed);
    cpu_->write(activation, values);
    on_gpu_.backend.write(activation, values);
  }
  void poison_output(Activation activation, int rows, int width) {
    on_gpu_.backend.write(activation, poison(std::size_t(rows * width)));
  }
  double distance(Activation activation, int rows) {
    return relative_error(on_gpu_.backend.read(activation, rows),
                          doubles(cpu_->read(activation, rows)));
  }

  void check_pass(const Rows& cpu_rows, const Rows& gpu_rows, const Tolerance& tolerance,
                  unsigned seed) {
    const int rows = cpu_rows.count(), layers = on_cpu_.config().layers;
    const LlamaConfig& config = on_cpu_.config();
    const int width = config.heads * config.head_dim;
    const double product = rows <= 8 ? tolerance.few : tolerance.many;
    CAPTURE(rows);
    cpu_->embed(*on_cpu_.embedding, cpu_rows);
    on_gpu_.backend.embed(*on_gpu_.embedding, gpu_rows);
    CHECK(distance(Activation::residual, rows) < 1e-7);  // the words' parity takes a bit of fp32
    for (int i = 0; i < layers; ++i) {
      const LayerWeights &cpu = on_cpu_.layers[std::size_t(i)],
                         &gpu = on_gpu_.layers[std::size_t(i)];
      same_input(Activation::residual, rows, config.hidden, seed + 10);
      poison_output(Activation::query, rows, width);
      cpu_->attention_input(cpu, i, cpu_rows);
      on_gpu_.backend.attention_input(gpu, i, gpu_rows);
      CHECK(distance(Activation::query, rows) < product);

      same_input(Activation::query, rows, width, seed + 11);
      poison_output(Activation::attended, rows, width);
      cpu_->attend(i, cpu_rows);
      on_gpu_.backend.attend(i, gpu_rows);
      CHECK(distance(Activation::attended, rows) < tolerance.attend);

      same_input(Activation::attended, rows, width, seed + 12);
      same_input(Activation::residual, rows, config.hidden, seed + 13);
      cpu_->attention_output(cpu, cpu_rows);
      on_gpu_.backend.attention_output(gpu, gpu_rows);
      CHECK(distance(Activation::residual, rows) < product);

      same_input(Activation::residual, rows, config.hidden, seed + 14);
      poison_output(Activation::mlp, rows, config.ffn);
      cpu_->mlp_input(cpu, cpu_rows);
      on_gpu_.backend.mlp_input(gpu, gpu_rows);
      CHECK(distance(Activation::mlp, rows) < 2 * product);

      same_input(Activation::mlp, rows, config.ffn, seed + 15);
      same_input(Activation::residual, rows, config.hidden, seed + 16);
      cpu_->mlp_output(cpu, cpu_rows);
      on_gpu_.backend.mlp_output(gpu, gpu_rows);
      CHECK(distance(Activation::residual, rows) < product);
    }
    same_input(Activation::residual, rows, config.hidden, seed + 17);
    for (const int chosen : {1, 2, 8, 11}) {
      if (chosen > rows) break;
      std::vector<int> which;
      for (int i = 0; i < chosen; ++i) which.push_back((i * 7 + 3) % rows);
      std::vector<float> cpu(std::size_t(chosen * config.vocab)), gpu = poison(cpu.size());
      cpu_->logits(*on_cpu_.norm, *on_cpu_.head, which, cpu);
      on_gpu_.backend.logits(*on_gpu_.norm, *on_gpu_.head, which, gpu);
      CAPTURE(chosen);
      CHECK(relative_error(gpu, doubles(cpu)) < tolerance.few);
    }
  }

  std::unique_ptr<Backend> cpu_;
  LoadedCheckpoint on_cpu_, on_gpu_;
};

SyntheticOptions small() {
  SyntheticOptions options;
  options.hidden = 384;  // an odd number of blocks
  options.ffn = 640;
  options.heads = 6;
  options.kv_heads = 2;
  options.head_dim = 64;
  options.vocab = 1003;
  options.tokenizer = false;
  return options;
}

const std::vector<std::vector<int>> kPasses = {{17, 0, 5},  {1, 0, 0}, {2, 1, 0}, {33, 2, 1},
                                               {1, 1, 1},   {3, 2, 3}, {0, 7, 0}, {0, 2, 27},
                                               {130, 1, 0}, {1, 0, 0}};

void check_dialect(const std::function<void(SyntheticOptions&)>& change,
                   const Tolerance& tolerance = {}) {
  const auto backend = gpu();
  if (backend == nullptr) return;
  SyntheticOptions options = small();
  change(options);
  Pair(*backend, options, 160).check(kPasses, tolerance);
}

TEST_CASE("cuda: groups of 128") {
  check_dialect([](SyntheticOptions&) {});
}
TEST_CASE("cuda: groups of 64") {
  check_dialect([](SyntheticOptions& o) { o.group_size = 64; });
}
TEST_CASE("cuda: groups of 32") {
  check_dialect([](SyntheticOptions& o) { o.group_size = 32; });
}
TEST_CASE("cuda: groups of 96") {
  check_dialect([](SyntheticOptions& o) { o.group_size = 96; });
}
TEST_CASE("cuda: one group for the whole column") {
  check_dialect([](SyntheticOptions& o) { o.group_size = -1; });
}
TEST_CASE("cuda: activation order") {
  check_dialect([](SyntheticOptions& o) { o.act_order = true; });
  check_dialect([](SyntheticOptions& o) {
    o.act_order = true;
    o.group_size = 32;
    o.bits = 8;
  });
}
TEST_CASE("cuda: 2 and 3 and 8 bits") {
  for (const int bits : {2, 3, 8}) check_dialect([&](SyntheticOptions& o) { o.bits = bits; });
}
TEST_CASE("cuda: fp32 scales and biases and zero points of version 2") {
  check_dialect([](SyntheticOptions& o) {
    o.scale_dtype = o.bias_dtype = DType::f32;
    o.bias = SyntheticOptions::Bias::values;
    o.zero_points = 2;
  });
}
TEST_CASE("cuda: 16-bit and 32-bit checkpoints") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32})
    check_dialect([&](SyntheticOptions& o) {
      o.format = SyntheticOptions::Format::dense;
      o.dense_dtype = o.other_dtype = dtype;
      o.tied_embeddings = dtype == DType::bf16;
    });
}
TEST_CASE("cuda: heads of 80 and of 128 without sharing") {
  check_dialect([](SyntheticOptions& o) {
    o.heads = o.kv_heads = 4;
    o.head_dim = 80;
    o.hidden = 320;
  });
  check_dialect([](SyntheticOptions& o) {
    o.heads = o.kv_heads = 3;
    o.head_dim = 128;
  });
}
TEST_CASE("cuda: one layer of every published width") {
  const auto backend = gpu();
  if (backend == nullptr) return;
  for (const char* name : {"7b", "13b", "33b", "65b"}) {
    CAPTURE(name);
    SyntheticOptions options = synthetic_shape(name);
    options.layers = 1;
    options.vocab = 1024;
    options.tokenizer = false;
    Pair(*backend, options, 64).check({{40, 0, 0}, {1, 0, 0}, {1, 3, 1}, {1, 1, 1}});
  }
}

/// Logits after each of `steps` whole passes; in each, every sequence gets one token more.
std::vector<float> whole_passes(LoadedCheckpoint& loaded, int sequences, int steps) {
  Sequences cache(loaded, sequences, steps);
  std::vector<int> which;
  for (int s = 0; s < sequences; ++s) which.push_back(s);
  const std::size_t width = std::size_t(sequences * loaded.config().vocab);
  std::vector<float> all;
  for (int step = 0; step < steps; ++step) {
    cache.begin_pass();
    for (int s = 0; s < sequences; ++s)
      cache.add(s, random_tokens(1, loaded.config().vocab, unsigned(step * 8 + s)));
    const Rows rows = cache.rows();
    forward(loaded.backend, loaded, rows, {});
    all.resize(all.size() + width);
    loaded.backend.logits(*loaded.norm, *loaded.head, which, std::span(all).last(width));
    loaded.backend.end_pass();
  }
  return all;
}

TEST_CASE("cuda: whole passes of a model with less work than the card has room for") {
  const auto backend = gpu();
  if (backend == nullptr) return;
  for (const int heads : {6, 2}) {
    SyntheticOptions options = small();
    options.layers = 7;
    options.heads = heads;  // fewer strips than multiprocessors in some stages, or in all
    const auto cpu = make_cpu_backend(0);
    LoadedCheckpoint on_cpu(*cpu, options, 16), on_gpu(*backend, options, 16);
    for (const int sequences : {1, 3}) {
      constexpr int kSteps = 150;
      const std::vector<float> expected = whole_passes(on_cpu, sequences, kSteps);
      const std::vector<float> got = whole_passes(on_gpu, sequences, kSteps);
      const std::size_t width = expected.size() / kSteps;
      double worst = 0;
      for (std::size_t at = 0; at < expected.size(); at += width)
        worst = std::max(worst, relative_error(std::span(got).subspan(at, width),
                                               doubles(std::span(expected).subspan(at, width))));
      CAPTURE(sequences);
      CHECK(worst < 5e-3);
      CHECK(same_bits(got, whole_passes(on_gpu, sequences, kSteps)));
    }
  }
}

TEST_CASE("cuda: loading and unloading gives all memory back") {
  if (gpu() == nullptr) return;
  TemporaryFolder folder;
  SyntheticOptions options = small();
  write_synthetic(folder.path(), options);
  std::uint64_t free = 0;
  for (int round = 0; round < 50; ++round) {
    {
      const Model model = Model::load(folder.path(), {.device = Device::cuda, .rows = 32});
      Session session(model, {.context = 64});
      session.feed(std::vector<TokenId>{1, 2, 3});
    }
    const std::uint64_t now = gpu()->free_bytes();
    if (round == 4) free = now;
    if (round > 4) CHECK(now + (2u << 20) >= free);
  }
}

TEST_CASE("cuda: a model that does not fit is refused with the bytes wanted and free") {
  const auto backend = gpu();
  if (backend == nullptr) return;
  TemporaryFolder folder;
  SyntheticOptions options = synthetic_shape("13b");  // 20 KB of cache for a position
  options.layers = 1;
  options.vocab = 512;
  options.tokenizer = false;
  write_synthetic(folder.path(), options);
  const Model model = Model::load(folder.path(), {.device = Device::cuda, .rows = 32});
  try {
    Session session(model, {.context = 1 << 24});
    FAIL("340 GB were granted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::out_of_memory);
    CHECK(std::string(error.what()).find("free") != std::string::npos);
  }
}

}  // namespace
}  // namespace guanaco
