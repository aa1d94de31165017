// Repacking against a second reading of cuda/layout.h. Needs a GPU.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>

#include <doctest/doctest.h>

#include "cuda_fixture.h"
#include "kernels.h"
#include "packed_order.h"
#include "support/half.h"

using namespace guanaco;
using namespace guanaco::cuda;

namespace {

std::vector<std::uint32_t> random_words(std::size_t count, std::mt19937& random) {
  std::vector<std::uint32_t> words(count);
  for (auto& word : words) word = random();
  return words;
}

/// Code `i` of a string of codes, lowest bits first, whose words lie `stride` apart.
std::uint32_t code_at(const std::uint32_t* words, std::size_t stride, int bits, int i) {
  std::uint32_t code = 0;
  for (int b = 0; b < bits; ++b) {
    const int bit = i * bits + b;
    code |= (words[std::size_t(bit / 32) * stride] >> (bit % 32) & 1u) << b;
  }
  return code;
}

/// A random GPTQ weight and what it means.
struct Gptq {
  int bits, inputs, outputs, groups, scale_type;
  bool v1;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> half_scales;
  std::vector<float> scales;
  std::vector<std::int32_t> group;
  std::vector<int> zeros;  // [groups][outputs]
  DeviceBuffer device[5];

  Gptq(int bits, int inputs, int outputs, std::vector<std::int32_t> group_of, int scale_type,
       bool v1, std::mt19937& random)
      : bits(bits),
        inputs(inputs),
        outputs(outputs),
        scale_type(scale_type),
        v1(v1),
        group(std::move(group_of)) {
    groups = *std::max_element(group.begin(), group.end()) + 1;
    const std::size_t row_words = std::size_t(outputs) * bits / 32;
    qweight = random_words(std::size_t(inputs) * bits / 32 * outputs, random);
    qzeros = random_words(groups * row_words, random);
    if (v1)
      qzeros[0] = qzeros[groups * row_words - 1] =
          0xffffffffu;  // ones carry through the whole word
    for (int i = 0; i < groups * outputs; ++i) {
      const float scale = std::uniform_real_distribution<float>(-0.02f, 0.02f)(random);
      const std::uint16_t half = scale_type == 0
                                     ? float_to_half(scale)
                                     : std::uint16_t(std::bit_cast<std::uint32_t>(scale) >> 16);
      half_scales.push_back(half);
      scales.push_back(scale_type == 0   ? half_to_float(half)
                       : scale_type == 1 ? bfloat_to_float(half)
                                         : scale);
    }
    // v1: the codes of a run, as one number, plus a one at each code.
    const int run_bits = bits == 3 ? 96 : 32, run_codes = run_bits / bits;
    zeros.resize(std::size_t(groups) * outputs);
    for (int g = 0; g < groups; ++g)
      for (int first = 0; first < outputs; first += run_codes) {
        unsigned __int128 run = 0, ones = 0;
        for (int w = 0; w < run_bits / 32; ++w)
          run |=
              (unsigned __int128)(qzeros[g * row_words + first / run_codes * (run_bits / 32) + w])
              << (32 * w);
        for (int i = 0; i < run_codes; ++i) ones |= (unsigned __int128)(1) << (i * bits);
        if (v1) run += ones;
        for (int i = 0; i < run_codes && first + i < outputs; ++i)
          zeros[std::size_t(g) * outputs + first + i] =
              int(std::uint32_t(run >> (i * bits)) & ((1u << bits) - 1));
      }
    device[0] = upload(qweight);
    device[1] = upload(qzeros);
    device[2] = scale_type == 2 ? upload(scales) : upload(half_scales);
    device[3] = upload(group);
    device[4] = upload(std::vector<BadScale>{~BadScale(0)});
  }
  GptqSource source() const {
    return {device[0].as<std::uint32_t>(),
            device[1].as<std::uint32_t>(),
            device[2].as<void>(),
            bits,
            inputs,
            outputs,
            groups,
            scale_type,
            v1,
            0,
            device[3].as<int>(),
            device[4].as<BadScale>(),
            0};
  }
};

/// What a position of a packed row holds.
struct Element {
  int code = -1, zero = -1;
  float value = NAN;  // scale, or the float itself
};

/// [strips * 16][strip_blocks * 128], by the words of layout.h.
std::vector<Element> decode(const StreamedWeight& weight, const std::vector<std::uint8_t>& bytes) {
  const int width = weight.strip_blocks * 128;
  std::vector<Element> elements(std::size_t(weight.strips) * 16 * width);
  for (int strip = 0; strip < weight.strips; ++strip)
    for (int block = 0; block < weight.strip_blocks; ++block) {
      const std::uint8_t* at =
          bytes.data() + (std::size_t(strip) * weight.strip_blocks + block) * weight.block_bytes;
      const auto element = [&](int row, int input) -> Element& {
        return elements[(std::size_t(strip) * 16 + row) * width + block * 128 + input];
      };
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 2; ++r)
          for (int two = 0; two < 2; ++two) {
            if (weight.kind == WeightKind::nibble)
              for (int h = 0; h < 2; ++h)
                for (int b = 0; b < 4; ++b) {
                  const int byte = at[(2 * h + two) * 256 + lane * 8 + r * 4 + b],
                            input = 64 * h + 32 * two + 4 * t + b;
                  element(g + 8 * r, input).code = byte & 15;
                  element(g + 8 * r, input + 16).code = byte >> 4;
                }
            if (weight.kind == WeightKind::byte)
              for (int m = 0; m < 4; ++m)
                for (int b = 0; b < 4; ++b)
                  element(g + 8 * r, 32 * m + 16 * two + 4 * t + b).code =
                      at[m * 512 + lane * 16 + (2 * two + r) * 4 + b];
            if (weight.kind == WeightKind::half || weight.kind == WeightKind::bfloat)
              for (int m = 0; m < 8; ++m)
                for (int i = 0; i < 2; ++i) {
                  std::uint16_t bits;
                  std::memcpy(&bits, at + m * 512 + lane * 16 + (2 * two + r) * 4 + 2 * i, 2);
                  element(g + 8 * r, 16 * m + 8 * two + 2 * t + i).value =
                      weight.kind == WeightKind::half ? half_to_float(bits) : bfloat_to_float(bits);
                }
          }
      }
      const std::uint8_t* scales = at + element_bytes(weight.kind);
      const std::uint8_t* zeros = scales + weight.runs * 16 * (weight.float_scales ? 4 : 2);
      for (int row = 0; row < 16; ++row)
        for (int input = 0; input < 128; ++input) {
          if (weight.kind == WeightKind::single)
            std::memcpy(&element(row, input).value, at + (row * 128 + input) * 4, 4);
          if (weight.kind != WeightKind::nibble && weight.kind != WeightKind::byte) continue;
          const int run = input / (128 / weight.runs), place = run * 16 + row % 8 * 2 + row / 8;
          if (weight.float_scales) {
            std::memcpy(&element(row, input).value, scales + place * 4, 4);
          } else {
            std::uint16_t bits;
            std::memcpy(&bits, scales + place * 2, 2);
            element(row, input).value = half_to_float(bits);
          }
          element(row, input).zero = weight.kind == WeightKind::byte
                                         ? zeros[run * 16 + row]
                                         : zeros[run * 8 + row / 2] >> (row % 2 * 4) & 15;
        }
    }
  return elements;
}

