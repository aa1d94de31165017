// Stage 1 for many rows: the residual stream of each row starts as the row of the embedding table
// that belongs to its token. The first kernel of a pass, so it also prepares what the others need
// of a row: rotary angles, and the page that takes its K and V. Bound by latency: one thread block
// a row.

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rotary.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(const void* table, int type, int hidden, AttentionShape shape,
                             RotaryTable rotary, PassRows rows, float* residual) {
  launch_dependents();
  wait_for_predecessors();
  const int row = blockIdx.x;
  if (row >= *rows.count) return;
  const int position = rows.positions[row];
  if (threadIdx.x == 0) rows.append[row] = const_cast<__half*>(rows.tables[row][position / 32]);
  for (int i = threadIdx.x; i < shape.head_dim / 2; i += kThreads) {
    rows.angles[std::size_t(row) * (shape.head_dim / 2) + i] =
        rotary_angle(rotary, i, shape.head_dim, position);
  }
  const std::size_t from = std::size_t(rows.tokens[row]) * hidden;
  for (int i = threadIdx.x; i < hidden; i += kThreads)
    residual[std::size_t(row) * hidden + i] = load_float(table, type, from + i);
}

}  // namespace

void embed(const void* table, int type, int hidden, const AttentionShape& shape,
           const RotaryTable& rotary, const PassRows& rows, int most_rows, float* residual,
           const DeviceLimits& limits, cudaStream_t stream) {
  launch_kernel(embed_kernel, dim3(unsigned(most_rows)), kThreads, 0, limits, stream, table, type,
                hidden, shape, rotary, rows, residual);
}

}  // namespace guanaco::cuda
