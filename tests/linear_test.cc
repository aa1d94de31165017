#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "checkpoint_fixture.h"

// What the bits of a GPTQ linear mean (reference/formats.md 1.3, 1.4, 10), against a reference that
// knows nothing but a string of bits.

namespace guanaco {
namespace {

/// Puts `code` into a string of bits whose words are `stride` apart, lowest bits first.
void put_bits(std::uint32_t* words, std::size_t stride, std::size_t index, int bits,
              std::uint32_t code) {
  for (int bit = 0; bit < bits; ++bit) {
    const std::size_t at = index * std::size_t(bits) + std::size_t(bit);
    words[at / 32 * stride] |= (code >> bit & 1u) << (at % 32);
  }
}

/// Subtracts one at bit `at`, borrowing from the bits above as far as `end`.
void subtract_one(std::uint32_t* words, std::size_t at, std::size_t end) {
  for (; at < end; ++at) {
    const std::uint32_t bit = 1u << (at % 32);
    words[at / 32] ^= bit;
    if (!(words[at / 32] & bit)) return;  // it was one
  }
}

/// A linear with random contents, and what it was made of.
struct RandomLinear {
  int bits, inputs, outputs, groups, group_size;
  std::vector<std::uint32_t> codes, zeros;  ///< [inputs, outputs], [groups, outputs]
  std::vector<float> scales;                ///< [groups, outputs], exact in 16 bits
  std::vector<std::int32_t> group;          ///< [inputs]

  RandomLinear(int bits_, int inputs_, int outputs_, int group_size_, bool shuffled, unsigned seed)
      : bits(bits_), inputs(inputs_), outputs(outputs_), group_size(group_size_) {
    std::mt19937 random(seed);
    groups = (inputs + group_size - 1) / group_size;
    const std::uint32_t codes_of = 1u << bits;
    for (int i = 0; i < inputs * outputs; ++i) codes.push_back(random() % codes_of);
    for (int i = 0; i < groups * outputs; ++i) {
      zeros.push_back(random() % codes_of);
      scales.push_back(float(int(random() % 2001) - 1000) / 1024);
    }
    for (int k = 0; k < inputs; ++k) group.push_back(k / group_size);
    if (shuffled) std::shuffle(group.begin(), group.end(), random);
  }

  float weight(int k, int n) const {
    const int column = group[std::size_t(k)] * outputs + n;
    return scales[std::size_t(column)] *
           (float(codes[std::size_t(k * outputs + n)]) - float(zeros[std::size_t(column)]));
  }

  TensorFile::Tensor packed_codes() const {
    const std::size_t rows = std::size_t(inputs * bits / 32), columns = std::size_t(outputs);
    std::vector<std::uint32_t> words(rows * columns);
    for (std::size_t k = 0; k < std::size_t(inputs); ++k)
      for (std::size_t n = 0; n < columns; ++n)
        put_bits(&words[n], columns, k, bits, codes[k * columns + n]);
    return tensor(DType::i32, {rows, columns}, words);
  }

  /// v1: the bit string of a run as one number, less one at every code.
  TensorFile::Tensor packed_zeros(ZeroPoints version) const {
    const std::size_t row = std::size_t(outputs * bits / 32), run = bits == 3 ? 3 : 1;
    std::vector<std::uint32_t> words(std::size_t(groups) * row);
    for (std::size_t g = 0; g < std::size_t(groups); ++g)
      for (std::size_t n = 0; n < std::size_t(outputs); ++n)
        put_bits(&words[g * row], 1, n, bits, zeros[g * std::size_t(outputs) + n]);
    if (version == ZeroPoints::v1)
      for (std::size_t first = 0; first < words.size(); first += run)
        for (std::size_t bit = 0; bit < 32 * run; bit += std::size_t(bits))
          subtract_one(&words[first], bit, 32 * run);
    return tensor(DType::i32, {std::size_t(groups), row}, words);
  }

  template <typename T>
  static TensorFile::Tensor tensor(DType dtype, std::vector<std::uint64_t> shape,
                                   const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return {dtype, std::move(shape), std::vector<std::byte>(bytes.begin(), bytes.end())};
  }
};

/// A linear read back from a file.
struct Stored {
  TemporaryFolder folder;
  std::unique_ptr<SafetensorsFile> file;
  GptqLinear linear;

