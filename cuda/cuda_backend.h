#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cuda_support.h"
#include "few_rows.h"
#include "kernels.h"
#include "prompt.h"
#include "weights.h"

namespace guanaco::cuda {

/// The cache of one sequence: pages that follow each other, and their addresses on the device.
struct DevicePages final : KvPages {
  explicit DevicePages(cudaStream_t stream_in) : stream(stream_in) {}
  ~DevicePages() override { static_cast<void>(cudaStreamSynchronize(stream)); }
  cudaStream_t stream;  ///< whose passes may use them
  DeviceBuffer memory, table;
};

/// Device memory of the rows of a prompt's pass, and pinned memory they are uploaded from.
class RowsBuffer {
 public:
  RowsBuffer() = default;
  RowsBuffer(int most_rows, int head_dim);
  /// Bytes on the device for so many rows.
  static std::size_t bytes(int most_rows, int head_dim);

  /// Copies what the host knows of the rows; waits until the last upload was made.
  void upload(const Rows& rows, cudaStream_t stream);

  PassRows rows;  ///< as kernels see them
  int most_rows = 0;

 private:
  DeviceBuffer device_;
  PinnedBuffer host_;
  Event uploaded_;
  std::size_t upload_bytes_ = 0;
};

/// The seven stages on one GPU. A pass of few rows (FewRowPasses::most_rows()) is one kernel that
/// streams the packed weights; more rows multiply dequantised panels (prompt.h).
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int ordinal);
  ~CudaBackend() override;

  std::string description() const override { return description_; }
  bool is_host() const override { return false; }

  std::uint64_t linear_bytes(std::span<const Linear> parts) const override {
    return weight_bytes(parts);
  }
  std::uint64_t table_bytes(const StoredTensor& table) const override { return table.entry->bytes; }
  std::uint64_t norm_bytes(const LlamaConfig& config) const override;
  std::uint64_t scratch_bytes(const LlamaConfig& config, int rows) const override;
  std::uint64_t cache_bytes(const LlamaConfig& config, int tokens) const override;
  std::uint64_t allocated(std::uint64_t bytes) const override;
  std::uint64_t loading_bytes(const Checkpoint& checkpoint) const override;
  std::uint64_t free_bytes() const override;

  void reserve(const LlamaConfig& config, int rows) override;
  Weight load_linear(std::span<const Linear> parts) override;
  Weight load_norm(const StoredTensor& norm) override;
  Weight load_table(const StoredTensor& table) override;
  void loaded() override;
  std::unique_ptr<KvPages> make_pages(const LlamaConfig& config, int tokens) override;
  int rows_of_pass(int waiting) const override;

  void embed(const DeviceWeight& table, const Rows& rows) override;
  void attention_input(const LayerWeights& layer, int index, const Rows& rows) override;
  void attend(int index, const Rows& rows) override;
  void attention_output(const LayerWeights& layer, const Rows& rows) override;
  void mlp_input(const LayerWeights& layer, const Rows& rows) override;
  void mlp_output(const LayerWeights& layer, const Rows& rows) override;
  void logits(const DeviceWeight& norm, const DeviceWeight& head, std::span<const int> which,
              std::span<float> out) override;
  void end_pass() override;
  int most_choices() const override { return passes_->most_rows(); }
  unsigned choose(const DeviceWeight& norm, const DeviceWeight& head,
                  std::span<const ChoiceRule> rules) override;
  void chosen(unsigned ticket, std::span<Choice> out) override;

  std::vector<float> read(Activation activation, int rows) const override;
  void write(Activation activation, std::span<const float> values) override;

 private:
  void use() const;  ///< makes the GPU this thread's current one
  bool few(const Rows& rows) const { return rows.count() <= passes_->most_rows(); }
  std::pair<float*, int> prompt_activation(Activation activation) const;  ///< and its width
  void prompt_embed(const DeviceTable& table, const Rows& rows);
  void prompt_residual_stage(const DeviceWeight& linear, const float* input, int rows);
  void wait() const;  ///< for all passes

  int ordinal_;
  std::string description_;
  DeviceLimits limits_;
  Stream stream_;
  LlamaConfig config_;
  AttentionShape shape_;
  RotaryTable rotary_;
  int rows_ = 0;
  std::optional<Weights> weights_;  ///< while loading

  DeviceBuffer frequencies_, logits_;
  PinnedBuffer host_logits_;

  // Few rows.
  std::unique_ptr<FewRowPasses> passes_;
  bool few_last_ = false;  ///< the pass under way has few rows
  /// The choices of one pass on their way to the host.
  struct Ticket {
    unsigned number = 0;
    Event done;
  };
  Ticket tickets_[kChoicesAhead];
  unsigned last_ticket_ = 0;
  DeviceBuffer chosen_tokens_, sample_scratch_;
  PinnedBuffer sampled_;  ///< [kChoicesAhead][kStreamRows]

  // Prompts.
  DeviceBuffer residual_, query_, attended_, mlp_, segments_;
  PinnedBuffer host_segments_;
  RowsBuffer many_;
  std::unique_ptr<PromptScratch> prompt_;
  int segment_count_ = 0, most_segment_rows_ = 0;
};

}  // namespace guanaco::cuda
