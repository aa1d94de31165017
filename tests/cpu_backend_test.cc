#include <doctest/doctest.h>
#include <guanaco/error.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "backend/cpu/cpu_backend.h"
#include "stages.h"
#include "support/half.h"

// What only the CPU backend promises: the same bits for every instruction set, number of threads
// and cut of the work; its memory and its thread pool.
namespace guanaco {
namespace {

using cpu::Isa;

std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets = {Isa::portable};
  for (Isa isa : {Isa::avx2, Isa::avx512})
    if (cpu::has(isa)) sets.push_back(isa);
  return sets;
}

SyntheticOptions small(SyntheticOptions::Format format, int bits, DType dtype) {
  SyntheticOptions options;
  options.format = format;
  options.bits = bits;
  options.dense_dtype = options.scale_dtype = options.other_dtype = dtype;
  options.hidden = 160;
  options.ffn = 224;
  options.heads = 8;
  options.kv_heads = 4;
  options.head_dim = 40;
  options.vocab = 67;
  options.group_size = 32;
  options.tokenizer = false;
  return options;
}

std::vector<SyntheticOptions> variety() {
  using Format = SyntheticOptions::Format;
  std::vector<SyntheticOptions> all;
  for (int bits : {2, 3, 4, 8}) all.push_back(small(Format::gptq, bits, DType::f16));
  all.push_back(small(Format::gptq, 4, DType::f32));
  all.back().act_order = true;
  all.back().bias = SyntheticOptions::Bias::values;
  for (DType dtype : {DType::f16, DType::bf16, DType::f32})
    all.push_back(small(Format::dense, 4, dtype));
  return all;
}

struct Piece {
  int sequence, tokens;
};
using Pass = std::vector<Piece>;

/// The logits of every token of `count` sequences, fed as `passes` says: [sequence][token * vocab].
std::vector<std::vector<float>> logits_of(LoadedCheckpoint& model, int count, int length,
                                          const std::vector<Pass>& passes) {
  const std::size_t vocab = std::size_t(model.config().vocab);
  Sequences sequences(model, count, length);
  std::vector<std::vector<float>> logits;
  logits.resize(std::size_t(count));
  for (const Pass& pass : passes) {
    sequences.begin_pass();
    for (const Piece& piece : pass) {
      const std::vector<TokenId> text =
          random_tokens(length, int(vocab), unsigned(piece.sequence) + 1);
      const std::size_t fed = sequences.length(piece.sequence);
      sequences.add(piece.sequence, std::span(text).subspan(fed, std::size_t(piece.tokens)));
    }
    const Rows rows = sequences.rows();
    forward(model.backend, model, rows, {});
    for (int r = 0; r < rows.count(); ++r) {
      std::vector<float>& all = logits[std::size_t(rows.sequences[std::size_t(r)])];
      all.resize(all.size() + vocab);
      model.backend.logits(*model.norm, *model.head, {&r, 1}, std::span(all).last(vocab));
    }
  }
  return logits;
}

const std::vector<Pass> kAtOnce = {{{0, 50}}};

TEST_CASE("every instruction set gives the same bits") {
  for (const SyntheticOptions& options : variety()) {
    std::vector<std::vector<float>> results;
    for (Isa isa : instruction_sets()) {
      const auto backend = make_cpu_backend(1, isa);
      LoadedCheckpoint model(*backend, options, 64);
      results.push_back(logits_of(model, 1, 50, kAtOnce)[0]);
    }
    for (const auto& result : results) CHECK(same_bits(result, results.front()));
    CHECK(std::isfinite(results.front().back()));
  }
}

TEST_CASE("any number of threads gives the same bits") {
  for (const SyntheticOptions& options : variety()) {
    std::vector<std::vector<float>> results;
    for (int threads : {1, 2, 4, 7}) {
      const auto backend = make_cpu_backend(threads);
      LoadedCheckpoint model(*backend, options, 64);
      results.push_back(logits_of(model, 1, 50, kAtOnce)[0]);
    }
    for (const auto& result : results) CHECK(same_bits(result, results.front()));
  }
}

TEST_CASE("a text fed in slices or beside others gives the same bits as at once and alone") {
  for (const SyntheticOptions& options : variety())
    for (Isa isa : instruction_sets()) {
      const auto backend = make_cpu_backend(2, isa);
      LoadedCheckpoint model(*backend, options, 64);
      const auto alone = logits_of(model, 1, 50, kAtOnce)[0];
      CHECK(same_bits(
          logits_of(model, 1, 50, {{{0, 1}}, {{0, 1}}, {{0, 3}}, {{0, 28}}, {{0, 17}}})[0], alone));
      const auto beside = logits_of(
          model, 3, 50,
          {{{1, 5}, {0, 33}, {2, 2}}, {{2, 1}, {1, 1}, {0, 1}}, {{0, 16}}, {{1, 44}, {2, 3}}});
      CHECK(same_bits(beside[0], alone));
      CHECK(same_bits(beside[1], logits_of(model, 2, 50, {{{1, 50}}})[1]));
    }
}

TEST_CASE("kernels are right at the edges of their numbers on every instruction set") {
  const std::vector<float> values = {
      0.0f,    -0.0f, 1e-40f, -3e-39f, 5.9604645e-8f, 6.1e-5f, 1.00048828f, 65504.f, 65519.9f,
      65520.f, -1e5f, 30.f,   -30.f,   88.5f,         -88.5f,  200.f,       -200.f,  0.333f};
  const int count = int(values.size());
  const std::vector<float> ones(values.size(), 1);
  for (Isa isa : instruction_sets()) {
    const cpu::Kernels& kernels = cpu::kernels_of(isa);
    CAPTURE(kernels.name);
    std::vector<float> silu(values.size() + 1, 7);
    kernels.swiglu(values.data(), ones.data(), count, silu.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double want = values[i] / (1 + std::exp(-double(values[i])));
      CHECK(std::fabs(silu[i] - want) <= 3e-7 * std::fabs(want) + 1e-30);
    }
    CHECK(silu.back() == 7);
  }
}

TEST_CASE("activations that vanish or are not numbers pass through quantisation") {
  const auto backend = make_cpu_backend(1);
  SyntheticOptions options = small(SyntheticOptions::Format::gptq, 4, DType::f16);
  LoadedCheckpoint model(*backend, options, 2);
  Rows rows;
  const std::vector<TokenId> token(1, 0);
  rows.tokens = token;
  const auto result = [&](float x) {
    backend->write(Activation::mlp, std::vector<float>(std::size_t(options.ffn), x));
    backend->write(Activation::residual, std::vector<float>(std::size_t(options.hidden), 1));
    backend->mlp_output(model.layers[0], rows);
    return backend->read(Activation::residual, 1)[0];
  };
  CHECK(result(0) == 1);
  CHECK(result(1e-38f) == 1);
  CHECK(std::isnan(result(std::nanf(""))));
  CHECK(!std::isfinite(result(std::numeric_limits<float>::infinity())));
}

TEST_CASE("a key or value that is not a number reaches what attends to it") {
  LlamaConfig config;
  config.layers = config.heads = config.kv_heads = 1;
  config.head_dim = 40;
  const auto width = std::size_t(config.head_dim);
  const std::vector<float> ones(width, 1);
  std::vector<float> bad = ones;
  for (float x : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity()}) {
    bad[7] = x;
    for (const auto& [key, value] : {std::pair(bad, ones), std::pair(ones, bad)}) {
      cpu::Pages pages(config, 40);
      for (int position = 0; position < 40; ++position) {
        const bool last = position == 39;
        pages.append(0, position, (last ? key : ones).data(), (last ? value : ones).data());
      }
      for (Isa isa : instruction_sets()) {
        std::vector<float> out(width);
        for (int keys : {39, 40}) {
          const cpu::Query query{ones.data(), out.data(), keys};
          cpu::kernels_of(isa).attend(&query, 1, pages.head(0, 0), config.head_dim);
          CHECK(std::isfinite(out[7]) == (keys == 39));
        }
      }
    }
  }
}

