// Stage 1: the residual stream of each row starts as the row of the embedding table that belongs to
// its token. The first kernel of a pass, so it also prepares what the others need of a row: rotary
// angles, and the page that takes its K and V. Bound by latency: one thread block a row.

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float load(const void* table, int type, std::size_t index) {
  if (type == 0) return __half2float(static_cast<const __half*>(table)[index]);
  if (type == 1) return __bfloat162float(static_cast<const __nv_bfloat16*>(table)[index]);
  return static_cast<const float*>(table)[index];
}

/// Frequency i at a position (lib/checkpoint/rotary.h says where they come from).
__device__ float frequency(const RotaryTable& rotary, int i, int head_dim, int position) {
  if (position < rotary.switch_position) return rotary.frequencies[i];
  if (rotary.long_frequencies != nullptr) return rotary.long_frequencies[i];
  const double length = position + 1.0;  // dynamic: the base grows with the length so far
  const double base =
      rotary.theta * pow(rotary.factor * length / rotary.context - (rotary.factor - 1),
                         double(head_dim) / (head_dim - 2));
  return float(pow(base, -2.0 * i / head_dim));
}

__global__ void embed_kernel(const void* table, int type, int hidden, AttentionShape shape,
                             RotaryTable rotary, PassRows rows, float* residual) {
  launch_dependents();
  wait_for_predecessors();
  const int row = blockIdx.x;
  if (row == 0 && threadIdx.x == 0) *rows.epoch += 1;
  if (row >= *rows.count) return;
  const int position = rows.positions[row];
  if (threadIdx.x == 0) rows.append[row] = const_cast<__half*>(rows.tables[row][position / 32]);
  for (int i = threadIdx.x; i < shape.head_dim / 2; i += kThreads) {
    float sine, cosine;
    sincosf(float(position) * frequency(rotary, i, shape.head_dim, position), &sine, &cosine);
    rows.angles[std::size_t(row) * (shape.head_dim / 2) + i] = {cosine * rotary.attention_factor,
                                                                sine * rotary.attention_factor};
  }
  const std::size_t from = std::size_t(rows.tokens[row]) * hidden;
  for (int i = threadIdx.x; i < hidden; i += kThreads)
    residual[std::size_t(row) * hidden + i] = load(table, type, from + i);
}

}  // namespace

void embed(const void* table, int type, int hidden, const AttentionShape& shape,
           const RotaryTable& rotary, const PassRows& rows, int most_rows, float* residual,
           const DeviceLimits& limits, cudaStream_t stream) {
  launch_kernel(embed_kernel, dim3(unsigned(most_rows)), kThreads, 0, limits, stream, table, type,
                hidden, shape, rotary, rows, residual);
}

}  // namespace guanaco::cuda
