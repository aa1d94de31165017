// The choice of the next token, as lib/text/sampler.cc makes it, from logits that stay on the
// device (ranking.cuh says how). The token goes to the rows of the next pass and, with its
// probability, to the host in mapped memory. Bound by latency: [slices][rows] thread
// blocks, of which the last of a row goes on alone.

#include <cfloat>
#include <climits>
#include <cmath>

#include "device.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ranking.cuh"
#include "text/philox.h"

namespace guanaco::cuda {
namespace {

using namespace ranking;

/// The token that the sampler's options choose (lib/text/sampler.cc, draw()).
__device__ std::uint64_t draw(Ranking& ranking, const SampleParameters& parameters) {
  double mass = ranking.prepare();
  int kept = INT_MAX;
  const auto keep_until = [&](const Condition& condition) {
    const Place last = ranking.search(condition);
    kept = last.rank + 1;
    mass = last.before + ranking.weight(last.key);
  };
  if (parameters.top_k > 0) keep_until({.count = parameters.top_k});
  if (parameters.top_p < 1 || parameters.min_p > 0)
    keep_until({.mass = parameters.top_p < 1 ? parameters.top_p * mass : DBL_MAX,
                .count = kept,
                .log_weight = log(double(parameters.min_p))});
  const double target = uniform(parameters.seed, parameters.draws) * mass;
  return ranking.search({.mass = target, .inclusive = true, .count = kept}).key;
}

/// Grid: [slices][rows]. kResident: thread blocks that share a multiprocessor, at the price of
/// registers.
template <int kResident>
__global__ void __launch_bounds__(kSlice, kResident)
    sample_kernel(const float* logits, int vocab, const __grid_constant__ SampleRows rows,
                  unsigned step, int* tokens, SampledToken* sampled_tokens, void* memory) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool last;
  launch_dependents();
  wait_for_predecessors();
  const int row = blockIdx.y, slices = gridDim.x, token = blockIdx.x * kSlice + threadIdx.x;
  const SampleParameters& parameters = rows.of[row];
  const float logit = token < vocab ? logits[std::size_t(row) * vocab + token] : -INFINITY;
  const Scratch scratch(memory, slices, row);
  sort_slice(logit, parameters, int(blockIdx.x), scratch);

  // The last block of the row goes on; what the others wrote is visible to it.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(scratch.arrived, 1u) == unsigned(slices) - 1;
    if (last) *scratch.arrived = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;

  Ranking ranking(scratch, slices, parameters.temperature, shared);
  SampledToken sampled{0, -1, 0};
  if (ranking.begin()) {
    const std::uint64_t key =
        parameters.temperature == 0 ? ranking.first() : draw(ranking, parameters);
    sampled.token = token_of(key);
    sampled.logprob = logit_of(key) - logit_of(ranking.first()) - ranking.log_sum();
  }
  if (threadIdx.x != 0) return;
  tokens[row] = max(sampled.token, 0);
  volatile SampledToken* out = sampled_tokens + row;
  out->token = sampled.token;
  out->logprob = sampled.logprob;
  __threadfence_system();  // the host reads the rest once it has seen the step
  out->step = step;
}

int slices_of(int vocab) { return (vocab + kSlice - 1) / kSlice; }

}  // namespace

std::size_t sample_scratch_bytes(int vocab, int rows) {
  return std::size_t(rows) * Scratch::bytes(slices_of(vocab));
}

void sample(const float* logits, int vocab, const SampleRows& rows, unsigned step, int* tokens,
            SampledToken* out, void* scratch, const DeviceLimits& limits, cudaStream_t stream) {
  const int slices = slices_of(vocab);
  const auto kernel = rows.count == 1 ? sample_kernel<1> : sample_kernel<2>;
  launch_kernel(kernel, dim3(unsigned(slices), unsigned(rows.count)), kSlice,
                Ranking::shared_bytes(slices), limits, stream, logits, vocab, rows, step, tokens,
                out, scratch);
}

}  // namespace guanaco::cuda