TEST_CASE("sizes are known before anything is allocated") {
  const auto backend = make_cpu_backend(1);
  for (SyntheticOptions options : variety()) {
    options.act_order = false;
    options.group_index = SyntheticOptions::GroupIndex::absent;
    LoadedCheckpoint model(*backend, options, 16);
    const LayerTensors& tensors = model.checkpoint.layers[0];
    const Linear qkv[] = {tensors.query, tensors.key, tensors.value};
    CHECK(model.layers[0].qkv->bytes == backend->linear_bytes(qkv));
    CHECK(model.layers[0].down->bytes == backend->linear_bytes({&tensors.down, 1}));
    CHECK(model.head->bytes == backend->linear_bytes({&model.checkpoint.head, 1}));
    CHECK(model.embedding->bytes == backend->table_bytes(model.checkpoint.embedding));
    CHECK(model.norm->bytes == backend->norm_bytes(model.config()));
  }
  LlamaConfig config;  // 7B: 524288 bytes a position, and 4 for each 128 elements
  CHECK(backend->cache_bytes(config, 2048) == 2048ull * 532480);
  CHECK(backend->cache_bytes(config, 1) == 32ull * 532480);
}

TEST_CASE("four bits in groups of 128 take at most 0.53 bytes a weight") {
  const auto backend = make_cpu_backend(1);
  SyntheticOptions options = small(SyntheticOptions::Format::gptq, 4, DType::f16);
  options.hidden = options.ffn = 512;
  options.group_size = 128;
  options.layers = 1;
  LoadedCheckpoint model(*backend, options, 1);
  CHECK(double(model.layers[0].down->bytes) <= 0.53 * 512 * 512);
}

