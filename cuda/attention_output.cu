// Stages 4 and 6 for few rows: the O and the down product (weight_stream.cuh), added to the
// residual stream. One kernel serves both.

#include "weight_stream.cuh"

namespace guanaco::cuda {
namespace {

struct AddToResidual {
  float* residual;
  int hidden;

  __device__ void operator()(int strip, int g, int token, float2 y) const {
    const int first = strip * kStripOutputs + g;
    float* row = residual + std::size_t(token) * hidden;
    if (first < hidden) row[first] += y.x;
    if (first + 8 < hidden) row[first + 8] += y.y;
  }
};

}  // namespace

void attention_output(const LinearArgs& args, int tokens, float* residual, int hidden,
                      const DeviceLimits& limits, cudaStream_t stream) {
  launch_linear(args, tokens, AddToResidual{residual, hidden}, limits, stream);
}

void mlp_output(const LinearArgs& args, int tokens, float* residual, int hidden,
                const DeviceLimits& limits, cudaStream_t stream) {
  attention_output(args, tokens, residual, hidden, limits, stream);
}

}  // namespace guanaco::cuda
