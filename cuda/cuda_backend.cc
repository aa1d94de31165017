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

/// The linears of a model as one that is as wide as any of them and takes as many inputs.
StreamedWeight widest(const LlamaConfig& config, WeightKind kind) {
  StreamedWeight weight;
  weight.kind = kind;
  weight.inputs = std::max({config.hidden, config.ffn, config.heads * config.head_dim});
  // Short groups pad inputs: at most to whole runs of 32.
  weight.strip_blocks = divide_up(weight.inputs, kBlockInputs) * 5 / 4 + 1;
  weight.strips = divide_up(std::max({(config.heads + 2 * config.kv_heads) * config.head_dim,
                                      2 * config.ffn, config.vocab}),
                            kStripOutputs) +
                  1;
  return weight;
}
std::size_t staged_bytes(const LlamaConfig& config) {
  return std::size_t(widest(config, WeightKind::half).strip_blocks) *
         record_bytes<kStreamRows>(false);
}
std::size_t parts_bytes(const LlamaConfig& config, const DeviceLimits& limits) {
  return stream_scratch_bytes(widest(config, WeightKind::half), limits);
}
std::size_t activation_bytes(const LlamaConfig& config, int rows) {
  const std::size_t width = std::size_t(config.hidden) +
                            2 * std::size_t(config.heads * config.head_dim) +
                            std::size_t(config.ffn);
  return width * std::size_t(rows) * sizeof(float);
}
int prompt_inputs(const LlamaConfig& config) {
  return widest(config, WeightKind::half).strip_blocks * kBlockInputs;
}

const StreamedWeight& streamed_of(const DeviceWeight& weight) {
  return static_cast<const DeviceLinear&>(weight).streamed;
}
const float* values_of(const DeviceWeight* norm) {
  return norm != nullptr ? static_cast<const DeviceNorm*>(norm)->values.as<float>() : nullptr;
}

}  // namespace

RowsBuffer::RowsBuffer(int rows_in, int head_dim, unsigned* epoch)
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
  rows.epoch = epoch;
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
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
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
         staged_bytes(config) + parts_bytes(config, limits_) +
         std::uint64_t(kLogitRows) * std::uint64_t(config.vocab) * sizeof(float) +
         PromptScratch::bytes(rows, prompt_inputs(config));
}

std::uint64_t CudaBackend::cache_bytes(const LlamaConfig& config, int tokens) const {
  const std::uint64_t pages = std::uint64_t(divide_up(tokens, kPageTokens));
  return pages * (page_bytes(config) + sizeof(void*));
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
  staged_ = DeviceBuffer(staged_bytes(config), "staged rows");
  parts_ = DeviceBuffer(parts_bytes(config, limits_), "partial sums");
  check(cudaMemset(parts_.as<void>(), 0, parts_.bytes()), "cudaMemset");
  epoch_ = DeviceBuffer(sizeof(unsigned), "the pass number");
  check(cudaMemset(epoch_.as<void>(), 0, epoch_.bytes()), "cudaMemset");
  few_ = RowsBuffer(kStreamRows, config.head_dim, epoch_.as<unsigned>());
  many_ = RowsBuffer(rows, config.head_dim, epoch_.as<unsigned>());
  which_ = DeviceBuffer((kLogitRows + 1) * sizeof(int), "chosen rows");
  host_which_ = PinnedBuffer((kLogitRows + 1) * sizeof(int), "chosen rows");
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
}

