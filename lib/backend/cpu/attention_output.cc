#include "backend/cpu/cpu_backend.h"

// Stage 4: the O product, added to the residual.
namespace guanaco::cpu {

void CpuBackend::attention_output(const LayerWeights& layer, const Rows& rows) {
  multiply(*layer.output, scratch_.attended, rows.count(), scratch_.residual, true);
}

}  // namespace guanaco::cpu
