#pragma once

#include <memory>
#include <span>

#include "backend/backend.h"
#include "cuda_support.h"
#include "kernels.h"
#include "weight_loader.h"

// From a checkpoint's linears to weights on the device.
namespace guanaco::cuda {

struct DeviceLinear final : DeviceWeight {
  StreamedWeight streamed;
  DeviceBuffer blocks, order, place, bias;
};
struct DeviceNorm final : DeviceWeight {
  DeviceBuffer values;  ///< fp32 [hidden]
};
struct DeviceTable final : DeviceWeight {
  DeviceBuffer rows;  ///< [vocab, hidden] as in the file
  int type = 0;       ///< 0: F16, 1: BF16, 2: F32
};

/// How linears that share their input lie as one weight, from the headers alone: what reading g_idx
/// may still change is padding, and a fall back to fp32 where fused parts have different orders.
StreamedWeight plan_weight(std::span<const Linear> parts);
std::uint64_t weight_bytes(std::span<const Linear> parts);

/// Loads weights one after the other. Three parts are Q, K and V of heads of head_dim, two are gate
/// and up.
class Weights {
 public:
  explicit Weights(int head_dim) : head_dim_(head_dim) {}

  /// Throws malformed, out_of_memory, device.
  Weight linear(std::span<const Linear> parts);
  Weight norm(const StoredTensor& tensor);
  Weight table(const StoredTensor& tensor);

 private:
  WeightLoader& loader(std::size_t staging_bytes);
  void load_gptq(const GptqLinear& part, std::span<const std::int32_t> group, const StripMap& map,
                 const DeviceLinear& weight);
  void load_dense(const DenseLinear& part, const StripMap& map, const DeviceLinear& weight);

  int head_dim_;
  std::size_t staging_bytes_ = 0;
  std::unique_ptr<WeightLoader> loader_;
};

}  // namespace guanaco::cuda