/// Row of a weight (strip * 16 + row) that an output of a part goes to.
int packed_row(const StripMap& map, int output) {
  int strip = output / 16, row = output % 16;
  if (map.order == StripOrder::rotary) {
    const int head = output / map.head_dim, inside = output % map.head_dim, half = map.head_dim / 2;
    strip = head * map.head_dim / 16 + inside % half / 8;
    row = inside % 8 + (inside < half ? 0 : 8);
  }
  if (map.order == StripOrder::gate_up) {
    strip = output / 8;
    row = output % 8 + 8 * map.half;
  }
  return (map.first_strip + strip) * 16 + row;
}

struct Packed {
  StreamedWeight weight;
  DeviceBuffer blocks, order;
  std::vector<std::int32_t> host_order;

  Packed(WeightKind kind, int inputs, int strips, int runs, bool float_scales,
         std::vector<std::int32_t> positions)
      : host_order(std::move(positions)) {
    weight.kind = kind;
    weight.inputs = inputs;
    weight.strips = strips;
    weight.runs = runs;
    weight.float_scales = float_scales;
    weight.strip_blocks = host_order.empty() ? (inputs + 127) / 128 : int(host_order.size() / 128);
    weight.block_bytes = block_bytes(kind, runs, float_scales, weight.strip_blocks);
    blocks = DeviceBuffer(weight.bytes(), "a test");
    check(cudaMemset(blocks.as<void>(), 0, blocks.bytes()), "cudaMemset");
    weight.blocks = blocks.as<std::uint8_t>();
    if (host_order.empty()) return;
    order = upload(host_order);
    weight.order = order.as<int>();
  }
  std::vector<Element> elements() const {
    return decode(weight, download<std::uint8_t>(weight.blocks, weight.bytes()));
  }
  int input(int position) const {
    return host_order.empty() ? (position < weight.inputs ? position : -1)
                              : host_order[std::size_t(position)];
  }
};

