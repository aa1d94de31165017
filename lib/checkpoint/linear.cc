#include "checkpoint/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/check.h"
#include "support/half.h"

namespace guanaco {
namespace {

/// A one at the lowest bit of every code, for each word of a run; 3-bit codes run over three words.
void ones(int bits, std::uint32_t (&run)[3]) {
  run[0] = run[1] = run[2] = 0;
  for (int bit = 0; bit < (bits == 3 ? 96 : 32); bit += bits)
    run[bit / 32] |= std::uint32_t(1) << (bit % 32);
}

/// v1 files hold every zero point minus one, made by subtracting ones from whole runs of words with
/// borrow from code to code (reference/formats.md 1.4). Adding them back in the same way is exact
/// where adding to each code alone would not be.
void add_ones(std::span<std::uint32_t> words, int bits) {
  std::uint32_t run[3];
  ones(bits, run);
  if (bits != 3) {
    for (std::uint32_t& word : words) word += run[0];
    return;
  }
  for (std::size_t first = 0; first + 3 <= words.size(); first += 3) {
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::uint64_t sum = std::uint64_t(words[first + i]) + run[i] + carry;
      words[first + i] = std::uint32_t(sum);
      carry = sum >> 32;
    }
  }
}

/// Codes are one string of bits, lowest first, within the words of one row.
void unpack_row(std::span<const std::uint32_t> words, int bits, std::span<std::uint8_t> codes) {
  const std::uint64_t mask = (1u << bits) - 1;
  std::uint64_t pending = 0;
  int available = 0;
  auto next = words.begin();
  for (std::uint8_t& code : codes) {
    if (available < bits) {
      pending |= std::uint64_t(*next++) << available;
      available += 32;
    }
    code = std::uint8_t(pending & mask);
    pending >>= bits;
    available -= bits;
  }
}

template <typename T>
std::vector<T> read_as(const StoredTensor& tensor) {
  std::vector<T> values(std::size_t(tensor.entry->bytes / sizeof(T)));
  tensor.read(std::as_writable_bytes(std::span(values)));
  return values;
}

std::vector<std::uint8_t> read_zeros(const GptqLinear& linear) {
  std::vector<std::uint32_t> words = read_as<std::uint32_t>(linear.qzeros);
  if (linear.zero_points == ZeroPoints::v1) add_ones(words, linear.bits);
  const std::size_t row_words = words.size() / std::size_t(linear.groups);
  const std::size_t outputs = std::size_t(linear.outputs);
  std::vector<std::uint8_t> zeros(std::size_t(linear.groups) * outputs);
  for (std::size_t g = 0; g < std::size_t(linear.groups); ++g)
    unpack_row(std::span(words).subspan(g * row_words, row_words), linear.bits,
               std::span(zeros).subspan(g * outputs, outputs));
  return zeros;
}

std::vector<float> read_finite(const StoredTensor& tensor) {
  std::vector<float> values = tensor.read_floats();
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  require(bad == values.end(), ErrorCode::malformed,
          "tensor {}: expected finite numbers, found {} at element {}", tensor.entry->name,
          bad == values.end() ? 0.0f : *bad, bad - values.begin());
  return values;
}

std::vector<std::int32_t> read_groups(const GptqLinear& linear) {
  std::vector<std::int32_t> group(std::size_t(linear.inputs));
  if (!linear.g_idx) {
    for (int k = 0; k < linear.inputs; ++k) group[std::size_t(k)] = k / linear.group_size;
    return group;
  }
  return read_group_index(linear);
}

}  // namespace

void StoredTensor::read(std::span<std::byte> out) const {
  require(out.size() == entry->bytes, ErrorCode::internal, "tensor {}: reading {} bytes into {}",
          entry->name, entry->bytes, out.size());
  file->file().read(entry->offset, out);
}

void StoredTensor::read_rows(std::uint64_t first, std::span<std::byte> out) const {
  const std::uint64_t row_bytes = rows() == 0 ? 0 : entry->bytes / rows();
  const std::uint64_t start = first * row_bytes;
  require(first <= rows() && out.size() <= entry->bytes - start, ErrorCode::internal,
          "tensor {}: reading {} bytes from row {} of {}", entry->name, out.size(), first, rows());
  file->file().read(entry->offset + start, out);
}

