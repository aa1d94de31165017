#pragma once

// Stage 5 for few rows: what becomes of the outputs of RMSNorm and the fused gate|up product:
// SwiGLU. A strip holds 8 outputs of the gate in rows g and the same of the up projection in rows
// g + 8.

#include "exchange.cuh"
#include "pass.h"

namespace guanaco::cuda {

/// place: of this output.
__device__ inline void store_swiglu(const PassStage& stage, int strip, int g, int token, float2 y,
                                    int place, unsigned parity) {
  const int output = strip * 8 + g;
  if (output < stage.width)
    publish(stage.output + std::size_t(token) * stage.width + place,
            y.x / (1.0f + __expf(-y.x)) * y.y, parity);
}

}  // namespace guanaco::cuda
