#include "backend/cpu/cpu_backend.h"

// Stage 3: softmax(Q K^T) V over the pages of each row's sequence.
namespace guanaco::cpu {

void CpuBackend::attend(int index, const Rows& rows) {
  const int d = config_.head_dim, group = config_.heads / config_.kv_heads;
  const int tiles = int(tiles_.size());
  pool_.parallel_for(config_.kv_heads * tiles, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const int kv_head = i / tiles;
      const Tile& tile = tiles_[std::size_t(i % tiles)];
      Query queries[kMaxQueries];
      for (int j = 0; j < tile.count; ++j) {
        const int row = tile.row + (tile.first + j) / group;
        const int head = kv_head * group + (tile.first + j) % group;
        const std::size_t place = std::size_t(row * config_.heads + head) * std::size_t(d);
        queries[j] = {scratch_.query + place, scratch_.attended + place,
                      rows.positions[std::size_t(row)] + 1};
      }
      kernels_.attend(queries, tile.count, pages(rows, tile.row).head(index, kv_head), d);
    }
  });
}

}  // namespace guanaco::cpu
