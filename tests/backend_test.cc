#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <numeric>

#include "checkpoint/rotary.h"
#include "stages.h"
#include "support/half.h"

// Every stage against a plain evaluation in double precision. The bodies know only the Backend
// interface: another device is another instance with a tolerance of its own.
namespace guanaco {
namespace {

/// Relative L2 error allowed, by how the weights are stored.
struct Tolerance {
  double gptq = 1e-4;
  double dense = 1e-5;
  double attend = 1e-4;  ///< keys and values in 16 bits
};

using Doubles = std::vector<double>;

Doubles doubles(std::span<const float> values) { return {values.begin(), values.end()}; }

/// [outputs, inputs] weights and [outputs] bias of a linear, as the file means them.
struct PlainLinear {
  explicit PlainLinear(const Linear& linear) : inputs(guanaco::inputs(linear)) {
    const int outputs = guanaco::outputs(linear);
    bias.assign(std::size_t(outputs), 0);
    if (const auto* dense = std::get_if<DenseLinear>(&linear)) {
      weight = doubles(dense->weight.read_floats());
      if (dense->bias) bias = doubles(dense->bias.read_floats());
      return;
    }
    const GptqMatrix matrix = read_gptq(std::get<GptqLinear>(linear));
    for (int n = 0; n < outputs; ++n)
      for (int k = 0; k < inputs; ++k) {
        const std::size_t column = std::size_t(matrix.group[std::size_t(k)] * outputs + n);
        weight.push_back(double(matrix.scales[column]) *
                         (int(matrix.code(k, n)) - int(matrix.zeros[column])));
      }
    if (!matrix.bias.empty()) bias = doubles(matrix.bias);
  }

  /// [rows, inputs] -> [rows, outputs]
  Doubles operator()(std::span<const double> x) const {
    Doubles y;
    for (std::size_t row = 0; row < x.size(); row += std::size_t(inputs))
      for (std::size_t n = 0; n < bias.size(); ++n)
        y.push_back(std::inner_product(weight.begin() + std::ptrdiff_t(n) * inputs,
                                       weight.begin() + std::ptrdiff_t(n + 1) * inputs,
                                       x.begin() + std::ptrdiff_t(row), bias[n]));
    return y;
  }