/// Elements of `part` that are not what they should be; marks its rows.
int count_wrong(const Packed& packed, const std::vector<Element>& elements, const Gptq& part,
                const StripMap& map, std::vector<bool>& written) {
  const int width = packed.weight.strip_blocks * 128, run = 128 / packed.weight.runs;
  int wrong = 0;
  for (int n = 0; n < part.outputs; ++n) {
    const int row = packed_row(map, n);
    written[std::size_t(row)] = true;
    for (int first = 0; first < width; first += run) {
      int group = -1;
      for (int p = first; p < first + run; ++p)
        if (packed.input(p) >= 0) group = part.group[std::size_t(packed.input(p))];
      const std::size_t column = std::size_t(std::max(group, 0)) * part.outputs + n;
      for (int p = first; p < first + run; ++p) {
        const int k = packed.input(p);
        const Element& found = elements[std::size_t(row) * width + p];
        const int code =
            k < 0 ? 0
                  : int(code_at(part.qweight.data() + n, std::size_t(part.outputs), part.bits, k));
        wrong += k >= 0 && part.group[std::size_t(k)] != group;
        wrong += found.code != code || found.zero != (group < 0 ? 0 : part.zeros[column]) ||
                 found.value != (group < 0 ? 0 : part.scales[column]);
      }
    }
  }
  return wrong;
}

int count_nonzero(const std::vector<Element>& elements, const std::vector<bool>& written,
                  int width) {
  int wrong = 0;
  for (std::size_t i = 0; i < elements.size(); ++i)
    if (!written[i / width])
      wrong += elements[i].code > 0 || elements[i].zero > 0 || elements[i].value != 0;
  return wrong;
}

std::vector<std::int32_t> neighbouring(int inputs, int size) {
  std::vector<std::int32_t> group(static_cast<std::size_t>(inputs));
  for (int k = 0; k < inputs; ++k) group[std::size_t(k)] = k / size;
  return group;
}

}  // namespace