std::vector<float> StoredTensor::read_floats() const {
  if (entry->dtype == DType::f32) return read_as<float>(*this);
  require(entry->dtype == DType::f16 || entry->dtype == DType::bf16, ErrorCode::unsupported,
          "tensor {}: expected F16, BF16 or F32, found {}", entry->name,
          guanaco::name(entry->dtype));
  const std::vector<std::uint16_t> halves = read_as<std::uint16_t>(*this);
  std::vector<float> values(halves.size());
  std::transform(halves.begin(), halves.end(), values.begin(),
                 entry->dtype == DType::f16 ? half_to_float : bfloat_to_float);
  return values;
}

const std::string& name(const Linear& linear) {
  return std::visit([](const auto& l) -> const std::string& { return l.name; }, linear);
}

int inputs(const Linear& linear) {
  return std::visit([](const auto& l) { return l.inputs; }, linear);
}

int outputs(const Linear& linear) {
  return std::visit([](const auto& l) { return l.outputs; }, linear);
}

std::uint64_t stored_bytes(const Linear& linear) {
  const auto sum = [](std::initializer_list<StoredTensor> tensors) {
    std::uint64_t bytes = 0;
    for (const StoredTensor& tensor : tensors)
      if (tensor) bytes += tensor.entry->bytes;
    return bytes;
  };
  if (const auto* dense = std::get_if<DenseLinear>(&linear))
    return sum({dense->weight, dense->bias});
  const auto& gptq = std::get<GptqLinear>(linear);
  return sum({gptq.qweight, gptq.qzeros, gptq.scales, gptq.g_idx, gptq.bias});
}

std::uint32_t GptqMatrix::code(int k, int n) const {
  const std::size_t bit = std::size_t(k) * std::size_t(bits);
  const std::size_t word = bit / 32 * std::size_t(outputs) + std::size_t(n);
  const int shift = int(bit % 32);
  std::uint32_t value = codes[word] >> shift;
  if (shift + bits > 32) value |= codes[word + std::size_t(outputs)] << (32 - shift);
  return value & ((1u << bits) - 1);
}

float GptqMatrix::weight(int k, int n) const {
  const std::size_t column =
      std::size_t(group[std::size_t(k)]) * std::size_t(outputs) + std::size_t(n);
  return scales[column] * float(int(code(k, n)) - int(zeros[column]));
}

GptqMatrix read_gptq(const GptqLinear& linear) {
  require(linear.zero_points != ZeroPoints::automatic, ErrorCode::internal,
          "{}: read before its checkpoint was settled", linear.name);
  GptqMatrix matrix;
  matrix.bits = linear.bits;
  matrix.inputs = linear.inputs;
  matrix.outputs = linear.outputs;
  matrix.groups = linear.groups;
  matrix.codes = read_as<std::uint32_t>(linear.qweight);
  matrix.zeros = read_zeros(linear);
  matrix.scales = read_finite(linear.scales);
  matrix.group = read_groups(linear);
  if (linear.bias) matrix.bias = read_finite(linear.bias);
  if (std::all_of(matrix.bias.begin(), matrix.bias.end(), [](float b) { return b == 0; }))
    matrix.bias.clear();
  return matrix;
}

std::vector<std::int32_t> read_group_index(const GptqLinear& linear) {
  std::vector<std::int32_t> group = read_as<std::int32_t>(linear.g_idx);
  for (std::size_t k = 0; k < group.size(); ++k)
    require(group[k] >= 0 && group[k] < linear.groups, ErrorCode::malformed,
            "tensor {}: expected groups from 0 to {}, found {} in row {}", linear.g_idx.entry->name,
            linear.groups - 1, group[k], k);
  return group;
}

bool has_uniform_zeros(const GptqLinear& linear, std::uint32_t code) {
  std::uint32_t pattern[3];
  ones(linear.bits, pattern);
  // Multiplying copies the code to the place of every one; 96 bits at once for three words.
  std::uint64_t carry = 0;
  for (std::uint32_t& word : pattern) {
    const std::uint64_t product = std::uint64_t(word) * code + carry;
    word = std::uint32_t(product);
    carry = product >> 32;
  }
  const std::size_t period = linear.bits == 3 ? 3 : 1;
  const std::vector<std::uint32_t> words = read_as<std::uint32_t>(linear.qzeros);
  for (std::size_t i = 0; i < words.size(); ++i)
    if (words[i] != pattern[i % period]) return false;
  return true;
}

bool has_neighbouring_groups(std::span<const std::int32_t> group, int group_size) {
  for (std::size_t k = 0; k < group.size(); ++k)
    if (group[k] != std::int32_t(k) / group_size) return false;
  return true;
}

}  // namespace guanaco
