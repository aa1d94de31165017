// Stage 2 for few rows: RMSNorm, the fused Q|K|V product (weight_stream.cuh), and in its epilogue
// RoPE and the append of K and V to the cache pages. Strips of query and key heads hold the pairs
// (i, i + head_dim / 2) that rotate together in rows g and g + 8, so one thread has both.

#include "weight_stream.cuh"

namespace guanaco::cuda {
namespace {

struct RotateAndAppend {
  AttentionInput out;

  __device__ void operator()(int strip, int g, int token, float2 y) const {
    const AttentionShape& shape = out.shape;
    const int strips_a_head = shape.head_dim / kStripOutputs;
    int head = strip / strips_a_head;
    const int s = strip % strips_a_head, half = shape.head_dim / 2;
    const bool is_value = head >= shape.heads + shape.kv_heads;
    const int first = is_value ? s * kStripOutputs + g : s * 8 + g;
    const int second = first + (is_value ? 8 : half);
    if (!is_value) {
      const float2 angle = out.rows.angles[std::size_t(token) * half + first];
      y = {y.x * angle.x - y.y * angle.y, y.y * angle.x + y.x * angle.y};
    }
    if (head < shape.heads) {
      float* query = out.query + (std::size_t(token) * shape.heads + head) * shape.head_dim;
      query[first] = y.x;
      query[second] = y.y;
      return;
    }
    head -= shape.heads;  // K heads, then V heads: as in the page
    __half* row = out.rows.append[token] + out.layer * shape.layer_elements() +
                  (std::size_t(head) * 32 + out.rows.positions[token] % 32) * shape.head_dim;
    row[first] = __float2half_rn(y.x);
    row[second] = __float2half_rn(y.y);
  }
};

}  // namespace

void attention_input(const LinearArgs& args, int tokens, const AttentionInput& out,
                     const DeviceLimits& limits, cudaStream_t stream) {
  launch_linear(args, tokens, RotateAndAppend{out}, limits, stream);
}

}  // namespace guanaco::cuda
