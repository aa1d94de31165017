#pragma once

// Stage 2 for few rows: what becomes of the outputs of RMSNorm and the fused Q|K|V product: RoPE,
// and the append of K and V to the cache pages. Strips of query and key heads hold the pairs
// (i, i + head_dim / 2) that rotate together in rows g and g + 8.

#include "exchange.cuh"
#include "pass.h"

namespace guanaco::cuda {

/// angles: [tokens][head_dim / 2] cosine and sine. Rows of the output: all query heads, key heads,
/// value heads, for the attention of this pass; later ones find K and V in the pages.
__device__ inline void rotate_and_append(const PassStage& stage, const PassArgs& args,
                                         const float2* angles, int strip, int g, int token,
                                         float2 y, unsigned parity) {
  const AttentionShape& shape = args.shape;
  const int strips_a_head = shape.head_dim / kStripOutputs;
  int head = strip / strips_a_head;
  const int s = strip % strips_a_head, half = shape.head_dim / 2;
  const bool is_value = head >= shape.heads + shape.kv_heads;
  const int first = is_value ? s * kStripOutputs + g : s * 8 + g;
  const int second = first + (is_value ? 8 : half);
  if (!is_value) {
    const float2 angle = angles[token * half + first];
    y = {y.x * angle.x - y.y * angle.y, y.y * angle.x + y.x * angle.y};
  }
  float* row = stage.output + std::size_t(token) * stage.width + head * shape.head_dim;
  publish(row + first, y.x, parity);
  publish(row + second, y.y, parity);
  if (head < shape.heads || token >= args.rows.count) return;
  head -= shape.heads;  // K heads, then V heads: as in the page
  const int position = args.rows.positions[token];
  __half* cached = args.rows.tables[token][position / 32] + stage.layer * shape.layer_elements() +
                   (std::size_t(head) * 32 + position % 32) * shape.head_dim;
  cached[first] = __float2half_rn(value_of(__float_as_uint(y.x)));
  cached[second] = __float2half_rn(value_of(__float_as_uint(y.y)));
}

}  // namespace guanaco::cuda
