#pragma once

// Stages 4 and 6 for few rows: the O and the down product are added to the residual stream, which
// goes from one buffer to the other.

#include "exchange.cuh"
#include "pass.h"

namespace guanaco::cuda {

__device__ inline void add_to_residual(const PassStage& stage, int strip, int g, int token,
                                       float2 y, float2 addend, unsigned parity) {
  const int first = strip * kStripOutputs + g;
  float* row = stage.output + std::size_t(token) * stage.width;
  if (first < stage.width) publish(row + first, addend.x + y.x, parity);
  if (first + 8 < stage.width) publish(row + first + 8, addend.y + y.y, parity);
}

}  // namespace guanaco::cuda
