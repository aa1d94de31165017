#include "cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "checkpoint/rotary.h"
#include "support/check.h"

namespace guanaco::cuda {
namespace {

constexpr std::size_t kAlign = 256;
std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
int divide_up(int a, int b) { return (a + b - 1) / b; }

AttentionShape shape_of(const LlamaConfig& config) {
  return {config.layers, config.heads, config.kv_heads, config.head_dim};
}
std::size_t page_bytes(const LlamaConfig& config) {
  return shape_of(config).layer_elements() * std::size_t(config.layers) * sizeof(__half);
}

std::size_t activation_bytes(const LlamaConfig& config, int rows) {
  const std::size_t width = std::size_t(config.hidden) +
                            2 * std::size_t(config.heads * config.head_dim) +
                            std::size_t(config.ffn);
  return width * std::size_t(rows) * sizeof(float);
}
/// Inputs of the widest linear of a prompt, in the packed order: short groups pad them, at most to
/// whole runs of 32.
int prompt_inputs(const LlamaConfig& config) {
  const int most = std::max({config.hidden, config.ffn, config.heads * config.head_dim});
  return (divide_up(most, kBlockInputs) * 5 / 4 + 1) * kBlockInputs;
}

const StreamedWeight& streamed_of(const DeviceWeight& weight) {
  return static_cast<const DeviceLinear&>(weight).streamed;
}
const float* values_of(const DeviceWeight* norm) {
  return norm != nullptr ? static_cast<const DeviceNorm*>(norm)->values.as<float>() : nullptr;
}

FewRows few_rows(const Rows& rows) {
  FewRows few;
  few.count = rows.count();
  few.chosen = rows.chosen;
  for (int r = 0; r < few.count; ++r) {
    const auto at = std::size_t(r);
    few.tokens[r] = rows.tokens[at];
    few.positions[r] = rows.positions[at];
    const int sequence = rows.sequences[at];
    few.first[r] = r > 0 && rows.sequences[at - 1] == sequence ? few.first[r - 1] : r;
    few.tables[r] = static_cast<const DevicePages*>(rows.caches[std::size_t(sequence)])
                        ->table.as<__half* const>();
  }
  return few;
}

}  // namespace

RowsBuffer::RowsBuffer(int rows_in, int head_dim)
    : most_rows(rows_in),
      device_(bytes(rows_in, head_dim), "the rows of a pass"),
      uploaded_(make_event()) {
  auto* at = device_.as<std::byte>();
  const auto take = [&](std::size_t size) {
    std::byte* const place = at;
    at += aligned(size);
    return static_cast<void*>(place);
  };
  const auto n = std::size_t(rows_in);
  rows.tables = static_cast<__half* const**>(take(n * sizeof(void*)));
  rows.tokens = static_cast<int*>(take(n * sizeof(int)));
  rows.positions = static_cast<int*>(take(n * sizeof(int)));
  rows.count = static_cast<int*>(take(sizeof(int)));
  upload_bytes_ = std::size_t(at - device_.as<std::byte>());
  rows.append = static_cast<__half**>(take(n * sizeof(void*)));
  rows.angles = static_cast<float2*>(take(n * std::size_t(head_dim / 2) * sizeof(float2)));
  host_ = PinnedBuffer(upload_bytes_, "the rows of a pass");
}

std::size_t RowsBuffer::bytes(int most_rows, int head_dim) {
  const auto n = std::size_t(most_rows);
  return 2 * aligned(n * sizeof(void*)) + 2 * aligned(n * sizeof(int)) + kAlign +
         aligned(n * std::size_t(head_dim / 2) * sizeof(float2));
}

void RowsBuffer::upload(const Rows& from, cudaStream_t stream) {
  check(cudaEventSynchronize(uploaded_), "cudaEventSynchronize");
  const auto mirror = [&](const auto* device) {
    return host_.as<std::byte>() +
           (reinterpret_cast<const std::byte*>(device) - device_.as<std::byte>());
  };
  auto* tables = reinterpret_cast<void**>(mirror(rows.tables));
  for (int r = 0; r < from.count(); ++r)
    tables[r] =
        static_cast<const DevicePages*>(from.caches[std::size_t(from.sequences[std::size_t(r)])])
            ->table.as<void>();
  std::memcpy(mirror(rows.tokens), from.tokens.data(), from.tokens.size_bytes());
  std::memcpy(mirror(rows.positions), from.positions.data(), from.positions.size_bytes());
  *reinterpret_cast<int*>(mirror(rows.count)) = from.count();
  check(cudaMemcpyAsync(device_.as<void>(), host_.as<void>(), upload_bytes_, cudaMemcpyHostToDevice,
                        stream),
        "cudaMemcpyAsync");
  check(cudaEventRecord(uploaded_, stream), "cudaEventRecord");
}

CudaBackend::CudaBackend(int ordinal) : ordinal_(ordinal) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  require(status == cudaSuccess, ErrorCode::device,
          "no usable NVIDIA GPU or driver (cudaGetDeviceCount: {})", cudaGetErrorString(status));
  require(ordinal < count, ErrorCode::device, "cuda_device is {}, expected 0 to {}", ordinal,
          count - 1);
  use();
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  limits_.capability = properties.major * 10 + properties.minor;
  require(limits_.capability >= 80, ErrorCode::device,
          "{} has compute capability {}.{}, expected 8.0 or newer", properties.name,
          properties.major, properties.minor);
  limits_.multiprocessors = properties.multiProcessorCount;
  limits_.shared_bytes_block = int(properties.sharedMemPerBlockOptin);
  limits_.shared_bytes_multiprocessor = int(properties.sharedMemPerMultiprocessor);
  limits_.dependent_launch = limits_.capability >= 90;
  description_ = fmt::format("CUDA, {}", properties.name);
  stream_ = make_stream();
}

