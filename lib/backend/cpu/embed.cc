#include "backend/cpu/cpu_backend.h"
#include "support/check.h"
#include "support/half.h"

// Stage 1: token ids -> residual stream; and what all layers of the pass share: the rotary angles
// of the rows and how attention is cut into tiles.
namespace guanaco::cpu {
namespace {

void widen(const Table& table, TokenId token, float* out) {
  const std::size_t first = std::size_t(token) * std::size_t(table.width);
  if (table.element == Element::f32) {
    const float* row = reinterpret_cast<const float*>(table.memory.data()) + first;
    std::copy_n(row, table.width, out);
    return;
  }
  const auto* row = reinterpret_cast<const std::uint16_t*>(table.memory.data()) + first;
  std::transform(row, row + table.width, out,
                 table.element == Element::f16 ? half_to_float : bfloat_to_float);
}

}  // namespace

void CpuBackend::embed(const DeviceWeight& weight, const Rows& rows) {
  const auto& table = static_cast<const Table&>(weight);
  require(rows.count() <= rows_, ErrorCode::internal, "{} rows in a pass of {}", rows.count(),
          rows_);
  for (int r = 0; r < rows.count(); ++r) {
    const std::size_t i = std::size_t(r);
    require(rows.tokens[i] >= 0 && rows.tokens[i] < table.rows, ErrorCode::invalid_argument,
            "token: expected 0 to {}, found {}", table.rows - 1, rows.tokens[i]);
    require(rows.positions[i] < pages(rows, r).tokens(), ErrorCode::internal,
            "position {} in a cache of {}", rows.positions[i], pages(rows, r).tokens());
  }

  const std::size_t half = std::size_t(config_.head_dim) / 2;
  pool_.parallel_for(rows.count(), [&](int begin, int end) {
    for (std::size_t r = std::size_t(begin); r < std::size_t(end); ++r) {
      widen(table, rows.tokens[r], scratch_.residual + r * std::size_t(config_.hidden));
      rotary_->angles(rows.positions[r], {scratch_.cosine + r * half, half},
                      {scratch_.sine + r * half, half});
    }
  });

  const int group = config_.heads / config_.kv_heads;  // query heads that share a key/value head
  tiles_.clear();
  for (int row = 0; row < rows.count();) {
    int end = row + 1;
    while (end < rows.count() &&
           rows.sequences[std::size_t(end)] == rows.sequences[std::size_t(row)])
      ++end;
    const int pairs = (end - row) * group;
    for (int first = 0; first < pairs; first += kMaxQueries)
      tiles_.push_back({row, first, std::min(kMaxQueries, pairs - first)});
    row = end;
  }
}

}  // namespace guanaco::cpu
