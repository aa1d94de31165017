// Stage 5 for few rows: RMSNorm, the fused gate|up product (weight_stream.cuh), and in its epilogue
// SwiGLU. A strip holds 8 outputs of the gate in rows g and the same of the up projection in rows g
// + 8.

#include "weight_stream.cuh"

namespace guanaco::cuda {
namespace {

struct SwiGlu {
  float* mlp;
  int ffn;

  __device__ void operator()(int strip, int g, int token, float2 y) const {
    const int output = strip * 8 + g;
    if (output < ffn) mlp[std::size_t(token) * ffn + output] = y.x / (1.0f + __expf(-y.x)) * y.y;
  }
};

}  // namespace

void mlp_input(const LinearArgs& args, int tokens, float* mlp, int ffn, const DeviceLimits& limits,
               cudaStream_t stream) {
  launch_linear(args, tokens, SwiGlu{mlp, ffn}, limits, stream);
}

}  // namespace guanaco::cuda
