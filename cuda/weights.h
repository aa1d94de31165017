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
///
/// Reading, copying and repacking overlap, also from weight to weight: a weight is filled when
/// finish() has returned, and what its loading found may be thrown by any later call. A weight that
/// was freed before must be the end of it: nothing but the destructor may follow.
class Weights {
 public:
  explicit Weights(int head_dim);

  /// Throws malformed, out_of_memory, device.
  Weight linear(std::span<const Linear> parts);
  Weight norm(const StoredTensor& tensor);
  Weight table(const StoredTensor& tensor);
  void finish();

 private:
  WeightLoader& loader(std::size_t staged_bytes);
  template <typename T>
  DeviceBuffer upload(const std::vector<T>& values, const char* purpose);
  void load_gptq(const GptqLinear& part, const StripMap& map, const StreamedWeight& weight);
  void load_dense(const DenseLinear& part, const StripMap& map, const StreamedWeight& weight);

  int head_dim_;
  DeviceBuffer bad_scale_;
  std::vector<StoredTensor> scales_;  ///< of the parts so far, by number
  std::size_t staging_bytes_ = 0;
  std::unique_ptr<WeightLoader> loader_;
};

}  // namespace guanaco::cuda
