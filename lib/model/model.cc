#include <guanaco/model.h>

#include <algorithm>
#include <new>

#include <fmt/ranges.h>

#include "model/loaded_model.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

void check(const ModelOptions& options) {
  require(options.rows >= 1 && options.rows <= 4096, ErrorCode::invalid_argument,
          "ModelOptions::rows is {}, expected 1 to 4096", options.rows);
  require(options.threads >= 0 && options.threads <= 1024, ErrorCode::invalid_argument,
          "ModelOptions::threads is {}, expected 0 to 1024", options.threads);
  require(options.cuda_device >= 0, ErrorCode::invalid_argument,
          "ModelOptions::cuda_device is {}, expected 0 or more", options.cuda_device);
}

/// The linears of a layer as the device holds them: those that share their input are one weight.
struct LayerParts {
  std::array<Linear, 3> qkv;
  std::array<Linear, 1> output;
  std::array<Linear, 2> gate_up;
  std::array<Linear, 1> down;

  explicit LayerParts(const LayerTensors& layer)
      : qkv{layer.query, layer.key, layer.value},
        output{layer.output},
        gate_up{layer.gate, layer.up},
        down{layer.down} {}

  template <typename F>
  void for_each(F&& f) const {
    f(std::span<const Linear>(qkv));
    f(std::span<const Linear>(output));
    f(std::span<const Linear>(gate_up));
    f(std::span<const Linear>(down));
  }
};

/// Calls f(bytes) for every weight as the device holds it.
template <typename F>
void for_each_packed(const Backend& backend, const Checkpoint& checkpoint, F&& f) {
  f(backend.table_bytes(checkpoint.embedding));
  for (const LayerTensors& layer : checkpoint.layers) {
    LayerParts(layer).for_each(
        [&](std::span<const Linear> parts) { f(backend.linear_bytes(parts)); });
    for (int norm = 0; norm < 2; ++norm) f(backend.norm_bytes(checkpoint.config));
  }
  f(backend.linear_bytes({&checkpoint.head, 1}));
  f(backend.norm_bytes(checkpoint.config));
}

std::uint64_t packed_bytes(const Backend& backend, const Checkpoint& checkpoint) {
  std::uint64_t sum = 0;
  for_each_packed(backend, checkpoint, [&](std::uint64_t bytes) { sum += bytes; });
  return sum;
}

/// What packed weights take on the device.
std::uint64_t allocated_bytes(const Backend& backend, const Checkpoint& checkpoint) {
  std::uint64_t sum = 0;
  for_each_packed(backend, checkpoint,
                  [&](std::uint64_t bytes) { sum += backend.allocated(bytes); });
  return sum;
}

ModelInfo describe(const Backend& backend, const Checkpoint& checkpoint) {
  const LlamaConfig& config = checkpoint.config;
  ModelInfo info;
  info.layers = config.layers;
  info.heads = config.heads;
  info.kv_heads = config.kv_heads;
  info.head_dim = config.head_dim;
  info.hidden = config.hidden;
  info.ffn = config.ffn;
  info.vocab = config.vocab;
  info.context = config.context;
  const Linear& first = checkpoint.layers.front().query;
  if (const auto* gptq = std::get_if<GptqLinear>(&first)) {
    info.bits = gptq->bits;
    info.group_size = gptq->groups == 1 ? -1 : gptq->group_size;
  } else {
    info.bits = bits(std::get<DenseLinear>(first).weight.entry->dtype);
  }
  for_each_linear(checkpoint, [&](const Linear& linear) {
    if (const auto* gptq = std::get_if<GptqLinear>(&linear)) info.act_order |= bool(gptq->g_idx);
  });
  info.parameters = checkpoint.parameters;
  info.file_bytes = checkpoint.file_bytes;
  info.weight_bytes = packed_bytes(backend, checkpoint);
  const std::uint64_t table = backend.table_bytes(checkpoint.embedding);
  info.bytes_per_token = info.weight_bytes - table + table / std::uint64_t(config.vocab);
  info.kv_bytes_per_token = backend.cache_bytes(config, kPageTokens) / kPageTokens;
  info.threads = backend.threads();
  info.device = backend.description();
  return info;
}