Weight CudaBackend::load_linear(std::span<const Linear> parts) {
  use();
  return weights_->linear(parts);
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
  auto pages = std::make_unique<DevicePages>();
  const auto count = std::size_t(divide_up(tokens, kPageTokens));
  pages->memory = DeviceBuffer(count * page_bytes(config), "the key/value cache");
  std::vector<__half*> table(count);
  for (std::size_t i = 0; i < count; ++i)
    table[i] = pages->memory.as<__half>() + i * page_bytes(config) / sizeof(__half);
  pages->table = DeviceBuffer(count * sizeof(void*), "the key/value cache");
  check(cudaMemcpy(pages->table.as<void>(), table.data(), count * sizeof(void*),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  grow_attention(tokens);
  return pages;
}

/// Room for the partial results of the longest sequence. No pass is under way.
void CudaBackend::grow_attention(int tokens) {
  const int chunks = divide_up(tokens, kChunkTokens);
  if (chunks <= attend_.chunks) return;
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  const std::size_t row_heads = std::size_t(kStreamRows) * std::size_t(shape_.heads);
  attend_partial_ = DeviceBuffer(
      row_heads * std::size_t(chunks) * std::size_t(shape_.head_dim + 2) * sizeof(float),
      "partial attention");
  attend_arrived_ = DeviceBuffer(row_heads * sizeof(unsigned), "partial attention");
  check(cudaMemset(attend_arrived_.as<void>(), 0, attend_arrived_.bytes()), "cudaMemset");
  attend_ = {attend_partial_.as<float>(), attend_arrived_.as<unsigned>(), chunks};
}

LinearArgs CudaBackend::streamed(const DeviceWeight& weight, const float* input,
                                 const DeviceWeight* norm, int tokens, const int* which,
                                 const int* count) {
  LinearArgs args;
  args.weight = streamed_of(weight);
  args.input = input;
  args.norm = values_of(norm);
  args.epsilon = config_.rms_norm_epsilon;
  args.epoch = epoch_.as<unsigned>();
  args.rows = count;
  args.stage = stage_++;
  plan_stream(args, tokens, limits_);
  // Flags first, then the sums they announce.
  const std::size_t strips = std::size_t(args.weight.strips),
                    groups = std::size_t(divide_up(args.weight.strip_blocks, args.group_blocks));
  const std::size_t blocks = std::size_t(most_stream_blocks(limits_));
  const std::size_t flags = blocks + (groups - 1) * strips;
  args.part_flags = parts_.as<unsigned>();
  args.group_flags = args.part_flags + blocks;
  args.parts =
      reinterpret_cast<float2*>(parts_.as<std::byte>() + (flags * sizeof(unsigned) + 15) / 16 * 16);
  args.group_parts = args.parts + blocks * 8 * kStreamRows;
  if (tokens > 1) {
    args.staged = staged_.as<std::uint8_t>();
    stage_rows(args, input, which, staged_.as<std::uint8_t>(), limits_, stream_);
  }
  return args;
}

void CudaBackend::embed(const DeviceWeight& table, const Rows& rows) {
  use();
  const auto& embedding = static_cast<const DeviceTable&>(table);
  RowsBuffer& buffer = few(rows) ? few_ : many_;
  buffer.upload(rows, stream_);
  stage_ = 0;
  cuda::embed(embedding.rows.as<void>(), embedding.type, config_.hidden, shape_, rotary_,
              buffer.rows, rows.count(), residual_.as<float>(), limits_, stream_);
  if (few(rows)) return;

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

AttentionInput CudaBackend::attention_target(int layer) const {
  return {shape_, layer, {}, query_.as<float>()};
}

void CudaBackend::attention_input(const LayerWeights& layer, int index, const Rows& rows) {
  AttentionInput target = attention_target(index);
  target.rows = pass_rows(rows);
  if (few(rows)) {
    const int tokens = rows.count() == 1 ? 1 : kStreamRows;
    const LinearArgs args = streamed(*layer.qkv, residual_.as<float>(), layer.attention_norm.get(),
                                     tokens, nullptr, few_.rows.count);
    return cuda::attention_input(args, tokens, target, limits_, stream_);
  }
  const StreamedWeight& weight = streamed_of(*layer.qkv);
  prompt_linear(
      *prompt_, residual_.as<float>(), values_of(layer.attention_norm.get()),
      config_.rms_norm_epsilon, weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_attention_input(products, factors, weight.bias, first, count, rows.count(), target,
                               stream_);
      },
      stream_);
}

void CudaBackend::attend(int index, const Rows& rows) {
  if (few(rows))
    return cuda::attend(query_.as<float>(), shape_, index, few_.rows, rows.count(), attend_,
                        attended_.as<float>(), limits_, stream_);
  attend_prompt(query_.as<float>(), shape_, index, many_.rows, segments_.as<int4>(), segment_count_,
                most_segment_rows_, attended_.as<float>(), limits_, stream_);
}

void CudaBackend::attention_output(const LayerWeights& layer, const Rows& rows) {
  if (few(rows)) {
    const int tokens = rows.count() == 1 ? 1 : kStreamRows;
    const LinearArgs args =
        streamed(*layer.output, attended_.as<float>(), nullptr, tokens, nullptr, few_.rows.count);
    return cuda::attention_output(args, tokens, residual_.as<float>(), config_.hidden, limits_,
                                  stream_);
  }
  const StreamedWeight& weight = streamed_of(*layer.output);
  prompt_linear(
      *prompt_, attended_.as<float>(), nullptr, 0, weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_residual(products, factors, weight.bias, first, count, rows.count(),
                        residual_.as<float>(), config_.hidden, stream_);
      },
      stream_);
}

void CudaBackend::mlp_input(const LayerWeights& layer, const Rows& rows) {
  if (few(rows)) {
    const int tokens = rows.count() == 1 ? 1 : kStreamRows;
    const LinearArgs args = streamed(*layer.gate_up, residual_.as<float>(), layer.mlp_norm.get(),
                                     tokens, nullptr, few_.rows.count);
    return cuda::mlp_input(args, tokens, mlp_.as<float>(), config_.ffn, limits_, stream_);
  }
  const StreamedWeight& weight = streamed_of(*layer.gate_up);
  prompt_linear(
      *prompt_, residual_.as<float>(), values_of(layer.mlp_norm.get()), config_.rms_norm_epsilon,
      weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_mlp_input(products, factors, weight.bias, first, count, rows.count(),
                         mlp_.as<float>(), config_.ffn, stream_);
      },
      stream_);
}