TEST_CASE("packed order: every row once and no run in two groups") {
  std::mt19937 random(1);
  CHECK(packed_order(neighbouring(512, 128), 4, 128).empty());
  CHECK(packed_order(neighbouring(416, 32), 13, 32).empty());
  CHECK(packed_order(neighbouring(300, 128), 3, 128).empty());
  CHECK(packed_order(neighbouring(256, 16), 16, 32).size() == 512);
  for (int run : {32, 64, 128}) {
    std::vector<std::int32_t> group(500);
    for (auto& g : group) g = std::int32_t(random() % 7);
    const auto order = packed_order(group, 9, run);
    REQUIRE(order.size() % 128 == 0);
    std::vector<int> seen(group.size());
    for (std::size_t p = 0; p < order.size(); ++p) {
      if (order[p] < 0) continue;
      ++seen[std::size_t(order[p])];
      const std::size_t first = p / run * run;
      CHECK(group[std::size_t(order[p])] == group[std::size_t(order[first])]);
      if (p > first) CHECK(order[p] > order[p - 1]);
    }
    CHECK(std::count(seen.begin(), seen.end(), 1) == 500);
  }
}

TEST_CASE("repacked GPTQ weights hold every code and zero point and scale of the file") {
  if (!has_device()) return;
  std::mt19937 random(2);
  const StripMap plain{}, heads{StripOrder::rotary, 64, 0, 0}, gate{StripOrder::gate_up, 0, 0, 0},
      up{StripOrder::gate_up, 0, 0, 1};
  for (int bits : {2, 3, 4, 8})
    for (int group_size : {32, 64, 128, 96, 1024})
      for (bool shuffled : {false, true})
        for (int scale_type : {0, 1, 2}) {
          CAPTURE(bits);
          CAPTURE(group_size);
          CAPTURE(shuffled);
          CAPTURE(scale_type);
          const bool v1 = (random() & 1u) != 0;
          const int inputs = group_size == 64 ? 320 : 768;  // an odd number of blocks too
          std::vector<std::int32_t> group = neighbouring(inputs, group_size);
          const int groups = group.back() + 1;
          if (shuffled) std::shuffle(group.begin(), group.end(), random);
          const int runs = runs_per_block(group_size, groups);
          const WeightKind kind = bits == 8 ? WeightKind::byte : WeightKind::nibble;
          const auto order = packed_order(group, groups, 128 / runs);
          CHECK(order.empty() == (groups == 1 || !shuffled));
          const auto part = [&](int outputs) {
            return Gptq(bits, inputs, outputs, group, scale_type, v1, random);
          };

          {  // Q | K | V of 3, 1 and 1 heads of 64, and a plain part of 96
            const Gptq q = part(192), k = part(64), v = part(96);
            const StripMap k_map{StripOrder::rotary, 64, 12, 0}, v_map{StripOrder::plain, 0, 16, 0};
            Packed packed(kind, inputs, 22, runs, scale_type != 0, order);
            repack_gptq(q.source(), heads, packed.weight.order, packed.weight, nullptr);
            repack_gptq(k.source(), k_map, packed.weight.order, packed.weight, nullptr);
            repack_gptq(v.source(), v_map, packed.weight.order, packed.weight, nullptr);
            const auto elements = packed.elements();
            std::vector<bool> written(22 * 16);
            CHECK(count_wrong(packed, elements, q, heads, written) == 0);
            CHECK(count_wrong(packed, elements, k, k_map, written) == 0);
            CHECK(count_wrong(packed, elements, v, v_map, written) == 0);
            CHECK(std::count(written.begin(), written.end(), true) == 22 * 16);
          }
          {  // gate | up of 160 outputs: not a multiple of a tile
            const Gptq g = part(160), u = part(160);
            Packed packed(kind, inputs, 20, runs, scale_type != 0, order);
            repack_gptq(g.source(), gate, packed.weight.order, packed.weight, nullptr);
            repack_gptq(u.source(), up, packed.weight.order, packed.weight, nullptr);
            const auto elements = packed.elements();
            std::vector<bool> written(20 * 16);
            CHECK(count_wrong(packed, elements, g, gate, written) == 0);
            CHECK(count_wrong(packed, elements, u, up, written) == 0);
          }
          {  // as floats, in the order of the inputs
            const Gptq q = part(128);
            Packed packed(WeightKind::single, inputs, 8, 1, false, {});
            repack_gptq_single(q.source(), heads, packed.weight, nullptr);
            const auto elements = packed.elements();
            int wrong = 0;
            for (int n = 0; n < q.outputs; ++n)
              for (int k = 0; k < inputs; ++k) {
                const std::size_t column = std::size_t(group[std::size_t(k)]) * q.outputs + n;
                const int code =
                    int(code_at(q.qweight.data() + n, std::size_t(q.outputs), bits, k));
                wrong +=
                    elements[std::size_t(packed_row(heads, n)) * packed.weight.strip_blocks * 128 +
                             k]
                        .value != q.scales[column] * float(code - q.zeros[column]);
              }
            CHECK(wrong == 0);
          }
        }
  // 8-bit outputs that end in the middle of a strip: the rest is nothing.
  const Gptq ragged(8, 256, 1044, neighbouring(256, 128), 0, true, random);
  Packed packed(WeightKind::byte, 256, 66, 1, false, {});
  check(cudaMemset(packed.blocks.as<void>(), 0xff, packed.blocks.bytes()), "cudaMemset");
  repack_gptq(ragged.source(), plain, nullptr, packed.weight, nullptr);
  const auto elements = packed.elements();
  std::vector<bool> written(66 * 16);
  CHECK(count_wrong(packed, elements, ragged, plain, written) == 0);
  CHECK(count_nonzero(elements, written, 256) == 0);
}

