// Stage 7 for few rows: final RMSNorm and lm_head (weight_stream.cuh).

#include "weight_stream.cuh"

namespace guanaco::cuda {
namespace {

struct StoreLogits {
  float* out;
  int vocab;

  __device__ void operator()(int strip, int g, int token, float2 y) const {
    const int first = strip * kStripOutputs + g;
    float* row = out + std::size_t(token) * vocab;
    if (first < vocab) row[first] = y.x;
    if (first + 8 < vocab) row[first + 8] = y.y;
  }
};

}  // namespace

void logits(const LinearArgs& args, int tokens, float* out, int vocab, const DeviceLimits& limits,
            cudaStream_t stream) {
  launch_linear(args, tokens, StoreLogits{out, vocab}, limits, stream);
}

}  // namespace guanaco::cuda
