#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "support/check.h"

namespace guanaco::cpu {
namespace {

static_assert(kPagePositions == kPageTokens, "the kernels and the interface mean the same pages");

/// Packed positions of the widest product whose groups are whole blocks.
int widest(const LlamaConfig& config) {
  const int inputs = std::max({config.hidden, config.ffn, config.heads * config.head_dim});
  return int(round_up(std::uint64_t(inputs), kMaxBlock));
}

/// QuantisedRows of `rows` rows, for the smallest blocks; returns the bytes they take.
std::uint64_t lay_out(QuantisedRows& out, std::byte* base, int rows, int positions) {
  const std::uint64_t values = std::uint64_t(rows) * std::uint64_t(positions);
  const std::uint64_t scales = values / 32;
  out.values = reinterpret_cast<std::int16_t*>(base);
  out.scales = reinterpret_cast<float*>(base + values * sizeof(std::int16_t));
  out.sums = reinterpret_cast<std::int32_t*>(base + values * sizeof(std::int16_t) +
                                             scales * sizeof(float));
  return values * sizeof(std::int16_t) + scales * (sizeof(float) + sizeof(std::int32_t));
}

/// Tiles that a pass of `rows` rows can need: one sequence each is the worst.
std::size_t most_tiles(const LlamaConfig& config, int rows) {
  const int queries = config.heads / config.kv_heads;
  return std::size_t(rows) * std::size_t((queries + kMaxQueries - 1) / kMaxQueries);
}

}  // namespace

std::uint64_t Scratch::lay_out(std::byte* base, const LlamaConfig& config, int rows) {
  std::uint64_t bytes = 0;
  const auto take = [&]<typename T>(T*& array, int width) {
    array = reinterpret_cast<T*>(base + bytes);
    bytes += round_up(std::uint64_t(rows) * std::uint64_t(width) * sizeof(T), 64);
  };
  const int heads = config.heads * config.head_dim, kv_heads = config.kv_heads * config.head_dim;
  take(residual, config.hidden);
  take(normed, config.hidden);
  take(product, std::max(heads + 2 * kv_heads, 2 * config.ffn));
  take(query, heads);
  take(attended, heads);
  take(mlp, config.ffn);
  take(cosine, config.head_dim / 2);
  take(sine, config.head_dim / 2);
  return bytes;
}

namespace {

std::uint64_t page_bytes(const LlamaConfig& config) {
  return std::uint64_t(config.layers) * 2 * std::uint64_t(config.kv_heads) *
         section_bytes(config.head_dim);
}

/// Stores x as integers `stride` apart, and the scale that turns them back.
void store_integers(const float* x, int count, int stride, std::int16_t* out, float* scale) {
  // As integers, magnitudes of floats keep their order and NaN is the largest: it reaches the
  // scale.
  std::uint32_t magnitude = 0;
  for (int i = 0; i < count; ++i)
    magnitude = std::max(magnitude, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  const float largest = std::bit_cast<float>(magnitude);
  const float inverse = largest > 0 ? 32767 / largest : 0;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  for (int i = 0; i < count; ++i)
    out[i * stride] = std::int16_t(std::bit_cast<std::uint32_t>(x[i] * inverse + 12582912.0f));
  *scale = largest / 32767;
}

}  // namespace

std::uint64_t Pages::bytes(const LlamaConfig& config, int tokens) {
  return round_up(std::uint64_t(tokens), kPagePositions) / kPagePositions * page_bytes(config);
}

Pages::Pages(const LlamaConfig& config, int tokens)
    : kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      tokens_(tokens),
      page_bytes_(page_bytes(config)),
      memory_(bytes(config, tokens), "key/value cache") {}

HeadCache Pages::head(int layer, int kv_head) const {
  const std::size_t section = section_bytes(head_dim_), heads = std::size_t(kv_heads_);
  const std::byte* const keys =
      memory_.data() + (std::size_t(layer) * 2 * heads + std::size_t(kv_head)) * section;
  return {keys, keys + heads * section, page_bytes_};
}

void Pages::append(int layer, int position, const float* key, const float* value) {
  const std::size_t page = std::size_t(position / kPagePositions) * page_bytes_;
  const std::size_t integers = std::size_t(kPagePositions * head_dim_) * sizeof(std::int16_t);
  const int place = position % kPagePositions;
  for (int h = 0; h < kv_heads_; ++h) {
    std::byte* const keys = memory_.data() + (head(layer, h).keys - memory_.data()) + page;
    std::byte* const values = keys + std::size_t(kv_heads_) * section_bytes(head_dim_);
    store_integers(key + h * head_dim_, head_dim_, kPagePositions,
                   reinterpret_cast<std::int16_t*>(keys) + place,
                   reinterpret_cast<float*>(keys + integers) + place);
    store_integers(value + h * head_dim_, head_dim_, 1,
                   reinterpret_cast<std::int16_t*>(values) + place * head_dim_,
                   reinterpret_cast<float*>(values + integers) + place);
  }
}

CpuBackend::CpuBackend(int threads, Isa isa)
    : kernels_(kernels_of(isa)), pool_(threads > 0 ? threads : usable_cpus()) {}

std::string CpuBackend::description() const {
  return fmt::format("CPU, {}, {} thread{}", kernels_.name, threads(), threads() == 1 ? "" : "s");
}

std::uint64_t CpuBackend::linear_bytes(std::span<const Linear> parts) const {
  return packed_bytes(parts);
}
std::uint64_t CpuBackend::table_bytes(const StoredTensor& table) const {
  return table.entry->bytes;
}
std::uint64_t CpuBackend::norm_bytes(const LlamaConfig& config) const {
  return std::uint64_t(config.hidden) * sizeof(float);
}
std::uint64_t CpuBackend::scratch_bytes(const LlamaConfig& config, int rows) const {
  Scratch scratch;
  QuantisedRows quantised;
  return scratch.lay_out(nullptr, config, rows) +
         lay_out(quantised, nullptr, rows, std::max(positions_, widest(config))) +
         most_tiles(config, rows) * sizeof(Tile);
}
std::uint64_t CpuBackend::cache_bytes(const LlamaConfig& config, int tokens) const {
  return Pages::bytes(config, tokens);
}
std::uint64_t CpuBackend::loading_bytes(const Checkpoint& checkpoint) const {
  std::uint64_t most = 0;
  for_each_linear(checkpoint, [&](const Linear& linear) {
    most = std::max(most, packing_bytes(linear, threads()));
  });
  return most;
}
std::uint64_t CpuBackend::free_bytes() const { return available_bytes(); }

Weight CpuBackend::load_linear(std::span<const Linear> parts) {
  auto weight = pack(parts, pool_);
  if (weight->positions > positions_) {
    positions_ = weight->positions;
    if (rows_ > 0) fit_quantised();
  }
  return weight;
}

Weight CpuBackend::load_norm(const StoredTensor& norm) {
  auto weight = std::make_unique<Norm>();
  weight->values = norm.read_floats();
  require_finite(norm, weight->values);
  weight->bytes = weight->values.size() * sizeof(float);
  return weight;
}

Weight CpuBackend::load_table(const StoredTensor& tensor) {
  auto table = std::make_unique<Table>();
  table->element = element_of(tensor);
  table->rows = int(tensor.rows());
  table->width = int(tensor.elements() / tensor.rows());
  table->memory = Buffer(tensor.entry->bytes, tensor.entry->name);
  table->bytes = tensor.entry->bytes;
  const std::size_t row_bytes = std::size_t(table->width) * size_of(table->element);
  pool_.parallel_for(table->rows, [&](int begin, int end) {
    const std::span<std::byte> rows(table->memory.data() + std::size_t(begin) * row_bytes,
                                    std::size_t(end - begin) * row_bytes);
    tensor.read_rows(std::uint64_t(begin), rows);
    require_finite(tensor, rows);
  });
  return table;
}

void CpuBackend::reserve(const LlamaConfig& config, int rows) {
  Scratch scratch;
  Buffer memory(scratch.lay_out(nullptr, config, rows), "scratch");
  scratch.lay_out(memory.data(), config, rows);
  tiles_.reserve(most_tiles(config, rows));
  positions_ = std::max(positions_, widest(config));
  rotary_.emplace(config.rotary, config.head_dim, config.context);
  config_ = config;
  rows_ = rows;
  scratch_ = scratch;
  scratch_memory_ = std::move(memory);
  fit_quantised();
}

void CpuBackend::fit_quantised() {
  quantised_memory_ =
      Buffer(lay_out(quantised_, nullptr, rows_, positions_), "quantised activations");
  lay_out(quantised_, quantised_memory_.data(), rows_, positions_);
}

std::unique_ptr<KvPages> CpuBackend::make_pages(const LlamaConfig& config, int tokens) {
  return std::make_unique<Pages>(config, tokens);
}

Pages& CpuBackend::pages(const Rows& rows, int row) {
  return static_cast<Pages&>(*rows.caches[std::size_t(rows.sequences[std::size_t(row)])]);
}

std::span<float> CpuBackend::activation(Activation activation, int rows) const {
  const std::size_t count = std::size_t(rows);
  const std::size_t heads = std::size_t(config_.heads) * std::size_t(config_.head_dim);
  switch (activation) {
    case Activation::residual:
      return {scratch_.residual, count * std::size_t(config_.hidden)};
    case Activation::query:
      return {scratch_.query, count * heads};
    case Activation::attended:
      return {scratch_.attended, count * heads};
    case Activation::mlp:
      break;
  }
  return {scratch_.mlp, count * std::size_t(config_.ffn)};
}

std::vector<float> CpuBackend::read(Activation which, int rows) const {
  const std::span<float> values = activation(which, rows);
  return {values.begin(), values.end()};
}

void CpuBackend::write(Activation which, std::span<const float> values) {
  require(values.size() <= activation(which, rows_).size(), ErrorCode::internal,
          "{} activations do not fit the scratch of {} rows", values.size(), rows_);
  std::copy(values.begin(), values.end(), activation(which, rows_).begin());
}

}  // namespace guanaco::cpu

namespace guanaco {

std::unique_ptr<Backend> make_cpu_backend(int threads, cpu::Isa isa) {
  return std::make_unique<cpu::CpuBackend>(threads, isa);
}

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return make_cpu_backend(threads, cpu::best_isa());
}

}  // namespace guanaco
