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

/// Stage 1, and the stage that only prepares the residual stream for a norm. A strip for each half
/// of a warp.
template <int kTokens>
__device__ void begin_residual(const PassShared<kTokens>& shared, const PassStage& stage,
                               Patience& patience, int warp, int lane) {
  const PassArgs& args = shared.args;
  const unsigned parity = shared.parity(stage.output_buffer, stage.output_parity);
  const unsigned input_parity = shared.parity(stage.input_buffer, stage.input_parity);
  const int strips = squares_of(args.hidden), total = kTokens * strips;
  constexpr int kHalf = kWarp / 2;
  static_assert(kHalf == kStripOutputs);
  for (int first = 2 * (blockIdx.x * kPassWarps + warp); first < total;
       first += 2 * gridDim.x * kPassWarps) {
    const int item = first + lane / kHalf, row = item / strips;
    const int i = item % strips * kStripOutputs + lane % kHalf;
    const bool there = item < total && i < args.hidden;
    const std::size_t at = std::size_t(row) * args.hidden + i;
    float value = 0;
    if (there && row < args.rows.count) {
      if (stage.kind == StageKind::embed) {
        const int token = args.rows.chosen ? args.chosen_tokens[row] : args.rows.tokens[row];
        value = load_float(args.table, args.table_type, std::size_t(token) * args.hidden + i);
      } else if (stage.plain_input) {
        value = stage.input[std::size_t(args.rows.tokens[row]) * args.hidden + i];
      } else {
        value = await(stage.input + at, load_word(stage.input + at), input_parity, patience);
      }
    }
    const float square = warp_sum(value * value, kHalf);
    if (!there) continue;
    const int place = stage.place != nullptr ? __ldg(stage.place + i) : i;
    const float norm = stage.norm != nullptr ? __ldg(stage.norm + i) : 1.0f;
    publish(stage.normed + at - i + place, value * norm, parity);
    if (lane % kHalf == 0)
      publish(stage.normed_squares + row * squares_stride(args.hidden) + item % strips, square,
              parity);
    publish(stage.output + at, value, parity);
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
  if (threadIdx.x < kCounters) shared.begun()[threadIdx.x] = 0;
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

/// The list of stages as a warp walks through it: the description of the next arrives while one
/// runs.
template <int kTokens>
class StageWalk {
 public:
  __device__ StageWalk(const PassShared<kTokens>& shared, int warp, int lane)
      : shared_(shared), warp_(warp), lane_(lane) {
    fetch(0);
    next();
  }
  __device__ bool more() const { return index_ < shared_.args.stage_count; }
  __device__ int index() const { return index_; }
  __device__ const PassStage& stage() const { return *shared_.stage(warp_, index_ % 2); }
  __device__ void next() {
    ++index_;
    if (holds_part()) reinterpret_cast<uint4*>(shared_.stage(warp_, index_ % 2))[lane_] = part_;
    __syncwarp();
    fetch(index_ + 1);
  }

 private:
  __device__ bool holds_part() const { return lane_ < int(sizeof(PassStage) / sizeof(uint4)); }
  __device__ void fetch(int index) {
    if (holds_part() && index < shared_.args.stage_count)
      part_ = __ldg(reinterpret_cast<const uint4*>(shared_.args.stages + index) + lane_);
  }

  const PassShared<kTokens>& shared_;
  const int warp_, lane_;
  int index_ = -1;
  uint4 part_{};
};

/// What warps that compute do.
template <int kTokens, int kDim>
__device__ __forceinline__ void compute_stages(const PassShared<kTokens>& shared, int warp,
                                               int lane) {
  const PassArgs& args = shared.args;
  Ring ring(shared.memory, args.layout, warp, lane);
  Patience patience;
  unsigned strips = 0;  // of the linears before
#pragma unroll 1
  for (StageWalk walk(shared, warp, lane); walk.more(); walk.next()) {
    const PassStage& stage = walk.stage();
    const unsigned index = unsigned(walk.index());
    if (stage.plan >= 0) {
      run_linear(shared, stage, index, strips, ring, patience, warp, lane);
      strips += unsigned(shared.plans()[stage.plan].strip_count);
    } else if (stage.kind != StageKind::attend) {
      begin_residual(shared, stage, patience, warp, lane);
    } else {
      if (threadIdx.x == 0) store_release(shared_address(shared.begun()), index);
      const AttendStage<kTokens, kDim> attend{
          shared, stage,   reinterpret_cast<float*>(shared.records()), args.tag + index, warp,
          lane,   patience};
      attend.run(ring);
    }
    if (patience.lost) *args.failed = index + 1;
  }
}

/// What warps that finish strips do.
template <int kTokens>
__device__ __forceinline__ void finish_stages(const PassShared<kTokens>& shared, int warp,
                                              int lane) {
  const PassArgs& args = shared.args;
  Patience patience;
  Gathered gathered;
  unsigned strips = 0;  // of the linears before
#pragma unroll 1
  for (StageWalk walk(shared, warp, lane); walk.more(); walk.next()) {
    const PassStage& stage = walk.stage();
    if (stage.plan < 0) continue;
    const unsigned index = unsigned(walk.index());
    const BlockPlan& plan = shared.plans()[stage.plan];
    LinearStage<kTokens> linear{shared, stage, plan, args.tag + index, lane, patience, {}};
    finish_linear(linear, strips, warp - kPassWarps, gathered);
    strips += unsigned(plan.strip_count);
    if (patience.lost) *args.failed = index + 1;
  }
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
                    shared_address(shared.free()),
                    shared_address(shared.begun())};
    return Feeder<kTokens>(feed, warp - kPassWarps - kFinishWarps, lane).run();
  }
  if (warp >= kPassWarps) {
    finish_stages(shared, warp, lane);
  } else {
    compute_stages<kTokens, kDim>(shared, warp, lane);
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
