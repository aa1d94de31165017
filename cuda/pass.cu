// A pass of up to 8 rows, from token ids to logits, as one kernel: one thread block on every
// multiprocessor walks through the list of stages, and all work on each. See weight_ring.cuh for
// how the memory is kept busy, exchange.cuh for how the thread blocks hand each other results,
// streamed_linear.cuh and attend.cuh for the stages.

#include "attend.cuh"
#include "launch.cuh"
#include "rotary.cuh"
#include "streamed_linear.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kAllThreads = kPassThreads + kFeedWarps * kWarp;

/// Stage 1. A few words a thread.
template <int kTokens>
__device__ void embed_rows(const PassShared<kTokens>& shared, const PassStage& stage) {
  const PassArgs& args = shared.args;
  const unsigned parity = shared.parity(stage.output_buffer, stage.output_parity);
  for (int i = blockIdx.x * kPassThreads + threadIdx.x; i < kTokens * args.hidden;
       i += gridDim.x * kPassThreads) {
    const int row = i / args.hidden;
    float value = 0;
    if (row < args.rows.count) {
      const int token = args.rows.chosen ? args.chosen_tokens[row] : args.rows.tokens[row];
      value = load_float(args.table, args.table_type,
                         std::size_t(token) * args.hidden + i % args.hidden);
    }
    publish(stage.output + i, value, parity);
  }
}

/// What does not depend on a stage: the shares of every linear, the rows, the angles of RoPE.
template <int kTokens>
__device__ void prepare(const PassShared<kTokens>& shared, int warp, int lane) {
  const PassArgs& args = shared.args;
  if (lane == 0 && warp < kPassWarps)
    for (int i = 0; i < args.layout.slots; ++i) {
      shared.full(warp)[i].init(kCopyArrivals);
      shared.free(warp)[i].init(1);
    }
  for (int i = threadIdx.x; i < args.plan_count * kPassWarps; i += kAllThreads)
    share_out(shared.plans()[i / kPassWarps], args.plans[i / kPassWarps], i % kPassWarps);
  for (int i = threadIdx.x; i < args.stage_count; i += kAllThreads) {
    const PassStage& stage = args.stages[i];
    shared.feed()[i] = {stage.blocks, stage.kind == StageKind::attend ? kFeedCache : stage.plan,
                        stage.layer};
  }
  int* arrived = shared.arrived();
  for (int i = threadIdx.x; i < (args.layout.rows - args.layout.arrived) / int(sizeof(int));
       i += kAllThreads)
    arrived[i] = 0;
  if (threadIdx.x < args.rows.count) {
    const FewRows& rows = args.rows;
    const int r = threadIdx.x, position = rows.positions[r], octets = position / kOctet + 1;
    shared.rows()[r] = {rows.tables[r], position,
                        octets,         min(args.splits, (octets + kPassWarps - 1) / kPassWarps),
                        rows.first[r],  rows.positions[rows.first[r]]};
  }
  const int half = args.shape.head_dim / 2;
  for (int i = threadIdx.x; i < args.rows.count * half; i += kAllThreads)
    shared.angles()[i] =
        rotary_angle(args.rotary, i % half, args.shape.head_dim, args.rows.positions[i / half]);
}

template <int kTokens, int kDim>
__global__ void __launch_bounds__(kAllThreads, 1)
    pass_kernel(const __grid_constant__ PassArgs args) {
  extern __shared__ __align__(128) std::uint8_t memory[];
  const PassShared<kTokens> shared{memory, args};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  prepare(shared, warp, lane);
  __syncthreads();
  if (warp >= kPassWarps) {
    const Feed feed{args, shared.feed(), shared.plans(), shared.rows()};
    return feed_rings<kTokens>(feed, shared_address(shared.ring(0)), shared_address(shared.full(0)),
                               (warp - kPassWarps) * kRingsFed, lane);
  }
  const PassStage* const stages = args.stages;
  const auto fetch_stage = [&](int index) {  // a lane's part of the description of a stage
    return lane < int(sizeof(PassStage) / sizeof(uint4)) && index < args.stage_count
               ? __ldg(reinterpret_cast<const uint4*>(stages + index) + lane)
               : uint4{};
  };
  const auto keep_stage = [&](int index, const uint4& part) {
    if (lane < int(sizeof(PassStage) / sizeof(uint4)))
      reinterpret_cast<uint4*>(shared.stage(warp, index % 2))[lane] = part;
    __syncwarp();
  };
  keep_stage(0, fetch_stage(0));
  Ring ring(shared.ring(warp), shared.full(warp), shared.free(warp), args.layout.slots,
            args.layout.slot_bytes, lane);
  Patience patience;
  int which = 0;
#pragma unroll 1
  for (int index = 0; index < args.stage_count; ++index) {
    const PassStage& stage = *shared.stage(warp, index % 2);
    const uint4 next = fetch_stage(index + 1);  // arrives while this stage runs
    if (stage.kind == StageKind::embed) {
      embed_rows(shared, stage);
    } else if (stage.kind == StageKind::attend) {
      const AttendStage<kTokens, kDim> attend{shared,
                                              stage,
                                              reinterpret_cast<float*>(shared.records(which)),
                                              args.tag + unsigned(index),
                                              warp,
                                              lane,
                                              patience};
      attend.run(ring);
    } else {
      run_linear(shared, stage, index, which, ring, patience, warp, lane);
      which ^= 1;
    }
    keep_stage(index + 1, next);
    if (patience.lost) *args.failed = unsigned(index) + 1;
  }
}

}  // namespace

void run_pass(const PassArgs& args, int tokens, const DeviceLimits& limits, cudaStream_t stream) {
  const auto launch = [&]<int kTokens, int kDim>() {
    const auto kernel = pass_kernel<kTokens, kDim>;
    // At every launch: another model in this process may have asked for less.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               args.layout.bytes),
          "cudaFuncSetAttribute");
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(limits.multiprocessors));
    config.blockDim = dim3(unsigned(kAllThreads));
    config.dynamicSmemBytes = std::size_t(args.layout.bytes);
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, args), "cudaLaunchKernelEx");
  };
  const auto of_dim = [&]<int kTokens>() {
    if (args.shape.head_dim <= 64) return launch.template operator()<kTokens, 64>();
    if (args.shape.head_dim <= 128) return launch.template operator()<kTokens, 128>();
    return launch.template operator()<kTokens, 256>();
  };
  if (tokens == 1) {
    of_dim.template operator()<1>();
  } else {
    of_dim.template operator()<kStreamRows>();
  }
}

}  // namespace guanaco::cuda
