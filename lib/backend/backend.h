#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <guanaco/model.h>

#include "checkpoint/checkpoint.h"

namespace guanaco {

/// Positions one page of the key/value cache holds. A page has the keys and values of all layers
/// and heads, so that one address finds it; the layout inside is the backend's own.
inline constexpr int kPageTokens = 32;

/// A weight in the layout its backend likes best. Immutable; freed with its handle.
class DeviceWeight {
 public:
  virtual ~DeviceWeight() = default;
  std::uint64_t bytes = 0;
};
using Weight = std::unique_ptr<const DeviceWeight>;

/// The cache pages of one sequence.
class KvPages {
 public:
  virtual ~KvPages() = default;
};

/// One decoder layer on the device. Linears that share their input are one weight.
struct LayerWeights {
  Weight attention_norm;  ///< [hidden]
  Weight qkv;       ///< hidden -> (heads + 2 kv_heads) * head_dim: Q, K, V one after the other
  Weight output;    ///< heads * head_dim -> hidden
  Weight mlp_norm;  ///< [hidden]
  Weight gate_up;   ///< hidden -> 2 ffn: gate, then up
  Weight down;      ///< ffn -> hidden
};

/// The tokens of one pass: R rows from any number of sequences. A sequence's rows are neighbours,
/// in order of position.
struct Rows {
  std::span<const TokenId> tokens;   ///< [R]
  std::span<const int> positions;    ///< [R] 0-based, in the row's sequence
  std::span<const int> sequences;    ///< [R] index into caches
  std::span<KvPages* const> caches;  ///< [sequences]
  /// The tokens are those that choose() chose for the same rows in the pass before this one, and
  /// may not be known here yet: `tokens` counts, but is not read.
  bool chosen = false;
  int count() const { return int(tokens.size()); }
};

/// What passes between stages; kept by the backend, [R, width] fp32 seen from here.
enum class Activation {
  residual,  ///< [R, hidden]
  query,     ///< [R, heads * head_dim], rotated
  attended,  ///< [R, heads * head_dim]
  mlp,       ///< [R, ffn]: silu(gate) * up
};

/// How the token after a row is chosen: as a Sampler without penalties does (guanaco/sampler.h).
struct ChoiceRule {
  float temperature = 0;  ///< 0: greedy
  float top_p = 1, min_p = 0;
  int top_k = 0;
  int choices = 0;          ///< only ids below are chosen
  std::uint64_t seed = 0;   ///< of the draw
  std::uint64_t draws = 0;  ///< draws made with the seed before this one
};
/// One choice. token -1: a logit is NaN or +inf, or all are -inf.
struct Choice {
  TokenId token = -1;
  float logprob = 0;  ///< natural, of the token under softmax(logits) of the ids below `choices`
};

/// A device that holds packed weights and key/value pages and runs the forward pass in seven stages
/// (design.md 3). The stages run in order on one thread at a time; forward() is their only caller.
/// A backend may put stages off until the pass ends; embed() begins a pass, and forgets one that
/// was never ended.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string description() const = 0;  ///< "CPU, AVX-512, 2 threads"
  virtual bool is_host() const = 0;             ///< weights and caches lie in host memory
  virtual int threads() const { return 0; }     ///< that compute on the CPU; 0 on a GPU

  // Sizes, before anything is allocated.
  virtual std::uint64_t linear_bytes(
      std::span<const Linear> parts) const = 0;  ///< packed as one weight
  virtual std::uint64_t table_bytes(const StoredTensor& table) const = 0;
  virtual std::uint64_t norm_bytes(const LlamaConfig& config) const = 0;  ///< one [hidden] weight
  virtual std::uint64_t scratch_bytes(const LlamaConfig& config, int rows) const = 0;
  virtual std::uint64_t cache_bytes(const LlamaConfig& config, int tokens) const = 0;
  /// What allocating so many bytes of weights takes: devices give away whole pages.
  virtual std::uint64_t allocated(std::uint64_t bytes) const { return bytes; }
  virtual std::uint64_t loading_bytes(
      const Checkpoint& checkpoint) const = 0;  ///< host memory while loading

  virtual std::uint64_t free_bytes() const = 0;  ///< what could be allocated now where weights lie

  /// First of all: scratch for passes of up to `rows` rows of such a model.
  virtual void reserve(const LlamaConfig& config, int rows) = 0;

  // Loading. Each call allocates one weight, which is filled when loaded() returns; throws
  // malformed, and out_of_memory with bytes wanted and free. After a weight was freed nothing more
  // is loaded.
  virtual Weight load_linear(
      std::span<const Linear> parts) = 0;  ///< parts share their input; outputs follow each other
  virtual Weight load_norm(const StoredTensor& norm) = 0;
  virtual Weight load_table(const StoredTensor& table) = 0;  ///< the embedding table
  /// Returns when all weights are here: what only loading needs may go. Throws what their loading
  /// found.
  virtual void loaded() {}
  /// No pass is under way.
  virtual std::unique_ptr<KvPages> make_pages(const LlamaConfig& config, int tokens) = 0;

  /// Of so many rows that wait, 1 to what was reserved: how many the next pass should take.
  virtual int rows_of_pass(int waiting) const { return waiting; }

  // The seven stages.
  virtual void embed(const DeviceWeight& table, const Rows& rows) = 0;
  virtual void attention_input(const LayerWeights& layer, int index, const Rows& rows) = 0;
  virtual void attend(int index, const Rows& rows) = 0;
  virtual void attention_output(const LayerWeights& layer, const Rows& rows) = 0;
  virtual void mlp_input(const LayerWeights& layer, const Rows& rows) = 0;
  virtual void mlp_output(const LayerWeights& layer, const Rows& rows) = 0;
  /// Logits of the chosen rows of the pass, at most kLogitRows: out is [which.size(), vocab] in
  /// host memory.
  virtual void logits(const DeviceWeight& norm, const DeviceWeight& head,
                      std::span<const int> which, std::span<float> out) = 0;
  static constexpr int kLogitRows = 16;

  // The end of a pass, after the logits() that it wants or instead of them.
  /// All rows of the pass are in the cache (or will be before anything that comes later).
  virtual void end_pass() {}
  /// Most rows of a pass that ends with choose(); 0: none can.
  virtual int most_choices() const { return 0; }
  /// Stage 7 with the choice of the next token for every row of the pass, in order, and its end.
  /// Does not wait for the device: returns a ticket for chosen(). At most kChoicesAhead tickets may
  /// be open.
  virtual unsigned choose(const DeviceWeight& norm, const DeviceWeight& head,
                          std::span<const ChoiceRule> rules);
  /// Waits for what choose() chose. out: [rows] of that pass.
  virtual void chosen(unsigned ticket, std::span<Choice> out);
  static constexpr int kChoicesAhead = 2;

  // For tests: what a stage left, and setting up what it is to find. [R, width].
  virtual std::vector<float> read(Activation activation, int rows) const = 0;
  virtual void write(Activation activation, std::span<const float> values) = 0;
};

/// The CPU backend. threads 0: as many as this process may use.
std::unique_ptr<Backend> make_cpu_backend(int threads);

/// The CUDA backend; defined in cuda/. Throws device if there is no driver or no usable GPU, with
/// the reason.
std::unique_ptr<Backend> make_cuda_backend(int ordinal);

/// What options.device asks for; says to the log why automatic fell back to the CPU.
std::unique_ptr<Backend> make_backend(const ModelOptions& options);

}  // namespace guanaco