/// Reads the tokenizer beside the weights, if there is one, and compares its ids with the declared
/// ones.
void read_tokenizer(const std::filesystem::path& folder, const LlamaConfig& config,
                    Model::Inspection& found, std::optional<Tokenizer>& tokenizer,
                    std::string& why_not) {
  const std::filesystem::path file = folder / "tokenizer.model";
  if (!std::filesystem::exists(file)) {
    why_not = fmt::format("{}: no tokenizer.model{}", printable(folder.native()),
                          std::filesystem::exists(folder / "tokenizer.json")
                              ? " (tokenizer.json alone is not supported)"
                              : "");
    found.report.warnings.push_back(why_not + ": only token ids can be used");
    return;
  }
  tokenizer = Tokenizer::load(file);
  const bool same_eos = std::ranges::count(config.eos, tokenizer->eos()) > 0;
  if (tokenizer->bos() != config.bos || !same_eos)
    found.report.warnings.push_back(
        fmt::format("the configuration declares bos {} and eos {}, tokenizer.model has {} and {}: "
                    "tokenizer.model is right",
                    config.bos, printable(fmt::format("{}", fmt::join(config.eos, " or "))),
                    tokenizer->bos(), tokenizer->eos()));
  if (tokenizer->size() > config.vocab)
    fail(ErrorCode::malformed, "{}: {} pieces, more than the {} rows of the embedding table",
         printable(file.native()), tokenizer->size(), config.vocab);
  if (tokenizer->size() < config.vocab)
    found.report.decisions.push_back(fmt::format("ids {} to {} have no piece and are never chosen",
                                                 tokenizer->size(), config.vocab - 1));
}

/// Counts the bytes of tensors as they are placed and asks whether to go on.
class Loading {
 public:
  Loading(const ModelOptions& options, std::uint64_t total) : options_(options), total_(total) {
    report();
  }

  void placed(std::uint64_t bytes) {
    done_ = std::min(done_ + bytes, total_);
    report();
  }
  void finish() {
    done_ = total_;
    report();
  }

 private:
  void report() const {
    if (options_.progress && !options_.progress(done_, total_))
      fail(ErrorCode::cancelled, "loading cancelled after {} of {} bytes", done_, total_);
  }
  const ModelOptions& options_;
  std::uint64_t done_ = 0, total_;
};

ModelWeights load_weights(Backend& backend, const Checkpoint& checkpoint, Loading& loading) {
  const auto linear = [&](std::span<const Linear> parts) {
    Weight weight = backend.load_linear(parts);
    for (const Linear& part : parts) loading.placed(stored_bytes(part));
    return weight;
  };
  const auto norm = [&](const StoredTensor& tensor) {
    Weight weight = backend.load_norm(tensor);
    loading.placed(tensor.entry->bytes);
    return weight;
  };
  ModelWeights weights;
  weights.embedding = backend.load_table(checkpoint.embedding);
  loading.placed(checkpoint.embedding.entry->bytes);
  for (const LayerTensors& tensors : checkpoint.layers) {
    const LayerParts parts(tensors);
    LayerWeights layer;
    layer.attention_norm = norm(tensors.attention_norm);
    layer.qkv = linear(parts.qkv);
    layer.output = linear(parts.output);
    layer.mlp_norm = norm(tensors.mlp_norm);
    layer.gate_up = linear(parts.gate_up);
    layer.down = linear(parts.down);
    weights.layers.push_back(std::move(layer));
  }
  weights.norm = norm(checkpoint.norm);
  weights.head = linear({&checkpoint.head, 1});
  return weights;
}

void log_report(const ModelOptions& options, const Model::Inspection& found) {
  if (!options.log) return;
  options.log(Severity::info, found.report.format + " on " + found.info.device);
  for (const std::string& line : found.report.decisions) options.log(Severity::debug, line);
  for (const std::string& line : found.report.warnings) options.log(Severity::warning, line);
  if (!found.report.ignored.empty())
    options.log(Severity::info,
                fmt::format("{} tensors are not used, {} the first", found.report.ignored.size(),
                            found.report.ignored.front()));
}

