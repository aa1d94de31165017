#include "backend/cpu/cpu_backend.h"

// Stage 2: RMSNorm, the fused Q|K|V product, RoPE, and K and V into the cache.
namespace guanaco::cpu {
namespace {

/// Element i of a head turns with element i + half (reference/formats.md 2.1).
void rotate(const float* head, const float* cosine, const float* sine, int half, float* out) {
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    out[i] = a * cosine[i] - b * sine[i];
    out[i + half] = b * cosine[i] + a * sine[i];
  }
}

}  // namespace

void CpuBackend::attention_input(const LayerWeights& layer, int index, const Rows& rows) {
  normalise(*layer.attention_norm, rows.count());
  multiply(*layer.qkv, scratch_.normed, rows.count(), scratch_.product, false);

  const int d = config_.head_dim, half = d / 2;
  const int q_width = config_.heads * d, kv_width = config_.kv_heads * d;
  pool_.parallel_for(rows.count(), [&](int begin, int end) {
    for (int r = begin; r < end; ++r) {
      const std::size_t row = std::size_t(r);
      float* const q = scratch_.product + row * std::size_t(q_width + 2 * kv_width);
      float* const k = q + q_width;
      float* const query = scratch_.query + row * std::size_t(q_width);
      const float* const cosine = scratch_.cosine + row * std::size_t(half);
      const float* const sine = scratch_.sine + row * std::size_t(half);
      for (int h = 0; h < q_width; h += d) rotate(q + h, cosine, sine, half, query + h);
      for (int h = 0; h < kv_width; h += d) rotate(k + h, cosine, sine, half, k + h);
      pages(rows, r).append(index, rows.positions[row], k, k + kv_width);
    }
  });
}

}  // namespace guanaco::cpu
