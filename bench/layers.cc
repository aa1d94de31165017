#include "layers.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

namespace bench {
namespace {

using namespace guanaco;
using Clock = std::chrono::steady_clock;

/// The stages of the forward pass that make up a row's work in a layer.
std::vector<Stage> chain_of(Stage stage) {
  const auto range = [](Stage first, Stage last) {
    std::vector<Stage> stages;
    for (int i = int(first); i <= int(last); ++i) stages.push_back(Stage(i));
    return stages;
  };
  switch (stage) {
    case Stage::attention:
      return range(Stage::attention_input, Stage::attention_output);
    case Stage::mlp:
      return range(Stage::mlp_input, Stage::mlp_output);
    case Stage::layer:
      return range(Stage::attention_input, Stage::mlp_output);
    case Stage::head:
    case Stage::launch:
      return {};
    default:
      return {stage};
  }
}

std::size_t part_of(Stage stage) {
  switch (stage) {
    case Stage::attention_input:
      return 0;
    case Stage::attention_output:
      return 1;
    case Stage::mlp_input:
      return 2;
    case Stage::mlp_output:
      return 3;
    default:
      return 4;
  }
}

}  // namespace

const char* name_of(Stage stage) {
  constexpr const char* kNames[] = {"qkv",       "attend", "o",     "gate+up", "down",
                                    "attention", "mlp",    "layer", "head",    "launch"};
  return kNames[int(stage)];
}

Layers::Layers(const SyntheticOptions& shape, const Ceilings& ceilings, const ModelOptions& options)
    : backend_(make_backend(options)) {
  SyntheticOptions one = shape;
  one.layers = 1;
  one.tokenizer = false;
  write_synthetic(folder_.path(), one);
  checkpoint_ = Checkpoint::open(folder_.path());
  checkpoint_.settle({});
  prompt_ = backend_->is_host() ? 128 : 512;
  deep_ = backend_->is_host() ? 512 : 2000;
  const LayerTensors& tensors = checkpoint_.layers[0];
  parts_ = {{tensors.query, tensors.key, tensors.value},
            {tensors.output},
            {tensors.gate, tensors.up},
            {tensors.down},
            {checkpoint_.head}};
  const double smallest = double(backend_->linear_bytes(parts_[1]));
  copies_ = std::clamp(int(kRotations * double(ceilings.cache) / smallest) + 1, 6, 24);
  config_ = checkpoint_.config;
  config_.layers = copies_;
  load();
  fill_caches();
  busy_ = prompt(0, 0, prompt_);
}

Batch Layers::batch(int rows, int depth) const {
  if (rows > KernelRow::kFewRows) return prompt(0, depth, rows);
  Batch batch;
  batch.depth = depth;
  for (int i = 0; i < rows; ++i) {
    batch.tokens.push_back(token(i));
    batch.positions.push_back(depth);
    batch.sequences.push_back(i);
    batch.caches.push_back(pages_[std::size_t(i)].get());
  }
  return batch;
}

KernelRow Layers::describe(Stage stage, const Batch& batch) const {
  KernelRow row;
  row.stage = name_of(stage);
  row.rows = int(batch.tokens.size());
  row.depth = batch.depth;
  const std::vector<Stage> chain = chain_of(stage);
  if (stage == Stage::launch) return row;
  if (chain.size() > 1) {
    for (const Stage each : chain) {
      const KernelRow part = describe(each, batch);
      row.bytes += part.bytes;
      row.operations += part.operations;
    }
    row.size = fmt::format("{} in order", chain.size());
  } else if (stage == Stage::attend) {
    const double bytes =
        double(backend_->cache_bytes(config_, kPageTokens)) / kPageTokens / double(config_.layers);
    for (const int position : batch.positions)
      row.operations += 4.0 * (position + 1) * config_.heads * config_.head_dim;
    row.bytes = bytes * (row.prompt() ? batch.positions.back() + 1 : row.rows * (row.depth + 1));
    row.size = fmt::format("{} x {}", config_.heads, config_.head_dim);
  } else {
    const std::span<const Linear> linear = parts_[part_of(stage)];
    int wide = 0;
    for (const Linear& part : linear) wide += outputs(part);
    row.bytes = double(backend_->linear_bytes(linear));
    row.operations = 2.0 * row.rows * wide * inputs(linear[0]);
    row.size = fmt::format("{} x {}", wide, inputs(linear[0]));
  }
  return row;
}

double Layers::seconds(Stage stage, const Batch& batch) {
  const std::vector<Stage> chain = chain_of(stage);
  if (stage == Stage::head) return run_head(batch) - run(batch, {}, 0, false);
  const bool alone = chain.size() <= 1;
  int more = copies_, less = copies_ / 2;
  if (alone) {
    const int turns = few(batch) ? 2 : 1;
    more = 2 * turns * copies_;
    less = turns * copies_;
  }
  return (run(batch, chain, more, alone) - run(batch, chain, less, alone)) / (more - less);
}

void Layers::load() {
  backend_->reserve(config_, prompt_);
  table_ = backend_->load_table(checkpoint_.embedding);
  const LayerTensors& tensors = checkpoint_.layers[0];
  for (int i = 0; i < copies_; ++i) {
    LayerWeights layer;
    layer.attention_norm = backend_->load_norm(tensors.attention_norm);
    layer.qkv = backend_->load_linear(parts_[0]);
    layer.output = backend_->load_linear(parts_[1]);
    layer.mlp_norm = backend_->load_norm(tensors.mlp_norm);
    layer.gate_up = backend_->load_linear(parts_[2]);
    layer.down = backend_->load_linear(parts_[3]);
    layers_.push_back(std::move(layer));
  }
  norm_ = backend_->load_norm(checkpoint_.norm);
  for (Weight& head : heads_) head = backend_->load_linear(parts_[4]);
  backend_->loaded();
}

/// Keys and values of every sequence, as passes leave them.
void Layers::fill_caches() {
  for (int i = 0; i < KernelRow::kFewRows; ++i) {
    pages_.push_back(backend_->make_pages(config_, deep_ + (i == 0 ? prompt_ : 1)));
    for (int first = 0; first < deep_; first += prompt_) {
      run(prompt(i, first, std::min(prompt_, deep_ - first)), {{Stage::attention_input}}, copies_,
          false);
    }
  }
}

Batch Layers::prompt(int sequence, int first, int count) const {
  Batch batch;
  batch.depth = first;
  batch.caches = {pages_[std::size_t(sequence)].get()};
  batch.sequences.resize(std::size_t(count));
  for (int i = 0; i < count; ++i) {
    batch.tokens.push_back(token(first + i));
    batch.positions.push_back(first + i);
  }
  return batch;
}

void Layers::call(Stage stage, int index, const Rows& rows) {
  const LayerWeights& layer = layers_[std::size_t(index)];
  switch (stage) {
    case Stage::attention_input:
      return backend_->attention_input(layer, index, rows);
    case Stage::attend:
      return backend_->attend(index, rows);
    case Stage::attention_output:
      return backend_->attention_output(layer, rows);
    case Stage::mlp_input:
      return backend_->mlp_input(layer, rows);
    case Stage::mlp_output:
      return backend_->mlp_output(layer, rows);
    default:
      return;
  }
}

/// Keeps a GPU busy for about a millisecond, or less for one stage, while the host hands over
/// what comes behind.
void Layers::occupy(int stages) {
  if (backend_->is_host()) return;
  const Rows rows = busy_.rows();
  backend_->embed(*table_, rows);
  for (int i = 0; i < stages; ++i) call(Stage::mlp_input, i, rows);
  backend_->end_pass();
}

/// Seconds of so many layers of a chain, until the device has done them. In one pass, or `alone`:
/// each in a pass of its own. (The same stage twice in one pass is no measurement: it waits for
/// nothing the first did, and a GPU's thread blocks may not run ahead of each other so.)
double Layers::run(const Batch& batch, const std::vector<Stage>& chain, int layers, bool alone) {
  const Rows rows = batch.rows();
  const auto start = Clock::now();
  if (few(batch)) occupy(alone ? copies_ / 2 : 1);
  backend_->embed(*table_, rows);
  for (int i = 0; i < layers; ++i) {
    if (alone && chain.empty()) backend_->embed(*table_, rows);
    for (const Stage stage : chain) call(stage, i % copies_, rows);
    if (alone) backend_->end_pass();
  }
  backend_->end_pass();
  backend_->read(Activation::residual, 1);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Seconds of a pass without layers that chooses a token for every row, where the backend
/// chooses, or else fetches the logits.
double Layers::run_head(const Batch& batch) {
  const Rows rows = batch.rows();
  const auto count = std::size_t(rows.count());
  std::vector<ChoiceRule> rules(count);
  for (ChoiceRule& rule : rules) rule.choices = config_.vocab;
  std::vector<Choice> choices(count);
  std::vector<int> which(count);
  for (std::size_t i = 0; i < count; ++i) which[i] = int(i);
  logits_.resize(count * std::size_t(config_.vocab));
  const DeviceWeight& head = *heads_[std::size_t(head_turn_ ^= 1)];

  const auto start = Clock::now();
  if (few(batch)) occupy(1);
  backend_->embed(*table_, rows);
  if (rows.count() <= backend_->most_choices()) {
    backend_->chosen(backend_->choose(*norm_, head, rules), choices);
  } else {
    backend_->logits(*norm_, head, which, logits_);
    backend_->end_pass();
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace bench
