#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cuda_support.h"
#include "kernels.h"
#include "prompt.h"
#include "weights.h"

namespace guanaco::cuda {

/// The cache of one sequence: pages that follow each other, and their addresses on the device.
struct DevicePages final : KvPages {
  DeviceBuffer memory, table;
};

/// Device memory of the rows of a pass, and pinned memory they are uploaded from.
class RowsBuffer {
 public:
  RowsBuffer() = default;
  RowsBuffer(int most_rows, int head_dim, unsigned* epoch);
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

/// The seven stages on one GPU. Up to kStreamRows rows stream the packed weights
/// (weight_stream.cuh); more multiply dequantised panels (prompt.h).
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
  std::uint64_t loading_bytes(const Checkpoint& checkpoint) const override;
  std::uint64_t free_bytes() const override;

  void reserve(const LlamaConfig& config, int rows) override;
  Weight load_linear(std::span<const Linear> parts) override;
  Weight load_norm(const StoredTensor& norm) override;
  Weight load_table(const StoredTensor& table) override;
  void loaded() override { weights_.reset(); }
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
  void use() const;  ///< makes the GPU this thread's current one
  /// What the kernel of a streamed linear needs; for several rows the input is staged first.
  LinearArgs streamed(const DeviceWeight& weight, const float* input, const DeviceWeight* norm,
                      int tokens, const int* which, const int* count);
  std::pair<float*, int> activation(Activation activation) const;  ///< and its width
  AttentionInput attention_target(int layer) const;
  void grow_attention(int tokens);
  bool few(const Rows& rows) const { return rows.count() <= kStreamRows; }
  const PassRows& pass_rows(const Rows& rows) const { return few(rows) ? few_.rows : many_.rows; }

  int ordinal_;
  std::string description_;
  DeviceLimits limits_;
  Stream stream_;
  LlamaConfig config_;
  AttentionShape shape_;
  RotaryTable rotary_;
  int rows_ = 0;
  std::optional<Weights> weights_;  ///< while loading

  DeviceBuffer epoch_, frequencies_, residual_, query_, attended_, mlp_, logits_, staged_, parts_;
  DeviceBuffer which_, segments_, attend_partial_, attend_arrived_;
  PinnedBuffer host_logits_, host_which_, host_segments_;
  RowsBuffer few_, many_;
  AttendScratch attend_;
  std::unique_ptr<PromptScratch> prompt_;
  int segment_count_ = 0, most_segment_rows_ = 0;
  unsigned stage_ = 0;  ///< streamed launches of this pass so far
};

}  // namespace guanaco::cuda