CudaBackend::~CudaBackend() {
  static_cast<void>(cudaSetDevice(ordinal_));
  static_cast<void>(cudaStreamSynchronize(stream_));
}

void CudaBackend::use() const { check(cudaSetDevice(ordinal_), "cudaSetDevice"); }

std::uint64_t CudaBackend::norm_bytes(const LlamaConfig& config) const {
  return std::uint64_t(config.hidden) * sizeof(float);
}

std::uint64_t CudaBackend::scratch_bytes(const LlamaConfig& config, int rows) const {
  return activation_bytes(config, rows) + RowsBuffer::bytes(rows, config.head_dim) +
         std::uint64_t(rows) * sizeof(int4) +
         FewRowPasses::bytes(config, shape_of(config), limits_) +
         sample_scratch_bytes(config.vocab, kStreamRows) +
         std::uint64_t(kLogitRows) * std::uint64_t(config.vocab) * sizeof(float) +
         PromptScratch::bytes(rows, prompt_inputs(config));
}

std::uint64_t CudaBackend::cache_bytes(const LlamaConfig& config, int tokens) const {
  const std::uint64_t pages = std::uint64_t(divide_up(tokens, kPageTokens));
  return pages * (page_bytes(config) + sizeof(void*));
}

std::uint64_t CudaBackend::allocated(std::uint64_t bytes) const {
  constexpr std::uint64_t kPage = 2u << 20;  // small allocations share one
  return bytes < kPage / 2 ? bytes : (bytes + kPage - 1) / kPage * kPage;
}

std::uint64_t CudaBackend::loading_bytes(const Checkpoint&) const {
  return WeightLoader::pinned_bytes(8);
}