TEST_CASE("repacked dense weights hold every element whatever the slices they came in") {
  if (!has_device()) return;
  std::mt19937 random(3);
  const StripMap maps[] = {{},
                           {StripOrder::rotary, 48, 2, 0},
                           {StripOrder::gate_up, 0, 0, 0},
                           {StripOrder::gate_up, 0, 0, 1}};
  for (int type : {0, 1, 2})
    for (bool single : {false, true})
      for (const StripMap& map : maps)
        for (int slice : {5, 16, 96, 1000}) {
          CAPTURE(type);
          CAPTURE(slice);
          const int inputs = 276, outputs = map.order == StripOrder::rotary ? 144 : 150;
          const WeightKind kind = type == 2 || single ? WeightKind::single
                                  : type == 0         ? WeightKind::half
                                                      : WeightKind::bfloat;
          std::vector<float> values;
          std::vector<std::uint16_t> halves;
          for (int i = 0; i < inputs * outputs; ++i) {
            const float value = std::normal_distribution<float>()(random);
            halves.push_back(type == 0 ? float_to_half(value)
                                       : std::uint16_t(std::bit_cast<std::uint32_t>(value) >> 16));
            values.push_back(type == 0   ? half_to_float(halves.back())
                             : type == 1 ? bfloat_to_float(halves.back())
                                         : value);
          }
          const DeviceBuffer from = type == 2 ? upload(values) : upload(halves);
          Packed packed(kind, inputs, 21, 1, false, {});
          for (int first = 0; first < outputs; first += slice)
            repack_dense(from.as<char>() + std::size_t(first) * inputs * (type == 2 ? 4 : 2), type,
                         first, std::min(slice, outputs - first), map, packed.weight, nullptr);
          const auto elements = packed.elements();
          std::vector<bool> written(21 * 16);
          int wrong = 0;
          for (int n = 0; n < outputs; ++n) {
            written[std::size_t(packed_row(map, n))] = true;
            for (int k = 0; k < 384; ++k)
              wrong += elements[std::size_t(packed_row(map, n)) * 384 + k].value !=
                       (k < inputs ? values[std::size_t(n) * inputs + k] : 0.0f);
          }
          CHECK(wrong == 0);
          CHECK(count_nonzero(elements, written, 384) == 0);
        }
}

