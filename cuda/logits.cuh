#pragma once

// Stage 7 for few rows: the outputs of the final RMSNorm and lm_head, for a later kernel or the
// host.

#include "pass.h"

namespace guanaco::cuda {

__device__ inline void store_logits(const PassStage& stage, const PassArgs& args, int strip, int g,
                                    int token, float2 y) {
  if (token >= args.rows.logits_count) return;
  const int first = strip * kStripOutputs + g;
  float* row = stage.output + std::size_t(token) * stage.width;
  if (first < stage.width) row[first] = y.x;
  if (first + 8 < stage.width) row[first + 8] = y.y;
}

}  // namespace guanaco::cuda
