#include "backend/cpu/cpu_backend.h"

// Stage 6: the down product, added to the residual.
namespace guanaco::cpu {

void CpuBackend::mlp_output(const LayerWeights& layer, const Rows& rows) {
  multiply(*layer.down, scratch_.mlp, rows.count(), scratch_.residual, true);
}

}  // namespace guanaco::cpu
