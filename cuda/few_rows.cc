#include "few_rows.h"

#include <algorithm>
#include <bit>

#include "support/check.h"

namespace guanaco::cuda {
namespace {

bool same_shape(const StreamedWeight& a, const StreamedWeight& b) {
  return a.inputs == b.inputs && a.strips == b.strips && a.strip_blocks == b.strip_blocks &&
         a.block_bytes == b.block_bytes && a.runs == b.runs && a.kind == b.kind &&
         a.float_scales == b.float_scales;
}

/// Of a pass: embed, or another begin of the residual stream, the layers, logits.
int most_stages(const LlamaConfig& config) { return 5 * config.layers + 2; }

Words other(Words residual) { return residual == kResidual ? kOtherResidual : kResidual; }

int words_width(const LlamaConfig& config, int words) {
  switch (words) {
    case kQueryKeyValue:
      return (config.heads + 2 * config.kv_heads) * config.head_dim;
    case kAttended:
      return config.heads * config.head_dim;
    case kMlp:
      return config.ffn;
    default:
      return config.hidden;
  }
}

/// Floats of a buffer of words, for each token.
std::size_t words_stride(const LlamaConfig& config, int words) {
  const auto width = std::size_t(words_width(config, words));
  const bool residual = words == kResidual || words == kOtherResidual;
  return residual ? 2 * width + std::size_t(squares_stride(config.hidden)) : width;
}

template <typename T>
void upload(DeviceBuffer& buffer, const std::vector<T>& values, const char* purpose,
            cudaStream_t stream) {
  const std::size_t bytes = values.size() * sizeof(T);
  if (buffer.bytes() < bytes) {
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");  // a pass may still read it
    buffer = DeviceBuffer(bytes, purpose);
  }
  check(cudaMemcpyAsync(buffer.as<void>(), values.data(), bytes, cudaMemcpyHostToDevice, stream),
        "cudaMemcpyAsync");
}

/// The linears of a model as plans of the widest kind: what memory for packets they may need.
std::vector<LinearPlan> widest_plans(const LlamaConfig& config, int tokens,
                                     const DeviceLimits& limits) {
  const auto plan = [&](int inputs, int outputs) {
    StreamedWeight weight;
    weight.kind = WeightKind::half;
    weight.inputs = inputs;
    weight.strip_blocks = (inputs + kBlockInputs - 1) / kBlockInputs;
    weight.strips = (outputs + kStripOutputs - 1) / kStripOutputs;
    weight.block_bytes = element_bytes(weight.kind);
    return plan_linear(weight, tokens, limits);
  };
  return {plan(config.hidden, words_width(config, kQueryKeyValue)),
          plan(words_width(config, kAttended), config.hidden), plan(config.hidden, 2 * config.ffn),
          plan(config.ffn, config.hidden), plan(config.hidden, config.vocab)};
}

}  // namespace

FewRowPasses::FewRowPasses(const LlamaConfig& config, const AttentionShape& shape,
                           const RotaryTable& rotary, const DeviceLimits& limits)
    : config_(config), shape_(shape), rotary_(rotary), limits_(limits) {
  variants_[1].tokens = kStreamRows;
  for (Variant& variant : variants_)
    for (int i = 0; i < kWords; ++i) {
      const std::size_t bytes =
          std::size_t(variant.tokens) * words_stride(config_, i) * sizeof(float);
      variant.words[i] = DeviceBuffer(bytes, "activations");
      check(cudaMemset(variant.words[i].as<void>(), 0, bytes), "cudaMemset");
    }
  failed_ = PinnedBuffer(sizeof(unsigned), "the state of a pass");
  *failed_.as<unsigned>() = 0;
}

std::size_t FewRowPasses::bytes(const LlamaConfig& config, const AttentionShape& shape,
                                const DeviceLimits& limits) {
  std::size_t bytes = 0;
  for (const int tokens : {1, kStreamRows}) {
    const std::vector<LinearPlan> plans = widest_plans(config, tokens, limits);
    for (int i = 0; i < kWords; ++i)
      bytes += std::size_t(tokens) * words_stride(config, i) * sizeof(float);
    const PacketBytes packets = packet_bytes(plans, shape, tokens, limits);
    bytes += packets.strips + packets.groups + packets.splits;
    bytes +=
        std::size_t(most_stages(config)) * sizeof(PassStage) + plans.size() * sizeof(LinearPlan);
  }
  return bytes;
}

void FewRowPasses::expect(const StreamedWeight& weight) {
  for (const LinearPlan& plan : variants_[0].linears)
    if (same_shape(plan.shape, weight)) return;
  for (Variant& variant : variants_)
    variant.linears.push_back(plan_linear(weight, variant.tokens, limits_));
}

void FewRowPasses::prepare() {
  stages_.reserve(std::size_t(most_stages(config_)));
  for (Variant& variant : variants_) {
    const PacketBytes bytes = packet_bytes(variant.linears, shape_, variant.tokens, limits_);
    const auto allocate = [](DeviceBuffer& buffer, std::size_t size) {
      buffer = DeviceBuffer(size, "partial sums");
      check(cudaMemset(buffer.as<void>(), 0, size), "cudaMemset");
    };
    allocate(variant.strip_packets, bytes.strips);
    allocate(variant.group_packets, std::max<std::size_t>(bytes.groups, 32));
    allocate(variant.split_packets, bytes.splits);
    variant.layout = plan_pass(variant.linears, variant.tokens, shape_, limits_);
    if (variant.layout.slots == 0) {
      require(variant.tokens > 1, ErrorCode::unsupported,
              "the GPU has {} bytes of shared memory for a thread block, {} and a ring are needed",
              limits_.shared_bytes_block, variant.layout.bytes);
      most_rows_ = 1;
    }
    upload(variant.plans, variant.linears, "plans", nullptr);
    variant.stages = DeviceBuffer(std::size_t(most_stages(config_)) * sizeof(PassStage), "a pass");
    variant.uploaded.reserve(std::size_t(most_stages(config_)));
  }
  check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

void FewRowPasses::begin(const FewRows& rows) {
  rows_ = rows;
  forget();
}

void FewRowPasses::forget() {
  stages_.clear();
  written_ = 0;
  odd_linear_ = false;
  std::fill(std::begin(writers_), std::end(writers_), -1);
}

PassStage FewRowPasses::linear(StageKind kind, const StreamedWeight& weight) {
  PassStage stage;
  stage.kind = kind;
  stage.odd_linear = odd_linear_ = !odd_linear_;
  for (stage.plan = 0; !same_shape(variant().linears[std::size_t(stage.plan)].shape, weight);)
    ++stage.plan;
  stage.blocks = weight.blocks;
  stage.bias = weight.bias;
  return stage;
}

void FewRowPasses::take(PassStage& stage, Words from) const {
  stage.input = variant().words[from].as<float>();
  stage.input_buffer = from;
  stage.input_parity = (written_ >> from & 1u) != 0;
}

void FewRowPasses::take_in_order(PassStage& stage, Words from, const StreamedWeight& weight) {
  const int*& place = variant().places[from];
  if (weight.place != nullptr && place == nullptr && writers_[from] >= 0) {
    place = weight.place;
    stages_[std::size_t(writers_[from])].place = place;
  }
  require(place == nullptr || place == weight.place, ErrorCode::internal,
          "linears of different orders read one stage's output");
  if (place == nullptr) stage.order = weight.order;
  take(stage, from);
}

void FewRowPasses::take_normed(PassStage& stage, const StreamedWeight& weight, const float* norm) {
  Words& residual = variant().residual;
  const auto serves = [&](const PassStage& writer) {
    return writer.norm == nullptr || (writer.norm == norm && writer.place == weight.place);
  };
  if (writers_[residual] < 0 || !serves(stages_[std::size_t(writers_[residual])])) {
    PassStage again;
    again.kind = StageKind::norm;
    take(again, residual);
    give_residual(again, other(residual));
  }
  PassStage& writer = stages_[std::size_t(writers_[residual])];
  writer.norm = norm;
  writer.place = weight.place;
  take(stage, residual);
  if (weight.place == nullptr) stage.order = weight.order;
  stage.input = writer.normed;
  stage.squares = writer.normed_squares;
}

void FewRowPasses::give_residual(PassStage& stage, Words to) {
  variant().residual = to;
  const std::size_t values = std::size_t(variant().tokens) * std::size_t(config_.hidden);
  stage.normed = variant().words[to].as<float>() + values;
  stage.normed_squares = stage.normed + values;
  give(stage, to);
}

void FewRowPasses::give(PassStage& stage, Words to) {
  written_ ^= 1u << to;
  writers_[to] = int(stages_.size());
  variant().places[to] = nullptr;
  stage.output = variant().words[to].as<float>();
  stage.width = words_width(config_, to);
  stage.output_buffer = to;
  stage.output_parity = (written_ >> to & 1u) != 0;
  stages_.push_back(stage);
}

void FewRowPasses::embed(const void* table, int type) {
  table_ = table;
  table_type_ = type;
  PassStage stage;
  give_residual(stage, kResidual);
}

void FewRowPasses::attention_input(const StreamedWeight& weight, const float* norm, int layer) {
  PassStage stage = linear(StageKind::attention_input, weight);
  stage.layer = std::int16_t(layer);
  take_normed(stage, weight, norm);
  give(stage, kQueryKeyValue);
}

void FewRowPasses::attend(int layer) {
  PassStage stage;
  stage.kind = StageKind::attend;
  stage.layer = std::int16_t(layer);
  take(stage, kQueryKeyValue);
  give(stage, kAttended);
}

void FewRowPasses::add_to_residual(const StreamedWeight& weight, Words from) {
  PassStage stage = linear(StageKind::residual, weight);
  const Words residual = variant().residual;
  take(stage, residual);
  stage.addend = stage.input;
  stage.addend_buffer = stage.input_buffer;
  stage.addend_parity = stage.input_parity;
  take_in_order(stage, from, weight);
  give_residual(stage, other(residual));
}

void FewRowPasses::attention_output(const StreamedWeight& weight) {
  add_to_residual(weight, kAttended);
}

void FewRowPasses::mlp_input(const StreamedWeight& weight, const float* norm) {
  PassStage stage = linear(StageKind::mlp_input, weight);
  take_normed(stage, weight, norm);
  give(stage, kMlp);
}

void FewRowPasses::mlp_output(const StreamedWeight& weight) { add_to_residual(weight, kMlp); }

void FewRowPasses::logits(const StreamedWeight& weight, const float* norm,
                          std::span<const int> which, const float* residual, float* out) {
  if (residual != nullptr) {
    begin({});
    rows_.count = int(which.size());
    std::copy(which.begin(), which.end(), rows_.tokens);
    PassStage stage;
    stage.kind = StageKind::norm;
    stage.plain_input = true;
    stage.input = residual;
    give_residual(stage, kResidual);
  }
  rows_.logits_count = int(which.size());
  for (std::size_t i = 0; i < which.size(); ++i)
    rows_.logits_rows[i] = residual == nullptr ? which[i] : int(i);
  PassStage stage = linear(StageKind::logits, weight);
  take_normed(stage, weight, norm);
  stage.output = out;
  stage.width = config_.vocab;
  stages_.push_back(stage);
}

void FewRowPasses::run(const int* chosen_tokens, cudaStream_t stream) {
  if (stages_.empty()) return;
  Variant& own = variant();
  require(stages_.size() <= std::size_t(most_stages(config_)), ErrorCode::internal,
          "a pass of {} stages, at most {} were expected", stages_.size(), most_stages(config_));
  if (own.uploaded != stages_) {
    own.uploaded.clear();  // what lies there if the copy fails
    upload(own.stages, stages_, "a pass", stream);
    own.uploaded = stages_;
  }
  PassArgs args;
  args.stages = own.stages.as<PassStage>();
  args.plans = own.plans.as<LinearPlan>();
  args.stage_count = int(stages_.size());
  args.plan_count = int(own.linears.size());
  args.parities = own.parities;
  args.tag = tag_;
  args.rows = rows_;
  args.chosen_tokens = chosen_tokens;
  args.table = table_;
  args.table_type = table_type_;
  args.hidden = config_.hidden;
  args.epsilon = config_.rms_norm_epsilon;
  args.shape = shape_;
  args.splits = attention_splits(shape_, limits_);
  args.rotary = rotary_;
  args.strip_packets = own.strip_packets.as<ulonglong2>();
  args.group_packets = own.group_packets.as<ulonglong2>();
  args.group_packet_count = int(own.group_packets.bytes() / 2 / sizeof(ulonglong2));
  args.split_packets = own.split_packets.as<unsigned long long>();
  args.failed = failed_.as<unsigned>();
  args.layout = own.layout;
  run_pass(args, own.tokens, limits_, stream);
  tag_ += unsigned(stages_.size());
  own.parities ^= written_;
  forget();
}

void FewRowPasses::check_waits() const {
  const unsigned stage = *static_cast<const volatile unsigned*>(failed_.as<unsigned>());
  require(stage == 0, ErrorCode::device, "stage {} of a pass waited for others without end",
          stage - 1);
}

std::pair<Words, int> FewRowPasses::place(Activation activation) const {
  switch (activation) {
    case Activation::residual:
      return {variant().residual, config_.hidden};
    case Activation::query:
      return {kQueryKeyValue, shape_.heads * shape_.head_dim};
    case Activation::attended:
      return {kAttended, shape_.heads * shape_.head_dim};
    case Activation::mlp:
      return {kMlp, config_.ffn};
  }
  fail(ErrorCode::internal, "no such activation");
}

std::vector<float> FewRowPasses::read(Activation activation, int rows) const {
  const auto [words, columns] = place(activation);
  std::vector<float> out(std::size_t(rows) * std::size_t(columns));
  const std::size_t row_bytes = std::size_t(columns) * sizeof(float);
  check(cudaMemcpy2D(out.data(), row_bytes, variant().words[words].as<void>(),
                     std::size_t(words_width(config_, words)) * sizeof(float), row_bytes,
                     std::size_t(rows), cudaMemcpyDeviceToHost),
        "cudaMemcpy2D");
  for (float& value : out) value = std::bit_cast<float>(std::bit_cast<unsigned>(value) & ~1u);
  const int* const device_places = variant().places[words];
  if (device_places == nullptr) return out;
  std::vector<int> places(static_cast<std::size_t>(columns));
  check(
      cudaMemcpy(places.data(), device_places, places.size() * sizeof(int), cudaMemcpyDeviceToHost),
      "cudaMemcpy");
  std::vector<float> natural(out.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t column = i % places.size();
    natural[i] = out[i - column + std::size_t(places[column])];
  }
  return natural;
}

void FewRowPasses::write(Activation activation, std::span<const float> values) {
  const auto [words, columns] = place(activation);
  variant().places[words] = nullptr;
  std::vector<float> marked(values.begin(), values.end());
  const unsigned parity = variant().parities >> words & 1u;
  for (float& value : marked)
    value = std::bit_cast<float>((std::bit_cast<unsigned>(value) & ~1u) | parity);
  const std::size_t row_bytes = std::size_t(columns) * sizeof(float);
  check(cudaMemcpy2D(variant().words[words].as<void>(),
                     std::size_t(words_width(config_, words)) * sizeof(float), marked.data(),
                     row_bytes, row_bytes, values.size_bytes() / row_bytes, cudaMemcpyHostToDevice),
        "cudaMemcpy2D");
}

}  // namespace guanaco::cuda
