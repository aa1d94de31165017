#include "backend/cpu/cpu_backend.h"
#include "support/check.h"

// Stage 7: final RMSNorm and the head, for the rows that asked.
namespace guanaco::cpu {

void CpuBackend::logits(const DeviceWeight& norm, const DeviceWeight& head,
                        std::span<const int> which, std::span<float> out) {
  const int count = int(which.size());
  const std::size_t outputs = std::size_t(static_cast<const PackedLinear&>(head).outputs);
  require(count <= rows_ && out.size() == which.size() * outputs, ErrorCode::internal,
          "logits of {} rows into {} numbers", count, out.size());
  const std::size_t hidden = std::size_t(config_.hidden);
  for (std::size_t i = 0; i < which.size(); ++i)
    kernels_.rms_norm(scratch_.residual + std::size_t(which[i]) * hidden,
                      static_cast<const Norm&>(norm).values.data(), config_.rms_norm_epsilon,
                      config_.hidden, scratch_.normed + i * hidden);
  multiply(head, scratch_.normed, count, out.data(), false);
}

}  // namespace guanaco::cpu
