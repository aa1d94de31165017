#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/packed_linear.h"
#include "backend/cpu/thread_pool.h"
#include "checkpoint/rotary.h"

namespace guanaco::cpu {

/// A norm in fp32.
struct Norm final : DeviceWeight {
  std::vector<float> values;
};

/// The embedding table as in the file. A tied head is packed from the same tensor once more: one
/// row of the table is what a token reads, columns of sixteen are what a product reads.
struct Table final : DeviceWeight {
  Element element = Element::f16;
  int rows = 0, width = 0;
  Buffer memory;
};

/// Pages of [layers][2: keys, values][kv_heads][a HeadCache page].
class Pages final : public KvPages {
 public:
  Pages(const LlamaConfig& config, int tokens);
  static std::uint64_t bytes(const LlamaConfig& config, int tokens);

  int tokens() const noexcept { return tokens_; }
  HeadCache head(int layer, int kv_head) const;
  /// Takes the key and the value of one position, [kv_heads * head_dim] each.
  void append(int layer, int position, const float* key, const float* value);

 private:
  int kv_heads_, head_dim_, tokens_;
  std::size_t page_bytes_;
  Buffer memory_;
};

/// What passes between the stages of one pass, R rows each.
struct Scratch {
  float* residual = nullptr;  ///< [R, hidden]
  float* normed = nullptr;    ///< [R, hidden]
  float* product = nullptr;   ///< [R, Q|K|V or gate|up]
  float* query = nullptr;     ///< [R, heads * head_dim]
  float* attended = nullptr;  ///< [R, heads * head_dim]
  float* mlp = nullptr;       ///< [R, ffn]
  float* cosine = nullptr;    ///< [R, head_dim / 2]
  float* sine = nullptr;      ///< [R, head_dim / 2]

  /// Lays the arrays out from `base`; returns the bytes they take.
  std::uint64_t lay_out(std::byte* base, const LlamaConfig& config, int rows);
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, Isa isa);

  std::string description() const override;
  bool is_host() const override { return true; }
  int threads() const override { return pool_.threads(); }

  std::uint64_t linear_bytes(std::span<const Linear> parts) const override;
  std::uint64_t table_bytes(const StoredTensor& table) const override;
  std::uint64_t norm_bytes(const LlamaConfig& config) const override;
  std::uint64_t scratch_bytes(const LlamaConfig& config, int rows) const override;
  std::uint64_t cache_bytes(const LlamaConfig& config, int tokens) const override;
  std::uint64_t loading_bytes(const Checkpoint& checkpoint) const override;
  std::uint64_t free_bytes() const override;

  Weight load_linear(std::span<const Linear> parts) override;
  Weight load_norm(const StoredTensor& norm) override;
  Weight load_table(const StoredTensor& table) override;
  void reserve(const LlamaConfig& config, int rows) override;
  std::unique_ptr<KvPages> make_pages(const LlamaConfig& config, int tokens) override;

  void embed(const DeviceWeight& table, const Rows& rows) override;
  void attention_input(const LayerWeights& layer, int index, const Rows& rows) override;
  void attend(int index, const Rows& rows) override;
  void attention_output(const LayerWeights& layer, const Rows& rows) override;
  void mlp_input(const LayerWeights& layer, const Rows& rows) override;
  void mlp_output(const LayerWeights& layer, const Rows& rows) override;
  void logits(const DeviceWeight& norm, const DeviceWeight& head, std::span<const int> which,
              std::span<float> out) override;

  std::vector<float> read(Activation activation, int rows) const override;
  void write(Activation activation, std::span<const float> values) override;

 private:
  /// Up to kMaxQueries (row, head) pairs of one sequence, for any key/value head.
  struct Tile {
    int row;           ///< of the pass: the first of the sequence's
    int first, count;  ///< pairs, counted row by row from there
  };

  /// y[rows, outputs] = x[rows, inputs] W^T + bias, or += if `add`.
  void multiply(const DeviceWeight& weight, const float* x, int rows, float* y, bool add);
  void quantise(const PackedPart& part, int inputs, const float* x, int rows);
  /// normed = RMSNorm of the residual rows.
  void normalise(const DeviceWeight& norm, int rows);
  void fit_quantised();
  std::span<float> activation(Activation activation, int rows) const;
  static Pages& pages(const Rows& rows, int row);

  const Kernels& kernels_;
  ThreadPool pool_;
  LlamaConfig config_;
  std::optional<Rotary> rotary_;
  int rows_ = 0;  ///< reserved
  Scratch scratch_;
  Buffer scratch_memory_;
  int positions_ = 0;  ///< the most that any weight so far takes
  QuantisedRows quantised_;
  Buffer quantised_memory_;
  std::vector<Tile> tiles_;  ///< of this pass
};

}  // namespace guanaco::cpu

namespace guanaco {

/// One that uses a chosen instruction set. Throws unsupported if this machine has not got it.
std::unique_ptr<Backend> make_cpu_backend(int threads, cpu::Isa isa);

}  // namespace guanaco