MemoryEstimate estimate_memory(const Backend& backend, const Checkpoint& checkpoint, int rows,
                               int context) {
  const LlamaConfig& config = checkpoint.config;
  MemoryEstimate memory;
  memory.weights = allocated_bytes(backend, checkpoint);
  const std::uint64_t logits = std::uint64_t(config.vocab) * sizeof(float);
  const std::uint64_t host_scratch = logits * Backend::kLogitRows;
  const std::uint64_t host_session = 2 * logits + std::uint64_t(context) * sizeof(TokenId);
  const std::uint64_t scratch = backend.scratch_bytes(config, rows);
  const std::uint64_t cache = backend.allocated(backend.cache_bytes(config, context));
  memory.scratch = scratch + host_scratch;
  memory.session = cache + host_session;
  memory.loading = backend.loading_bytes(checkpoint);
  const std::uint64_t backend_bytes = memory.weights + scratch + cache;
  memory.host = host_scratch + host_session + (backend.is_host() ? backend_bytes : 0);
  memory.device = backend.is_host() ? 0 : backend_bytes;
  return memory;
}

/// Refuses what cannot fit before anything is allocated: with overcommitted memory it is too late
/// afterwards.
void check_room(const Backend& backend, const Checkpoint& checkpoint, int rows) {
  const std::uint64_t wanted =
      allocated_bytes(backend, checkpoint) + backend.scratch_bytes(checkpoint.config, rows);
  const std::uint64_t free = backend.free_bytes();
  require(wanted <= free, ErrorCode::out_of_memory, "{}: needs {} bytes on {}, {} are free",
          printable(checkpoint.folder.native()), wanted, backend.description(), free);
}

/// Standard library failures inside `f` become ours; partly loaded weights are freed on the way
/// out.
template <typename F>
auto translated(F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, "out of host memory while loading");
  } catch (const std::filesystem::filesystem_error& error) {
    fail(ErrorCode::not_found, "{}: {}", printable(error.path1().native()), error.code().message());
  }
}

}  // namespace

Model Model::load(const std::filesystem::path& path, const ModelOptions& options) {
  return translated([&] {
    check(options);
    Checkpoint checkpoint = Checkpoint::open(path, options.zero_points);
    auto loaded = std::make_shared<LoadedModel>();
    loaded->backend = make_backend(options);
    loaded->config = checkpoint.config;
    loaded->rows = options.rows;

    Loading loading(options, checkpoint.file_bytes);
    checkpoint.settle([&](std::uint64_t, std::uint64_t) {
      loading.placed(0);
      return true;
    });
    Inspection found{describe(*loaded->backend, checkpoint), checkpoint.report};
    read_tokenizer(checkpoint.folder, checkpoint.config, found, loaded->tokenizer,
                   loaded->no_tokenizer);
    log_report(options, found);

    check_room(*loaded->backend, checkpoint, options.rows);
    loaded->backend->reserve(checkpoint.config, options.rows);
    loaded->weights = load_weights(*loaded->backend, checkpoint, loading);
    loaded->backend->loaded();
    const auto rows = std::size_t(options.rows);
    loaded->pass.tokens.resize(rows);
    loaded->pass.positions.resize(rows);
    loaded->pass.sequences.resize(rows);
    loaded->pass.caches.resize(rows);
    loaded->pass.logits.resize(std::size_t(Backend::kLogitRows) *
                               std::size_t(checkpoint.config.vocab));
    loading.finish();
    loaded->info = std::move(found.info);
    loaded->report = std::move(found.report);
    return Model(std::move(loaded));
  });
}

Model::Inspection Model::inspect(const std::filesystem::path& path, const ModelOptions& options) {
  return translated([&] {
    check(options);
    const Checkpoint checkpoint = Checkpoint::open(path, options.zero_points);
    Inspection found{describe(*make_backend(options), checkpoint), checkpoint.report};
    std::optional<Tokenizer> tokenizer;
    std::string why_not;
    read_tokenizer(checkpoint.folder, checkpoint.config, found, tokenizer, why_not);
    return found;
  });
}

MemoryEstimate Model::estimate(const std::filesystem::path& path, const ModelOptions& options,
                               int context) {
  return translated([&] {
    check(options);
    require(context >= 1, ErrorCode::invalid_argument, "context is {}, expected 1 or more",
            context);
    return estimate_memory(*make_backend(options), Checkpoint::open(path, options.zero_points),
                           options.rows, context);
  });
}

const ModelInfo& Model::info() const noexcept { return loaded_->info; }
const LoadReport& Model::report() const noexcept { return loaded_->report; }
bool Model::has_tokenizer() const noexcept { return loaded_->tokenizer.has_value(); }

const Tokenizer& Model::tokenizer() const {
  require(has_tokenizer(), ErrorCode::not_found, "{}", loaded_->no_tokenizer);
  return *loaded_->tokenizer;
}

}  // namespace guanaco
