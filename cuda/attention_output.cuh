#pragma once

// Stages 4 and 6 for few rows: the O and the down product are added to the residual stream, which
// goes from one buffer to the other, and is prepared for the RMSNorm that follows.

#include "exchange.cuh"
#include "pass.h"

namespace guanaco::cuda {

/// Rows g and g + 8 of a strip of the residual stream, x; `lanes` hold the strip, a token in every
/// fourth. norm and place: of rows g and g + 8.
__device__ inline void publish_residual(const PassStage& stage, int strip, int g, int token,
                                        float2 x, float2 norm, int2 place, unsigned parity,
                                        unsigned lanes) {
  const int first = strip * kStripOutputs + g;
  const std::size_t row = std::size_t(token) * stage.width;
  const bool has_first = first < stage.width, has_second = first + 8 < stage.width;
  // What all wait for comes first.
  if (has_first) publish(stage.normed + row + place.x, x.x * norm.x, parity);
  if (has_second) publish(stage.normed + row + place.y, x.y * norm.y, parity);
  float square = (has_first ? x.x * x.x : 0.0f) + (has_second ? x.y * x.y : 0.0f);
  for (int lane = 4; lane < kWarp; lane *= 2) square += __shfl_xor_sync(lanes, square, lane);
  if (g == 0)
    publish(stage.normed_squares + token * squares_stride(stage.width) + strip, square, parity);
  if (has_first) publish(stage.output + row + first, x.x, parity);
  if (has_second) publish(stage.output + row + first + 8, x.y, parity);
}

}  // namespace guanaco::cuda
