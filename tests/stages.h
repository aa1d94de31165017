#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/forward.h"
#include "synthetic.h"

// What the tests of a backend share: a checkpoint on it, passes over it, and how far off it is.
namespace guanaco {

/// One linear on its own, as a checkpoint would describe it; `make` fills the file.
struct LinearFile {
  TemporaryFolder folder;
  std::unique_ptr<SafetensorsFile> file;
  Linear linear;

  StoredTensor tensor(std::string_view name) const { return {file.get(), file->find(name)}; }
};

/// A synthetic checkpoint, loaded whole. The backend has to outlive it.
struct LoadedCheckpoint : ModelWeights {
  LoadedCheckpoint(Backend& on, const SyntheticOptions& options, int rows) : backend(on) {
    write_synthetic(folder.path(), options);
    checkpoint = Checkpoint::open(folder.path());
    checkpoint.settle({});
    backend.reserve(checkpoint.config, rows);
    embedding = backend.load_table(checkpoint.embedding);
    for (const LayerTensors& tensors : checkpoint.layers) {
      LayerWeights layer;
      const Linear qkv[] = {tensors.query, tensors.key, tensors.value};
      const Linear gate_up[] = {tensors.gate, tensors.up};
      layer.attention_norm = backend.load_norm(tensors.attention_norm);
      layer.qkv = backend.load_linear(qkv);
      layer.output = backend.load_linear({&tensors.output, 1});
      layer.mlp_norm = backend.load_norm(tensors.mlp_norm);
      layer.gate_up = backend.load_linear(gate_up);
      layer.down = backend.load_linear({&tensors.down, 1});
      layers.push_back(std::move(layer));
    }
    norm = backend.load_norm(checkpoint.norm);
    head = backend.load_linear({&checkpoint.head, 1});
    backend.loaded();
  }
  const LlamaConfig& config() const { return checkpoint.config; }

  Backend& backend;
  TemporaryFolder folder;
  Checkpoint checkpoint;
};

/// Sequences that grow pass by pass, and the rows of the next pass.
class Sequences {
 public:
  Sequences(LoadedCheckpoint& loaded, int count, int tokens) : lengths_(std::size_t(count)) {
    for (int i = 0; i < count; ++i) {
      pages_.push_back(loaded.backend.make_pages(loaded.config(), tokens));
      caches_.push_back(pages_.back().get());
    }
  }

  void begin_pass() {
    tokens_.clear();
    positions_.clear();
    sequences_.clear();
  }
  void add(int sequence, std::span<const TokenId> tokens) {
    for (TokenId token : tokens) {
      tokens_.push_back(token);
      positions_.push_back(lengths_[std::size_t(sequence)]++);
      sequences_.push_back(sequence);
    }
  }
  std::size_t length(int sequence) const { return std::size_t(lengths_[std::size_t(sequence)]); }
  Rows rows() const { return {tokens_, positions_, sequences_, caches_}; }

 private:
  std::vector<std::unique_ptr<KvPages>> pages_;
  std::vector<KvPages*> caches_;
  std::vector<int> lengths_;
  std::vector<TokenId> tokens_;
  std::vector<int> positions_, sequences_;
};

inline std::vector<float> random_values(std::size_t count, unsigned seed, float deviation = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(engine); });
  return values;
}

inline std::vector<TokenId> random_tokens(int count, int vocab, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<TokenId> tokens(std::size_t(count), 0);
  for (TokenId& token : tokens) token = TokenId(engine() % unsigned(vocab));
  return tokens;
}

/// What an output holds before its stage: whatever is not written stays visible.
inline std::vector<float> poison(std::size_t count) {
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

/// |got - want| / |want|, Euclidean; infinite if a number is missing or not finite.
inline double relative_error(std::span<const float> got, std::span<const double> want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::isfinite(difference) ? std::sqrt(difference / size)
                                   : std::numeric_limits<double>::infinity();
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace guanaco