  int inputs;
  Doubles weight, bias;
};

Doubles rms_norm(std::span<const float> x, const StoredTensor& norm, double epsilon) {
  const std::vector<float> weight = norm.read_floats();
  Doubles y(x.begin(), x.end());
  for (std::size_t row = 0; row < y.size(); row += weight.size()) {
    double squares = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += y[row + i] * y[row + i];
    const double scale = 1 / std::sqrt(squares / double(weight.size()) + epsilon);
    for (std::size_t i = 0; i < weight.size(); ++i) y[row + i] *= scale * weight[i];
  }
  return y;
}

double tolerance_for(const Linear& linear, const Tolerance& tolerance) {
  return std::holds_alternative<GptqLinear>(linear) ? tolerance.gptq : tolerance.dense;
}

/// Stage 6 with any linear: residual + W x.
void check_product(Backend& backend, const Linear& linear, int rows, const Tolerance& tolerance) {
  LlamaConfig config;
  config.layers = 1;
  config.heads = config.kv_heads = 1;
  config.head_dim = 2;
  config.hidden = outputs(linear);
  config.ffn = inputs(linear);
  backend.reserve(config, rows);
  LayerWeights layer;
  layer.down = backend.load_linear({&linear, 1});
  const std::vector<float> x = random_values(std::size_t(rows * config.ffn), 1);
  const std::vector<float> before = random_values(std::size_t(rows * config.hidden), 2);
  backend.write(Activation::mlp, x);
  backend.write(Activation::residual, before);
  Rows pass;
  const std::vector<TokenId> tokens(std::size_t(rows), 0);
  pass.tokens = tokens;
  backend.mlp_output(layer, pass);

  Doubles want = PlainLinear(linear)(doubles(x));
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += before[i];
  CAPTURE(rows);
  CHECK(relative_error(backend.read(Activation::residual, rows), want) <
        tolerance_for(linear, tolerance));
}

/// Keys and values of one sequence, not rounded as a cache does: [positions][kv_heads * head_dim].
struct PlainCache {
  std::vector<Doubles> keys, values;
};

void rotate(std::span<double> heads, int head_dim, int position, const Rotary& rotary) {
  const std::size_t half = std::size_t(head_dim) / 2;
  std::vector<float> cosine(half), sine(half);
  rotary.angles(position, cosine, sine);
  for (std::size_t h = 0; h < heads.size(); h += 2 * half)
    for (std::size_t i = h; i < h + half; ++i) {
      const double a = heads[i], b = heads[i + half];
      heads[i] = a * cosine[i - h] - b * sine[i - h];
      heads[i + half] = b * cosine[i - h] + a * sine[i - h];
    }
}

/// Stages 2 and 3 of the last layer, for rows of several sequences: queries, and attention over
/// what the caches got.
void check_attention(LoadedCheckpoint& model, Sequences& sequences, std::vector<PlainCache>& caches,
                     unsigned seed, const Tolerance& tolerance) {
  Backend& backend = model.backend;
  const LlamaConfig& config = model.config();
  const Rows rows = sequences.rows();
  const int index = config.layers - 1, d = config.head_dim;
  const LayerTensors& tensors = model.checkpoint.layers[std::size_t(index)];
  const std::size_t q_width = std::size_t(config.heads * d);
  const std::size_t kv_width = std::size_t(config.kv_heads * d);
  const std::vector<float> residual =
      random_values(std::size_t(rows.count() * config.hidden), seed);
  backend.embed(*model.embedding, rows);
  backend.write(Activation::residual, residual);
  backend.write(Activation::query, poison(std::size_t(rows.count()) * q_width));
  backend.attention_input(model.layers[std::size_t(index)], index, rows);

  const Rotary rotary(config.rotary, d, config.context);
  const Doubles x = rms_norm(residual, tensors.attention_norm, config.rms_norm_epsilon);
  Doubles query = PlainLinear(tensors.query)(x), key = PlainLinear(tensors.key)(x);
  const Doubles value = PlainLinear(tensors.value)(x);
  for (int r = 0; r < rows.count(); ++r) {
    const int position = rows.positions[std::size_t(r)];
    const std::span k = std::span(key).subspan(std::size_t(r) * kv_width, kv_width);
    const std::span v = std::span(value).subspan(std::size_t(r) * kv_width, kv_width);
    rotate(std::span(query).subspan(std::size_t(r) * q_width, q_width), d, position, rotary);
    rotate(k, d, position, rotary);
    PlainCache& cache = caches[std::size_t(rows.sequences[std::size_t(r)])];
    REQUIRE(cache.keys.size() == std::size_t(position));
    cache.keys.emplace_back(k.begin(), k.end());
    cache.values.emplace_back(v.begin(), v.end());
  }
  CHECK(relative_error(backend.read(Activation::query, rows.count()), query) <
        tolerance_for(tensors.query, tolerance));

  const std::vector<float> asked =
      random_values(std::size_t(rows.count()) * q_width, seed + 1, 2.0f);
  backend.write(Activation::query, asked);
  backend.write(Activation::attended, poison(asked.size()));
  backend.attend(index, rows);
  Doubles want;
  for (int r = 0; r < rows.count(); ++r)
    for (int h = 0; h < config.heads; ++h) {
      const PlainCache& cache = caches[std::size_t(rows.sequences[std::size_t(r)])];
      const float* const q = asked.data() + std::size_t(r) * q_width + std::size_t(h * d);
      const int kv = h / (config.heads / config.kv_heads) * d;
      Doubles out(std::size_t(d), 0);
      double total = 0;
      for (int t = 0; t <= rows.positions[std::size_t(r)]; ++t) {
        const double score = std::inner_product(q, q + d, &cache.keys[std::size_t(t)][kv], 0.0);
        const double weight = std::exp(score / std::sqrt(double(d)));
        total += weight;
        for (int i = 0; i < d; ++i)
          out[std::size_t(i)] += weight * cache.values[std::size_t(t)][std::size_t(kv + i)];
      }
      for (double number : out) want.push_back(number / total);
    }
  CHECK(relative_error(backend.read(Activation::attended, rows.count()), want) < tolerance.attend);
}

void check_mlp_input(LoadedCheckpoint& model, const Rows& rows, const Tolerance& tolerance) {
  const LlamaConfig& config = model.config();
  const LayerTensors& tensors = model.checkpoint.layers.front();
  const std::vector<float> residual = random_values(std::size_t(rows.count() * config.hidden), 3);
  model.backend.write(Activation::residual, residual);
  model.backend.write(Activation::mlp, poison(std::size_t(rows.count() * config.ffn)));
  model.backend.mlp_input(model.layers.front(), rows);
  const Doubles x = rms_norm(residual, tensors.mlp_norm, config.rms_norm_epsilon);
  Doubles want = PlainLinear(tensors.gate)(x);
  const Doubles up = PlainLinear(tensors.up)(x);
  for (std::size_t i = 0; i < want.size(); ++i) want[i] *= up[i] / (1 + std::exp(-want[i]));
  CHECK(relative_error(model.backend.read(Activation::mlp, rows.count()), want) <
        tolerance_for(tensors.gate, tolerance));
}

void check_attention_output(LoadedCheckpoint& model, const Rows& rows, const Tolerance& tolerance) {
  const LlamaConfig& config = model.config();
  const Linear& output = model.checkpoint.layers.front().output;
  const std::vector<float> before = random_values(std::size_t(rows.count() * config.hidden), 4);
  const std::vector<float> x = random_values(std::size_t(rows.count() * inputs(output)), 5);
  model.backend.write(Activation::residual, before);
  model.backend.write(Activation::attended, x);
  model.backend.attention_output(model.layers.front(), rows);
  Doubles want = PlainLinear(output)(doubles(x));
  for (std::size_t i = 0; i < want.size(); ++i) want[i] += before[i];
  CHECK(relative_error(model.backend.read(Activation::residual, rows.count()), want) <
        tolerance_for(output, tolerance));
}

void check_embed_and_logits(LoadedCheckpoint& model, const Rows& rows, const Tolerance& tolerance) {
  const LlamaConfig& config = model.config();
  const std::size_t hidden = std::size_t(config.hidden);
  model.backend.write(Activation::residual, poison(std::size_t(rows.count()) * hidden));
  model.backend.embed(*model.embedding, rows);
  const std::vector<float> table = model.checkpoint.embedding.read_floats();
  const std::vector<float> residual = model.backend.read(Activation::residual, rows.count());
  for (int r = 0; r < rows.count(); ++r)
    CHECK(same_bits(
        std::span(residual).subspan(std::size_t(r) * hidden, hidden),
        std::span(table).subspan(std::size_t(rows.tokens[std::size_t(r)]) * hidden, hidden)));

  std::vector<int> which;  // backwards, not all
  for (int r = rows.count() - 1; r >= 0 && which.size() < Backend::kLogitRows; r -= 2)
    which.push_back(r);
  std::vector<float> chosen;
  for (int r : which)
    chosen.insert(chosen.end(), residual.begin() + r * config.hidden,
                  residual.begin() + (r + 1) * config.hidden);
  std::vector<float> logits = poison(which.size() * std::size_t(config.vocab));
  model.backend.logits(*model.norm, *model.head, which, logits);
  const Linear& head = model.checkpoint.head;
  const Doubles want =
      PlainLinear(head)(rms_norm(chosen, model.checkpoint.norm, config.rms_norm_epsilon));
  CHECK(relative_error(logits, want) < tolerance_for(head, tolerance));
}

void check_stages(Backend& backend, const SyntheticOptions& options,
                  const Tolerance& tolerance = {}) {
  LoadedCheckpoint model(backend, options, 48);
  Sequences sequences(model, 3, 96);
  std::vector<PlainCache> caches(3);
  unsigned seed = 10;
  for (const std::vector<int>& pass : std::vector<std::vector<int>>{
           {17, 0, 5}, {1, 0, 0}, {33, 2, 1}, {1, 1, 1}, {3, 30, 0}, {0, 2, 27}}) {
    sequences.begin_pass();
    for (int s = 0; s < 3; ++s)
      sequences.add(s, random_tokens(pass[std::size_t(s)], model.config().vocab, ++seed));
    CAPTURE(sequences.rows().count());
    check_attention(model, sequences, caches, ++seed, tolerance);
    check_attention_output(model, sequences.rows(), tolerance);
    check_mlp_input(model, sequences.rows(), tolerance);
    check_embed_and_logits(model, sequences.rows(), tolerance);
  }
}

SyntheticOptions small() {
  SyntheticOptions options;
  options.hidden = 256;
  options.ffn = 320;
  options.heads = 4;
  options.kv_heads = 2;
  options.head_dim = 64;
  options.vocab = 131;
  options.tokenizer = false;
  return options;
}

/// A GPTQ linear with any groups and any number of outputs that packs into whole words.
void make_gptq(LinearFile& made, int bits, int inputs, int outputs, int group_size,
               std::vector<std::int32_t> group, DType scale_dtype) {
  const int groups = *std::max_element(group.begin(), group.end()) + 1;
  const auto shape = [](int rows, int columns) {
    return std::vector<std::uint64_t>{std::uint64_t(rows), std::uint64_t(columns)};
  };
  const std::vector<SafetensorsWriter::Tensor> tensors = {
      {"w.g_idx", DType::i32, {std::uint64_t(inputs)}},
      {"w.qweight", DType::i32, shape(inputs * bits / 32, outputs)},
      {"w.qzeros", DType::i32, shape(groups, outputs * bits / 32)},
      {"w.scales", scale_dtype, shape(groups, outputs)}};
  const std::filesystem::path path = made.folder.path() / "w.safetensors";
  SafetensorsWriter writer(path, tensors);
  writer.write(std::as_bytes(std::span(group)));
  std::mt19937 engine(7);
  for (int i = 0; i < inputs * outputs * bits / 32 + groups * outputs * bits / 32; ++i) {
    const std::uint32_t word = engine();
    writer.write(std::as_bytes(std::span(&word, 1)));
  }
  for (int i = 0; i < groups * outputs; ++i) {
    const float scale = 0.001f + float(engine() % 1000) * 1e-5f;
    const std::uint16_t half = float_to_half(scale);
    writer.write(scale_dtype == DType::f32 ? std::as_bytes(std::span(&scale, 1))
                                           : std::as_bytes(std::span(&half, 1)));
  }
  writer.finish();
  made.file = std::make_unique<SafetensorsFile>(path);
  GptqLinear linear;
  linear.name = "w";
  linear.bits = bits;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.groups = groups;
  linear.group_size = group_size;
  linear.qweight = made.tensor("w.qweight");
  linear.qzeros = made.tensor("w.qzeros");
  linear.scales = made.tensor("w.scales");
  linear.g_idx = made.tensor("w.g_idx");
  made.linear = linear;
}

TEST_CASE("cpu: stages match a plain evaluation for GPTQ of every width and group size") {
  const std::unique_ptr<Backend> backend = make_cpu_backend(2);
  for (int bits : {2, 3, 4, 8})
    for (int group_size : {32, 64, 128, -1, 160}) {
      SyntheticOptions options = small();
      options.bits = bits;
      options.group_size = group_size;
      options.layers = 1;
      options.act_order = group_size == 64;
      options.bias = bits == 4 ? SyntheticOptions::Bias::values : SyntheticOptions::Bias::none;
      options.scale_dtype = bits == 8 ? DType::f32 : bits == 3 ? DType::bf16 : DType::f16;
      CAPTURE(bits);
      CAPTURE(group_size);
      check_stages(*backend, options);
    }
}

TEST_CASE("cpu: stages match a plain evaluation for dense weights of every type") {
  const std::unique_ptr<Backend> backend = make_cpu_backend(2);
  for (DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    SyntheticOptions options = small();
    options.format = SyntheticOptions::Format::dense;
    options.dense_dtype = options.other_dtype = dtype;
    options.tied_embeddings = dtype == DType::bf16;
    options.bias =
        dtype == DType::f32 ? SyntheticOptions::Bias::values : SyntheticOptions::Bias::none;
    options.bias_dtype = dtype;
    CAPTURE(name(dtype));
    check_stages(*backend, options);
  }
}

TEST_CASE("cpu: stages match a plain evaluation for heads of every shape") {
  const std::unique_ptr<Backend> backend = make_cpu_backend(2);
  struct Shape {
    int heads, kv_heads, head_dim;
  };
  for (const Shape& shape : {Shape{2, 2, 128}, Shape{8, 1, 64}, Shape{6, 2, 80}, Shape{4, 4, 80}}) {
    SyntheticOptions options = small();
    options.heads = shape.heads;
    options.kv_heads = shape.kv_heads;
    options.head_dim = shape.head_dim;
    options.act_order = true;
    options.group_size = 32;
    CAPTURE(shape.heads);
    CAPTURE(shape.head_dim);
    check_stages(*backend, options);
  }
}

TEST_CASE("cpu: products match a plain evaluation for groups of any size and order") {
  const std::unique_ptr<Backend> backend = make_cpu_backend(2);
  constexpr int kInputs = 416;
  std::vector<std::int32_t> uneven(kInputs), runs(kInputs), one_of_three(kInputs, 2);
  std::mt19937 engine(3);
  for (int k = 0; k < kInputs; ++k) {
    uneven[std::size_t(k)] = std::int32_t(std::min(engine() % 7, engine() % 5));
    runs[std::size_t(k)] = k / 100;
  }
  for (const auto& group : {uneven, runs, one_of_three})
    for (int bits : {2, 3, 4, 8})
      for (DType scale_dtype : {DType::f16, DType::f32}) {
        LinearFile made;
        make_gptq(made, bits, kInputs, bits == 3 ? 96 : 80 + 32 / bits, 100, group, scale_dtype);
        CAPTURE(bits);
        for (int rows : {1, 2, 3, 5, 17, 33, 130}) check_product(*backend, made.linear, rows, {});
      }
}

}  // namespace
}  // namespace guanaco
