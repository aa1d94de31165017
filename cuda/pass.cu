// A pass of up to 8 rows, from token ids to logits, as one kernel: one thread block on every
// multiprocessor walks through the list of stages, and all work on each. See weight_ring.cuh for
// how the memory is kept busy, exchange.cuh for how the thread blocks hand each other results,
// streamed_linear.cuh and attend.cuh for the stages.

#include "attend.cuh"
#include "finish_strips.cuh"
#include "launch.cuh"
#include "rotary.cuh"
#include "streamed_linear.cuh"

namespace guanaco::cuda {
namespace {

constexpr int kAllThreads = kPassThreads + (kFinishWarps + kFeedWarps) * kWarp;

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
__device__ void prepare(const PassShared<kTokens>& shared) {
  const PassArgs& args = shared.args;
  for (int i = threadIdx.x; i < args.layout.slots; i += kAllThreads) {
    shared.full()[i].init(kCopyArrivals);
    shared.free()[i].init(1);
  }
  for (int i = threadIdx.x; i < strip_slots(kTokens); i += kAllThreads) {
    shared.strip_full()[i].init(args.layout.strip_units);
    shared.strip_free()[i].init(1);
    shared.freed()[i] = 0;
  }
  for (int i = threadIdx.x; i < args.plan_count; i += kAllThreads)
    share_out(shared.plans()[i], args.plans[i]);
  for (int i = threadIdx.x; i < 2 * kTokens * args.layout.squares_stride; i += kAllThreads)
    shared.squares(0)[i] = 0;
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
  prepare(shared);
  __syncthreads();
  if (warp >= kPassWarps + kFinishWarps) {
    const Feed feed{args,
                    shared.plans(),
                    shared.rows(),
                    shared_address(memory),
                    shared_address(shared.full()),
                    shared_address(shared.free())};
    return Feeder<kTokens>(feed, warp - kPassWarps - kFinishWarps, lane).run();
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
  Ring ring(memory, shared.full(), shared.free(), args.layout.slots, args.layout.slot_bytes, warp,
            lane);
  Patience patience;
  int which = 0;
  unsigned strips = 0;  // of the linears before
#pragma unroll 1
  for (int index = 0; index < args.stage_count; ++index) {
    const PassStage& stage = *shared.stage(warp, index % 2);
    const uint4 next = fetch_stage(index + 1);  // arrives while this stage runs
    const unsigned tag = args.tag + unsigned(index);
    if (stage.plan >= 0) {
      const BlockPlan& plan = shared.plans()[stage.plan];
      if (warp < kPassWarps) {
        run_linear(shared, stage, which, strips, ring, patience, warp, lane);
      } else {
        LinearStage<kTokens> linear{shared, stage, plan,     shared.squares(which),
                                    tag,    lane,  patience, {}};
        finish_linear(linear, strips, warp - kPassWarps);
      }
      which ^= 1;
      strips += unsigned(plan.strip_count);
    } else if (warp >= kPassWarps) {
      // Nothing to finish.
    } else if (stage.kind == StageKind::embed) {
      embed_rows(shared, stage);
    } else {
      const AttendStage<kTokens, kDim> attend{
          shared, stage, reinterpret_cast<float*>(shared.records()), tag, warp, lane, patience};
      attend.run(ring);
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