void CudaBackend::mlp_output(const LayerWeights& layer, const Rows& rows) {
  if (few(rows)) {
    const int tokens = rows.count() == 1 ? 1 : kStreamRows;
    const LinearArgs args =
        streamed(*layer.down, mlp_.as<float>(), nullptr, tokens, nullptr, few_.rows.count);
    return cuda::mlp_output(args, tokens, residual_.as<float>(), config_.hidden, limits_, stream_);
  }
  const StreamedWeight& weight = streamed_of(*layer.down);
  prompt_linear(
      *prompt_, mlp_.as<float>(), nullptr, 0, weight, rows.count(),
      [&](const float* products, const float* factors, int first, int count) {
        prompt_residual(products, factors, weight.bias, first, count, rows.count(),
                        residual_.as<float>(), config_.hidden, stream_);
      },
      stream_);
}

void CudaBackend::logits(const DeviceWeight& norm, const DeviceWeight& head,
                         std::span<const int> which, std::span<float> out) {
  use();
  const auto vocab = std::size_t(config_.vocab);
  for (std::size_t first = 0; first < which.size(); first += kStreamRows) {
    const std::span<const int> chosen =
        which.subspan(first, std::min<std::size_t>(kStreamRows, which.size() - first));
    const bool one = chosen.size() == 1;
    auto* host = host_which_.as<int>();
    host[0] = int(chosen.size());
    std::copy(chosen.begin(), chosen.end(), host + 1);
    check(cudaMemcpyAsync(which_.as<void>(), host, (chosen.size() + 1) * sizeof(int),
                          cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
    const float* input =
        residual_.as<float>() + (one ? std::size_t(chosen[0]) * std::size_t(config_.hidden) : 0);
    const int tokens = one ? 1 : kStreamRows;
    const LinearArgs args =
        streamed(head, input, &norm, tokens, which_.as<int>() + 1, which_.as<int>());
    cuda::logits(args, tokens, logits_.as<float>(), config_.vocab, limits_, stream_);
    check(cudaMemcpyAsync(host_logits_.as<void>(), logits_.as<void>(),
                          chosen.size() * vocab * sizeof(float), cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    std::memcpy(out.data() + first * vocab, host_logits_.as<void>(),
                chosen.size() * vocab * sizeof(float));
  }
}

std::pair<float*, int> CudaBackend::activation(Activation activation) const {
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
  const auto [values, width] = activation(which);
  std::vector<float> out(std::size_t(rows) * std::size_t(width));
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  check(cudaMemcpy(out.data(), values, out.size() * sizeof(float), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
  return out;
}

void CudaBackend::write(Activation which, std::span<const float> values) {
  use();
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  check(cudaMemcpy(activation(which).first, values.data(), values.size_bytes(),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
}

}  // namespace guanaco::cuda

namespace guanaco {

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  return std::make_unique<cuda::CudaBackend>(ordinal);
}

}  // namespace guanaco