  Stored(const RandomLinear& made, ZeroPoints version) {
    const std::filesystem::path path = folder.path() / "linear.safetensors";
    {
      SafetensorsWriter empty(path, {});
      empty.finish();
    }
    TensorFile out(path);
    const std::vector<std::uint64_t> grid = {std::uint64_t(made.groups),
                                             std::uint64_t(made.outputs)};
    out.tensors["x.qweight"] = made.packed_codes();
    out.tensors["x.qzeros"] = made.packed_zeros(version);
    out.tensors["x.scales"] = RandomLinear::tensor(DType::f32, grid, made.scales);
    out.tensors["x.g_idx"] =
        RandomLinear::tensor(DType::i32, {std::uint64_t(made.inputs)}, made.group);
    out.write(path);
    file = std::make_unique<SafetensorsFile>(path);
    linear.name = std::string("x");
    linear.bits = made.bits;
    linear.inputs = made.inputs;
    linear.outputs = made.outputs;
    linear.groups = made.groups;
    linear.group_size = made.group_size;
    linear.zero_points = version;
    linear.qweight = {file.get(), file->find("x.qweight")};
    linear.qzeros = {file.get(), file->find("x.qzeros")};
    linear.scales = {file.get(), file->find("x.scales")};
    linear.g_idx = {file.get(), file->find("x.g_idx")};
  }
};

TEST_CASE("every code scale and zero point of random linears is read as it was packed") {
  unsigned seed = 1;
  for (const int bits : {2, 3, 4, 8})
    for (const int inputs : {128, 352, 11008})
      for (const int group_size : {32, 128, 11008})
        for (const bool shuffled : {false, true})
          for (const ZeroPoints version : {ZeroPoints::v1, ZeroPoints::v2}) {
            CAPTURE(bits);
            CAPTURE(inputs);
            CAPTURE(group_size);
            CAPTURE(shuffled);
            const RandomLinear made(bits, inputs, 32, std::min(group_size, inputs), shuffled,
                                    seed++);
            const Stored stored(made, version);
            const GptqMatrix matrix = read_gptq(stored.linear);
            CHECK(matrix.group == made.group);
            CHECK(matrix.scales == made.scales);
            CHECK(std::equal(matrix.zeros.begin(), matrix.zeros.end(), made.zeros.begin(),
                             made.zeros.end()));
            int wrong = 0;
            for (int k = 0; k < inputs; ++k)
              for (int n = 0; n < 32; ++n)
                wrong += matrix.code(k, n) != made.codes[std::size_t(k * 32 + n)] ||
                         matrix.weight(k, n) != made.weight(k, n);
            CHECK(wrong == 0);
          }
}

TEST_CASE("without g_idx input row k is in group k over group size and the last may be short") {
  const RandomLinear made(4, 352, 32, 128, false, 7);
  Stored stored(made, ZeroPoints::v2);
  stored.linear.g_idx = {};
  const GptqMatrix matrix = read_gptq(stored.linear);
  CHECK(matrix.groups == 3);
  CHECK(matrix.group == made.group);
  CHECK(matrix.group.back() == 2);
}

/// What one column of these words and zero words means.
GptqMatrix column(int bits, std::vector<std::uint32_t> words) {
  GptqMatrix matrix;
  matrix.bits = bits;
  matrix.inputs = int(words.size()) * 32 / bits;
  matrix.outputs = 1;
  matrix.codes = std::move(words);
  return matrix;
}

TEST_CASE("the conformance vectors of packing hold") {
  const GptqMatrix four = column(4, {0x87654321});
  for (int k = 0; k < 8; ++k) CHECK(four.code(k, 0) == std::uint32_t(k + 1));
  const GptqMatrix three = column(3, {0x43C67543, 0x7543C675, 0xC67543C6});
  for (int k = 0; k < 32; ++k) CHECK(three.code(k, 0) == std::uint32_t((5 * k + 3) % 8));
}

/// The zero points that one word stored in a file stands for.
std::vector<int> zeros_of(std::uint32_t word, ZeroPoints version) {
  const RandomLinear made(4, 32, 8, 32, false, 1);
  const Stored stored(made, version);
  TensorFile file(stored.file->file().path());
  std::memcpy(file.data<std::uint32_t>("x.qzeros"), &word, 4);
  file.write(stored.folder.path() / "zeros.safetensors");
  const SafetensorsFile changed(stored.folder.path() / "zeros.safetensors");
  GptqLinear linear = stored.linear;
  linear.qzeros = {&changed, changed.find("x.qzeros")};
  const GptqMatrix matrix = read_gptq(linear);
  return {matrix.zeros.begin(), matrix.zeros.end()};
}

TEST_CASE("the conformance vectors of zero points hold with a borrow between codes too") {
  CHECK(zeros_of(0x77777777, ZeroPoints::v1) == std::vector<int>(8, 8));
  CHECK(zeros_of(0x88888888, ZeroPoints::v2) == std::vector<int>(8, 8));
  CHECK(zeros_of(0x7777776F, ZeroPoints::v1) == std::vector<int>({0, 8, 8, 8, 8, 8, 8, 8}));
}

TEST_CASE("uniform zero points are recognised for every width") {
  for (const int bits : {2, 3, 4, 8})
    for (const ZeroPoints version : {ZeroPoints::v1, ZeroPoints::v2}) {
      RandomLinear made(bits, 128, 32, 32, false, 5);
      const std::uint32_t middle = 1u << (bits - 1);
      std::fill(made.zeros.begin(), made.zeros.end(), middle);
      CHECK(has_uniform_zeros(Stored(made, version).linear, middle) == (version == ZeroPoints::v2));
      CHECK(has_uniform_zeros(Stored(made, version).linear, middle - 1) ==
            (version == ZeroPoints::v1));
      made.zeros.back() = middle - 1;
      CHECK_FALSE(has_uniform_zeros(Stored(made, version).linear, middle));
      CHECK_FALSE(has_uniform_zeros(Stored(made, version).linear, middle - 1));
    }
}

TEST_CASE("scales that are not finite and a linear that is not settled are refused") {
  RandomLinear made(4, 128, 32, 32, false, 3);
  made.scales[5] = INFINITY;
  check_refused(ErrorCode::malformed, {"x.scales", "finite", "element 5"},
                [&] { read_gptq(Stored(made, ZeroPoints::v1).linear); });
  made.scales[5] = 1;
  check_refused(ErrorCode::internal, {"settled"},
                [&] { read_gptq(Stored(made, ZeroPoints::automatic).linear); });
}

TEST_CASE("neighbouring groups are told from scattered ones") {
  CHECK(has_neighbouring_groups(std::vector<std::int32_t>{0, 0, 1, 1, 2}, 2));
  CHECK_FALSE(has_neighbouring_groups(std::vector<std::int32_t>{0, 1, 0, 1, 2}, 2));
  CHECK_FALSE(has_neighbouring_groups(std::vector<std::int32_t>{0, 0, 0, 1, 1, 1}, 2));
  CHECK(has_neighbouring_groups({}, 128));
}

TEST_CASE("floats of 16 and 32 bits are read exactly and rows by number") {
  const std::vector<float> values = {0, -1.5f, 0.25f, 1024, -0.0078125f, 3};
  TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "floats.safetensors";
  std::vector<std::uint16_t> halves, bfloats;
  for (const float value : values) {
    halves.push_back(float_to_half(value));
    bfloats.push_back(float_to_bfloat(value));
  }
  {
    const std::vector<SafetensorsWriter::Tensor> layout = {
        {"f32", DType::f32, {3, 2}}, {"f16", DType::f16, {3, 2}}, {"bf16", DType::bf16, {3, 2}}};
    SafetensorsWriter writer(path, layout);
    writer.write(std::as_bytes(std::span(values)));
    writer.write(std::as_bytes(std::span(halves)));
    writer.write(std::as_bytes(std::span(bfloats)));
    writer.finish();
  }
  const SafetensorsFile file(path);
  for (const char* name : {"f32", "f16", "bf16"})
    CHECK(StoredTensor{&file, file.find(name)}.read_floats() == values);
  const StoredTensor tensor{&file, file.find("f32")};
  CHECK(tensor.rows() == 3);
  CHECK(tensor.elements() == 6);
  std::vector<float> rows(4);
  tensor.read_rows(1, std::as_writable_bytes(std::span(rows)));
  CHECK(rows == std::vector<float>(values.begin() + 2, values.end()));
  check_refused(ErrorCode::internal, {"f32", "from row 2"},
                [&] { tensor.read_rows(2, std::as_writable_bytes(std::span(rows))); });
}

}  // namespace
}  // namespace guanaco