TEST_CASE("too much memory is an error that says how much and what for") {
  const auto backend = make_cpu_backend(1);
  try {
    backend->make_pages(LlamaConfig(), 1 << 30);
    FAIL("520 TiB were granted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::out_of_memory);
    CHECK(std::string(error.what()).find("571746046443520 bytes wanted") != std::string::npos);
    CHECK(std::string(error.what()).find("free") != std::string::npos);
  }
  CHECK(backend->free_bytes() > 0);
}

TEST_CASE("weights that are not finite are refused by name") {
  const auto backend = make_cpu_backend(2);
  for (DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    LinearFile made;
    const auto path = made.folder.path() / "w.safetensors";
    SafetensorsWriter writer(path,
                             std::vector<SafetensorsWriter::Tensor>{{"w.weight", dtype, {20, 32}}});
    for (int i = 0; i < 640; ++i) {
      const float value = i == 639 ? -std::numeric_limits<float>::infinity() : 1;
      const std::uint16_t half =
          dtype == DType::f16 ? float_to_half(value) : float_to_bfloat(value);
      writer.write(dtype == DType::f32 ? std::as_bytes(std::span(&value, 1))
                                       : std::as_bytes(std::span(&half, 1)));
    }
    writer.finish();
    made.file = std::make_unique<SafetensorsFile>(path);
    const Linear linear = DenseLinear{"w", 32, 20, made.tensor("w.weight"), {}};
    const std::string message =
        "tensor w.weight: expected finite numbers, found infinity or not-a-number";
    CHECK_THROWS_WITH_AS(backend->load_linear({&linear, 1}), message.c_str(), Error);
    CHECK_THROWS_WITH_AS(backend->load_table(made.tensor("w.weight")), message.c_str(), Error);
    CHECK_THROWS_WITH_AS(backend->load_norm(made.tensor("w.weight")), message.c_str(), Error);
  }
}

TEST_CASE("a backend is refused for what this build or machine cannot do") {
  ModelOptions options;
  options.threads = 1025;
  CHECK_THROWS_WITH_AS(make_backend(options), "threads: expected 0 to 1024, found 1025", Error);
  options.threads = -1;
  CHECK_THROWS_WITH_AS(make_backend(options), "threads: expected 0 to 1024, found -1", Error);
  options.threads = 3;
  options.device = Device::cpu;
  const auto backend = make_backend(options);
  CHECK(backend->threads() == 3);
  CHECK(backend->is_host());
  CHECK(backend->description().find("CPU, ") == 0);
  CHECK(backend->description().find(", 3 threads") != std::string::npos);
}

TEST_CASE("the thread pool covers a range once and survives exceptions") {
  for (int threads : {1, 2, 5}) {
    cpu::ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int round = 0; round < 200; ++round)
      for (int count : {0, 1, 2, 4, 5, 97}) {
        std::vector<std::atomic<int>> visits(std::size_t(count) + 1);
        pool.parallel_for(count, [&](int begin, int end) {
          for (int i = begin; i < end; ++i) ++visits[std::size_t(i)];
        });
        for (int i = 0; i < count; ++i) REQUIRE(visits[std::size_t(i)] == 1);
      }
    for (int bad : {0, 96})
      CHECK_THROWS_WITH_AS(pool.parallel_for(97,
                                             [&](int begin, int end) {
                                               if (begin <= bad && bad < end)
                                                 throw std::runtime_error("bad");
                                             }),
                           "bad", std::runtime_error);
    std::atomic<int> sum = 0;
    pool.parallel_for(10, [&](int begin, int end) { sum += end - begin; });
    CHECK(sum == 10);
  }
}

}  // namespace
}  // namespace guanaco
