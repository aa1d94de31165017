#include "backend/cpu/cpu_backend.h"

// Stage 5: RMSNorm, the fused gate|up product, SwiGLU.
namespace guanaco::cpu {

void CpuBackend::mlp_input(const LayerWeights& layer, const Rows& rows) {
  normalise(*layer.mlp_norm, rows.count());
  multiply(*layer.gate_up, scratch_.normed, rows.count(), scratch_.product, false);

  const std::size_t ffn = std::size_t(config_.ffn);
  pool_.parallel_for(rows.count(), [&](int begin, int end) {
    for (std::size_t r = std::size_t(begin); r < std::size_t(end); ++r) {
      const float* const gate = scratch_.product + r * 2 * ffn;
      kernels_.swiglu(gate, gate + ffn, config_.ffn, scratch_.mlp + r * ffn);
    }
  });
}

}  // namespace guanaco::cpu
