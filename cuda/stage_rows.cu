// The input of a linear for several rows, staged once for all thread blocks of the kernel that
// follows: RMSNorm, the packed order, and the fragments of layout.h. With one row every thread
// block does this for itself (weight_stream.cuh), since a kernel boundary would cost more; with
// eight it would read eight rows 132 times. Bound by latency. One thread block takes a slice of one
// row's blocks; each adds up all squares of the row.

#include "weight_stream.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kSlices = 8;

template <WeightKind kKind>
__global__ void __launch_bounds__(kConsumers)
    stage_rows_kernel(LinearArgs args, const float* input, const int* which, std::uint8_t* staged) {
  __shared__ float squares_of[kConsumerWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, token = blockIdx.y;
  launch_dependents();
  wait_for_predecessors();
  const bool used = token < *args.rows;
  const float* x = input + std::size_t(used ? (which != nullptr ? which[token] : token) : 0) *
                               args.weight.inputs;

  float factor = used ? 1.0f : 0.0f;  // rows that are not used are staged as zeros
  if (args.norm != nullptr && used) {
    float squares = 0;
    for (int i = threadIdx.x; i < args.weight.inputs / 4; i += kConsumers) {
      const float4 v = reinterpret_cast<const float4*>(x)[i];
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    squares = warp_sum(squares);
    if (lane == 0) squares_of[warp] = squares;
    __syncthreads();
    squares = 0;
    for (int i = 0; i < kConsumerWarps; ++i) squares += squares_of[i];
    factor = rsqrtf(squares / float(args.weight.inputs) + args.epsilon);
  }
  float unused = 0;
  const int first = blockIdx.x * kConsumerWarps + warp, stride = kSlices * kConsumerWarps;
  if (is_simple(args.weight)) {
    stage_blocks<kKind, kStreamRows, true>(args, x, token, first, stride, staged, lane, factor,
                                           unused);
  } else {
    stage_blocks<kKind, kStreamRows, false>(args, x, token, first, stride, staged, lane, factor,
                                            unused);
  }
}

}  // namespace

void stage_rows(const LinearArgs& args, const float* input, const int* which, std::uint8_t* staged,
                const DeviceLimits& limits, cudaStream_t stream) {
  const auto launch = [&]<WeightKind kKind>() {
    launch_kernel(stage_rows_kernel<kKind>, dim3(kSlices, kStreamRows), kConsumers, 0, limits,
                  stream, args, input, which, staged);
  };
  switch (args.weight.kind) {
    case WeightKind::nibble:
      return launch.template operator()<WeightKind::nibble>();
    case WeightKind::byte:
      return launch.template operator()<WeightKind::byte>();
    case WeightKind::half:
      return launch.template operator()<WeightKind::half>();
    case WeightKind::bfloat:
      return launch.template operator()<WeightKind::bfloat>();
    case WeightKind::single:
      return launch.template operator()<WeightKind::single>();
  }
}

}  // namespace guanaco::cuda