std::uint64_t CudaBackend::free_bytes() const {
  use();
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

void CudaBackend::reserve(const LlamaConfig& config, int rows) {
  use();
  require(config.head_dim % kStripOutputs == 0 && config.head_dim <= 256, ErrorCode::unsupported,
          "head_dim is {}, the CUDA backend takes multiples of 16 up to 256", config.head_dim);
  require(config.hidden % 4 == 0 && config.ffn % 8 == 0, ErrorCode::unsupported,
          "hidden_size {} and intermediate_size {}: the CUDA backend takes multiples of 4 and 8",
          config.hidden, config.ffn);
  config_ = config;
  shape_ = shape_of(config);
  rows_ = rows;
  weights_.emplace(config.head_dim);

  const auto n = std::size_t(rows), width = std::size_t(config.heads * config.head_dim);
  residual_ = DeviceBuffer(n * std::size_t(config.hidden) * sizeof(float), "the residual stream");
  query_ = DeviceBuffer(n * width * sizeof(float), "queries");
  attended_ = DeviceBuffer(n * width * sizeof(float), "attention");
  mlp_ = DeviceBuffer(n * std::size_t(config.ffn) * sizeof(float), "the MLP");
  const std::size_t logit_bytes =
      std::size_t(kLogitRows) * std::size_t(config.vocab) * sizeof(float);
  logits_ = DeviceBuffer(logit_bytes, "logits");
  host_logits_ = PinnedBuffer(logit_bytes, "logits");
  many_ = RowsBuffer(rows, config.head_dim);
  segments_ = DeviceBuffer(n * sizeof(int4), "segments of a prompt");
  host_segments_ = PinnedBuffer(n * sizeof(int4), "segments of a prompt");
  if (rows > kStreamRows) prompt_ = std::make_unique<PromptScratch>(rows, prompt_inputs(config));

  const Rotary rotary(config.rotary, config.head_dim, config.context);
  const auto half = std::size_t(config.head_dim / 2);
  std::vector<float> frequencies(2 * half);
  rotary.frequencies(0, std::span(frequencies).first(half));
  rotary_ = {};
  rotary_.attention_factor = rotary.attention_factor();
  if (config.rotary.kind == RotaryConfig::Kind::dynamic) {
    rotary_.switch_position = config.context;
    rotary_.theta = config.rotary.theta;
    rotary_.factor = config.rotary.factor;
    rotary_.context = config.context;
  } else if (config.rotary.kind == RotaryConfig::Kind::longrope) {
    rotary_.switch_position = int(config.rotary.original_context);
    rotary.frequencies(rotary_.switch_position, std::span(frequencies).last(half));
  }
  frequencies_ = DeviceBuffer(frequencies.size() * sizeof(float), "rotary frequencies");
  check(cudaMemcpy(frequencies_.as<void>(), frequencies.data(), frequencies_.bytes(),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  rotary_.frequencies = frequencies_.as<float>();
  if (config.rotary.kind == RotaryConfig::Kind::longrope)
    rotary_.long_frequencies = frequencies_.as<float>() + half;

  passes_ = std::make_unique<FewRowPasses>(config, shape_, rotary_, limits_);
  chosen_tokens_ = DeviceBuffer(kStreamRows * sizeof(int), "chosen tokens");
  sample_scratch_ = DeviceBuffer(sample_scratch_bytes(config.vocab, kStreamRows), "sampling");
  check(cudaMemset(sample_scratch_.as<void>(), 0, sample_scratch_.bytes()), "cudaMemset");
  sampled_ = PinnedBuffer(kChoicesAhead * kStreamRows * sizeof(SampledToken), "chosen tokens");
  for (Ticket& ticket : tickets_) ticket.done = make_blocking_event();
}

void CudaBackend::loaded() {
  use();
  weights_->finish();
  weights_.reset();
  passes_->prepare();
  if (rows_ > passes_->most_rows() && prompt_ == nullptr)
    prompt_ = std::make_unique<PromptScratch>(rows_, prompt_inputs(config_));
}

Weight CudaBackend::load_linear(std::span<const Linear> parts) {
  use();
  Weight weight = weights_->linear(parts);
  passes_->expect(streamed_of(*weight));
  return weight;
}
Weight CudaBackend::load_norm(const StoredTensor& norm) {
  use();
  return weights_->norm(norm);
}
Weight CudaBackend::load_table(const StoredTensor& table) {
  use();
  return weights_->table(table);
}

std::unique_ptr<KvPages> CudaBackend::make_pages(const LlamaConfig& config, int tokens) {
  use();
  auto pages = std::make_unique<DevicePages>(stream_);
  const auto count = std::size_t(divide_up(tokens, kPageTokens));
  pages->memory = DeviceBuffer(count * page_bytes(config), "the key/value cache");
  std::vector<__half*> table(count);
  for (std::size_t i = 0; i < count; ++i)
    table[i] = pages->memory.as<__half>() + i * page_bytes(config) / sizeof(__half);
  pages->table = DeviceBuffer(count * sizeof(void*), "the key/value cache");
  check(cudaMemcpy(pages->table.as<void>(), table.data(), count * sizeof(void*),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  return pages;
}

int CudaBackend::rows_of_pass(int waiting) const {
  // The shortest prompt takes about as long as so many passes of few rows, since it dequantises all
  // weights first (bench/NOTES.md).
  constexpr int kPasses = 5;
  const int few = passes_->most_rows();
  return waiting > kPasses * few ? waiting : std::min(waiting, few);
}

void CudaBackend::embed(const DeviceWeight& table, const Rows& rows) {
  use();
  const auto& embedding = static_cast<const DeviceTable&>(table);
  few_last_ = few(rows);
  passes_->begin(few_last_ ? few_rows(rows) : FewRows{});
  if (few_last_) return passes_->embed(embedding.rows.as<void>(), embedding.type);
  prompt_embed(embedding, rows);
}

void CudaBackend::prompt_embed(const DeviceTable& table, const Rows& rows) {
  many_.upload(rows, stream_);
  cuda::embed(table.rows.as<void>(), table.type, config_.hidden, shape_, rotary_, many_.rows,
              rows.count(), residual_.as<float>(), limits_, stream_);
  // Runs of rows of one sequence, for attention. The upload above has waited for the one before.
  auto* segments = host_segments_.as<int4>();
  segment_count_ = most_segment_rows_ = 0;
  for (int r = 0; r < rows.count();) {
    const int first = r, sequence = rows.sequences[std::size_t(r)];
    while (r < rows.count() && rows.sequences[std::size_t(r)] == sequence) ++r;
    segments[segment_count_++] = {first, r - first, rows.positions[std::size_t(first)], 0};
    most_segment_rows_ = std::max(most_segment_rows_, r - first);
  }
  check(cudaMemcpyAsync(segments_.as<void>(), segments, std::size_t(segment_count_) * sizeof(int4),
                        cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync");
}

void CudaBackend::attention_input(const LayerWeights& layer, int index, const Rows& rows) {
  const StreamedWeight& weight = streamed_of(*layer.qkv);
  const float* norm = values_of(layer.attention_norm.get());
  if (few(rows)) return passes_->attention_input(weight, norm, index);
  const AttentionInput target{shape_, index, many_.rows, query_.as<float>()};
  prompt_linear(
      *prompt_, residual_.as<float>(), norm, config_.rms_norm_epsilon, weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_attention_input(products, factors, weight.bias, first, count, rows.count(), target,
                               stream_);
      },
      stream_);
}

void CudaBackend::attend(int index, const Rows& rows) {
  if (few(rows)) return passes_->attend(index);
  attend_prompt(query_.as<float>(), shape_, index, many_.rows, segments_.as<int4>(), segment_count_,
                most_segment_rows_, attended_.as<float>(), limits_, stream_);
}

void CudaBackend::attention_output(const LayerWeights& layer, const Rows& rows) {
  if (few(rows)) return passes_->attention_output(streamed_of(*layer.output));
  prompt_residual_stage(*layer.output, attended_.as<float>(), rows.count());
}

void CudaBackend::mlp_input(const LayerWeights& layer, const Rows& rows) {
  const StreamedWeight& weight = streamed_of(*layer.gate_up);
  const float* norm = values_of(layer.mlp_norm.get());
  if (few(rows)) return passes_->mlp_input(weight, norm);
  prompt_linear(
      *prompt_, residual_.as<float>(), norm, config_.rms_norm_epsilon, weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_mlp_input(products, factors, weight.bias, first, count, rows.count(),
                         mlp_.as<float>(), config_.ffn, stream_);
      },
      stream_);
}

void CudaBackend::mlp_output(const LayerWeights& layer, const Rows& rows) {
  if (few(rows)) return passes_->mlp_output(streamed_of(*layer.down));
  prompt_residual_stage(*layer.down, mlp_.as<float>(), rows.count());
}

void CudaBackend::prompt_residual_stage(const DeviceWeight& linear, const float* input, int rows) {
  const StreamedWeight& weight = streamed_of(linear);
  prompt_linear(
      *prompt_, input, nullptr, 0, weight, rows,
      [&](const float* products, const float* factors, int first, int count) {
        prompt_residual(products, factors, weight.bias, first, count, rows, residual_.as<float>(),
                        config_.hidden, stream_);
      },
      stream_);
}

void CudaBackend::logits(const DeviceWeight& norm, const DeviceWeight& head,
                         std::span<const int> which, std::span<float> out) {
  use();
  const auto vocab = std::size_t(config_.vocab);
  const auto most = std::size_t(passes_->most_rows());
  for (std::size_t first = 0; first < which.size(); first += most) {
    const std::size_t count = std::min(most, which.size() - first);
    passes_->logits(streamed_of(head), values_of(&norm), which.subspan(first, count),
                    few_last_ ? nullptr : residual_.as<float>(),
                    logits_.as<float>() + first * vocab);
    passes_->run(chosen_tokens_.as<int>(), stream_);
  }
  const std::size_t bytes = which.size() * vocab * sizeof(float);
  check(cudaMemcpyAsync(host_logits_.as<void>(), logits_.as<void>(), bytes, cudaMemcpyDeviceToHost,
                        stream_),
        "cudaMemcpyAsync");
  wait();
  std::memcpy(out.data(), host_logits_.as<void>(), bytes);
}

void CudaBackend::end_pass() {
  use();
  passes_->run(chosen_tokens_.as<int>(), stream_);
}

void CudaBackend::wait() const {
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  passes_->check_waits();
}

unsigned CudaBackend::choose(const DeviceWeight& norm, const DeviceWeight& head,
                             std::span<const ChoiceRule> rules) {
  use();
  constexpr int kAll[kStreamRows] = {0, 1, 2, 3, 4, 5, 6, 7};
  passes_->logits(streamed_of(head), values_of(&norm), std::span(kAll).first(rules.size()), nullptr,
                  logits_.as<float>());
  passes_->run(chosen_tokens_.as<int>(), stream_);
  SampleRows rows;
  for (const ChoiceRule& rule : rules)
    rows.of[rows.count++] = {rule.temperature, rule.top_p, rule.min_p, rule.top_k,
                             rule.choices,     rule.seed,  rule.draws};
  const unsigned ticket = ++last_ticket_;
  sample(logits_.as<float>(), config_.vocab, rows, ticket, chosen_tokens_.as<int>(),
         sampled_.as<SampledToken>() + ticket % kChoicesAhead * kStreamRows,
         sample_scratch_.as<void>(), limits_, stream_);
  check(cudaEventRecord(tickets_[ticket % kChoicesAhead].done, stream_), "cudaEventRecord");
  tickets_[ticket % kChoicesAhead].number = ticket;
  return ticket;
}

void CudaBackend::chosen(unsigned ticket, std::span<Choice> out) {
  use();
  const Ticket& mine = tickets_[ticket % kChoicesAhead];
  require(mine.number == ticket, ErrorCode::internal, "ticket {} was overwritten by {}", ticket,
          mine.number);
  check(cudaEventSynchronize(mine.done), "cudaEventSynchronize");
  passes_->check_waits();
  const SampledToken* line = sampled_.as<SampledToken>() + ticket % kChoicesAhead * kStreamRows;
  for (std::size_t r = 0; r < out.size(); ++r) out[r] = {line[r].token, line[r].logprob};
}

std::pair<float*, int> CudaBackend::prompt_activation(Activation activation) const {
  switch (activation) {
    case Activation::residual:
      return {residual_.as<float>(), config_.hidden};
    case Activation::query:
      return {query_.as<float>(), shape_.heads * shape_.head_dim};
    case Activation::attended:
      return {attended_.as<float>(), shape_.heads * shape_.head_dim};
    case Activation::mlp:
      return {mlp_.as<float>(), config_.ffn};
  }
  fail(ErrorCode::internal, "no such activation");
}

std::vector<float> CudaBackend::read(Activation which, int rows) const {
  use();
  passes_->run(chosen_tokens_.as<int>(), stream_);
  wait();
  if (few_last_) return passes_->read(which, rows);
  const auto [values, width] = prompt_activation(which);
  std::vector<float> out(std::size_t(rows) * std::size_t(width));
  check(cudaMemcpy(out.data(), values, out.size() * sizeof(float), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  return out;
}

void CudaBackend::write(Activation which, std::span<const float> values) {
  use();
  passes_->run(chosen_tokens_.as<int>(), stream_);
  wait();
  if (few_last_) return passes_->write(which, values);
  check(cudaMemcpy(prompt_activation(which).first, values.data(), values.size_bytes(),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
}

}  // namespace guanaco::cuda

namespace guanaco {

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  return std::make_unique<cuda::CudaBackend>(ordinal);
}

}  // namespace guanaco