TEST_CASE("repacking the 13B model takes milliseconds") {
  if (!has_device()) return;
  std::mt19937 random(4);
  std::puts("repack, 13B layer, 4bit-128g            ms     GB/s (read + written)   40 layers ms");
  for (bool shuffled : {false, true}) {
    double layer = 0, bytes = 0;
    const auto time = [&](const char* name, int inputs,
                          std::vector<std::pair<int, StripMap>> parts) {
      std::vector<std::int32_t> group = neighbouring(inputs, 128);
      if (shuffled) std::shuffle(group.begin(), group.end(), random);
      std::vector<Gptq> sources;
      int strips = 0;
      for (const auto& [outputs, map] : parts) {
        sources.emplace_back(4, inputs, outputs, group, 0, true, random);
        strips += outputs / 16;
      }
      Packed packed(WeightKind::nibble, inputs, strips, 1, false,
                    packed_order(group, inputs / 128, 128));
      const double ms = milliseconds([&](cudaStream_t stream) {
        for (std::size_t i = 0; i < sources.size(); ++i)
          repack_gptq(sources[i].source(), parts[i].second, packed.weight.order, packed.weight,
                      stream);
      });
      std::printf("  %-12s %-14s %12.3f %8.0f\n", name, shuffled ? "act-order" : "", ms,
                  2e-6 * double(packed.weight.bytes()) / ms);
      layer += ms;
      bytes += 2.0 * double(packed.weight.bytes());
    };
    time("qkv", 5120,
         {{5120, {StripOrder::rotary, 128, 0, 0}},
          {5120, {StripOrder::rotary, 128, 320, 0}},
          {5120, {StripOrder::plain, 0, 640, 0}}});
    time("o", 5120, {{5120, {}}});
    time("gate_up", 5120,
         {{13824, {StripOrder::gate_up, 0, 0, 0}}, {13824, {StripOrder::gate_up, 0, 0, 1}}});
    time("down", 13824, {{5120, {}}});
    std::printf("  %-12s %-14s %12.3f %8.0f %24.1f\n", "layer", shuffled ? "act-order" : "", layer,
                1e-6 * bytes / layer, 40 * layer);
    CHECK(40 * layer < 30);
  }
  const std::vector<std::uint16_t> halves(std::size_t(5120) * 32000);
  const DeviceBuffer from = upload(halves);
  Packed packed(WeightKind::half, 5120, 2000, 1, false, {});
  const double ms = milliseconds([&](cudaStream_t stream) {
    repack_dense(from.as<void>(), 0, 0, 32000, {}, packed.weight, stream);
  });
  std::printf("  %-12s %-14s %12.3f %8.0f\n", "lm_head", "fp16", ms,
              2e-6 * double(packed.weight.bytes()) / ms);
}

TEST_CASE("the first part with a scale that is no finite number is put down") {
  if (!has_device()) return;
  std::mt19937 random(5);
  const StripMap plain;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto part_of = [](BadScale bad) { return unsigned(bad >> 32); };
  for (const int bits : {4, 8})
    for (const bool single : {false, true}) {
      Gptq q(bits, 256, 64, neighbouring(256, 128), 2, true, random);
      const auto codes = bits == 8 ? WeightKind::byte : WeightKind::nibble;
      Packed packed(single ? WeightKind::single : codes, 256, 4, 1, !single, {});
      const auto repack = [&](float scale, unsigned number) {
        check(cudaMemcpy(q.device[2].as<float>() + 64 + 13, &scale, sizeof scale,
                         cudaMemcpyHostToDevice),
              "cudaMemcpy");
        GptqSource source = q.source();
        source.number = number;
        source.group = number % 2 == 0 ? source.group : nullptr;
        source.group_size = 128;
        single ? repack_gptq_single(source, plain, packed.weight, nullptr)
               : repack_gptq(source, plain, nullptr, packed.weight, nullptr);
        return download<BadScale>(q.device[4].as<void>(), 1)[0];
      };
      CHECK(repack(1.0f, 1) == ~BadScale(0));
      CHECK(part_of(repack(-kInfinity, 7)) == 7);
      CHECK(part_of(repack(std::numeric_limits<float>::quiet_NaN(), 9)) == 7);
      CHECK(repack(kInfinity, 2) == (BadScale(2) << 32 | std::bit_cast<unsigned>(kInfinity)));
    }
}
