#include "synthetic_weights.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "support/half.h"

namespace guanaco {
namespace {

constexpr std::uint64_t kOnes = 0x0101010101010101;  // one in each byte

/// How far the codes of a column lie from their zero point: a sum of small random numbers, less
/// `mean`. The zero point keeps at least `mean` codes on either side, so no code is ever clamped.
struct Spread {
  int mean;
  double deviation;
};
constexpr Spread spread(int bits) {
  switch (bits) {
    case 2:
      return {1, 0.707};
    case 3:
      return {3, 1.225};
    case 4:
      return {6, 2.236};
    default:
      return {112, 45.75};
  }
}

/// Eight such sums, one in each byte, from the random bits of a place.
template <int kBits>
std::uint64_t eight_sums(std::uint64_t key, std::uint64_t place) {
  const std::uint64_t x = random_bits(key, place);
  const auto fields = [](std::uint64_t from, int width, int number) {
    std::uint64_t sum = 0;
    for (int i = 0; i < number; ++i) sum += (from >> (i * width)) & (kOnes * ((1u << width) - 1));
    return sum;
  };
  if constexpr (kBits == 2) return fields(x, 1, 2);
  if constexpr (kBits == 3) return fields(x, 1, 6);
  if constexpr (kBits == 4) return fields(x, 2, 4);
  return 7 * fields(x, 4, 2) + fields(random_bits(~key, place), 3, 2);
}

/// The low kBits of each byte, side by side.
template <int kBits>
std::uint64_t pack_eight(std::uint64_t bytes) {
  if constexpr (kBits == 8) {
    return bytes;
  } else {
    bytes = (bytes | bytes >> (8 - kBits)) & (0x0001000100010001 * ((1u << 2 * kBits) - 1));
    bytes = (bytes | bytes >> (16 - 2 * kBits)) & (0x0000000100000001 * ((1u << 4 * kBits) - 1));
    return (bytes | bytes >> (32 - 4 * kBits)) & ((std::uint64_t(1) << 8 * kBits) - 1);
  }
}

/// Puts the packed codes 8 * octet ... of a run into its words, `stride` apart.
template <int kBits>
void place_eight(std::uint64_t packed, int octet, std::uint32_t* words, std::size_t stride) {
  const int bit = octet * 8 * kBits;
  std::uint32_t* word = words + std::size_t(bit / 32) * stride;
  word[0] |= std::uint32_t(packed << (bit % 32));
  if (bit % 32 + 8 * kBits > 32) word[stride] |= std::uint32_t(packed >> (32 - bit % 32));
}

template <int kBits>
void pack(std::span<const std::uint8_t, 32> codes, std::span<std::uint32_t> words) {
  std::fill(words.begin(), words.end(), 0u);
  for (int octet = 0; octet < 4; ++octet) {
    std::uint64_t bytes = 0;
    for (int i = 0; i < 8; ++i) bytes |= std::uint64_t(codes[std::size_t(octet * 8 + i)]) << 8 * i;
    place_eight<kBits>(pack_eight<kBits>(bytes), octet, words.data(), 1);
  }
}

}  // namespace

std::uint64_t random_bits(std::uint64_t key, std::uint64_t place) noexcept {
  // SplitMix64 (Steele, Lea, Flood 2014), asked for its place-th number.
  std::uint64_t z = key + (place + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::uint64_t random_key(std::uint64_t seed, std::string_view name) noexcept {
  std::uint64_t key = random_bits(seed, 0);
  for (const char c : name) key = random_bits(key, std::uint8_t(c));
  return key;
}

void write_values(const Sink& sink, std::uint64_t key, std::uint64_t count, DType dtype, float mean,
                  float deviation) {
  // Four 16-bit numbers have a sum of mean 2 * 65535 and deviation 65536 / sqrt(3).
  const float scale = deviation * 1.7320508f / 65536;
  const auto value = [&](std::uint64_t place) {
    const std::uint64_t x = random_bits(key, place);
    const auto sum =
        std::int32_t((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48)) - 131070;
    return mean + scale * float(sum);
  };
  const auto write = [&]<typename T>(T (*convert)(float)) {
    std::vector<T> chunk(std::size_t(std::min<std::uint64_t>(count, 1u << 20)));
    for (std::uint64_t done = 0; done < count; done += chunk.size()) {
      chunk.resize(std::size_t(std::min<std::uint64_t>(chunk.size(), count - done)));
      for (std::size_t i = 0; i < chunk.size(); ++i) chunk[i] = convert(value(done + i));
      sink(std::as_bytes(std::span(chunk)));
    }
  };
  if (dtype == DType::f32)
    write(+[](float x) { return x; });
  else
    write(dtype == DType::bf16 ? &float_to_bfloat : &float_to_half);
}

std::vector<std::int32_t> group_index(int inputs, int group_size, bool shuffle, std::uint64_t key) {
  std::vector<std::int32_t> group(std::size_t(inputs), 0);
  if (group_size > 0)
    for (int k = 0; k < inputs; ++k) group[std::size_t(k)] = k / group_size;
  if (shuffle)
    for (std::size_t k = group.size(); k > 1; --k)
      std::swap(group[k - 1], group[random_bits(key, k) % k]);
  return group;
}

void pack_run(int bits, std::span<const std::uint8_t, 32> codes, std::span<std::uint32_t> words) {
  if (bits == 2) pack<2>(codes, words);
  if (bits == 3) pack<3>(codes, words);
  if (bits == 4) pack<4>(codes, words);
  if (bits == 8) pack<8>(codes, words);
}

void to_v1_zero_points(int bits, std::span<std::uint32_t> words) {
  std::uint8_t ones[32];
  std::fill(std::begin(ones), std::end(ones), std::uint8_t(1));
  std::uint32_t constant[8];
  pack_run(bits, std::span<const std::uint8_t, 32>(ones), std::span(constant, std::size_t(bits)));
  std::uint32_t borrow = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::uint64_t difference = std::uint64_t(words[i]) - constant[i] - borrow;
    words[i] = std::uint32_t(difference);
    borrow = bits == 3 ? std::uint32_t(difference >> 63) : 0;  // other codes straddle no word
  }
}

SyntheticGptq::SyntheticGptq(std::uint64_t key, int bits, int inputs, int outputs,
                             std::span<const std::int32_t> group, bool symmetric)
    : key_(key),
      bits_(bits),
      inputs_(inputs),
      outputs_(outputs),
      groups_(*std::max_element(group.begin(), group.end()) + 1),
      group_(group),
      zeros_(std::size_t(groups_) * std::size_t(outputs)) {
  const int lowest = spread(bits).mean, highest = (1 << bits) - 1 - lowest;
  const std::uint64_t zero_key = random_key(key, "zeros");
  for (std::size_t i = 0; i < zeros_.size(); ++i)
    zeros_[i] = std::uint8_t(
        symmetric ? 1 << (bits - 1)
                  : lowest + int(random_bits(zero_key, i) % std::uint64_t(highest - lowest + 1)));
}

void SyntheticGptq::write_qweight(const Sink& sink) const {
  if (bits_ == 2) write_codes<2>(sink);
  if (bits_ == 3) write_codes<3>(sink);
  if (bits_ == 4) write_codes<4>(sink);
  if (bits_ == 8) write_codes<8>(sink);
}

template <int kBits>
void SyntheticGptq::write_codes(const Sink& sink) const {
  const auto outputs = std::size_t(outputs_);
  std::vector<std::uint32_t> run(kBits * outputs);  // [kBits, outputs]: 32 rows of codes
  // Zero point less mean of eight rows, one in each byte; made anew only where the groups change.
  std::vector<std::uint64_t> base(outputs);
  std::vector<std::int32_t> base_groups;
  for (std::size_t row = 0; row < std::size_t(inputs_); row += 32) {
    std::fill(run.begin(), run.end(), 0u);
    for (int octet = 0; octet < 4; ++octet) {
      const auto groups = group_.subspan(row + std::size_t(octet) * 8, 8);
      if (!std::equal(groups.begin(), groups.end(), base_groups.begin(), base_groups.end())) {
        base_groups.assign(groups.begin(), groups.end());
        std::fill(base.begin(), base.end(), std::uint64_t(0) - kOnes * spread(kBits).mean);
        for (std::size_t i = 0; i < 8; ++i) {
          const std::uint8_t* zeros = &zeros_[std::size_t(groups[i]) * outputs];
          for (std::size_t n = 0; n < outputs; ++n) base[n] += std::uint64_t(zeros[n]) << 8 * i;
        }
      }
      const std::uint64_t first = (row / 8 + std::size_t(octet)) * outputs;
      for (std::size_t n = 0; n < outputs; ++n) {
        const std::uint64_t codes = base[n] + eight_sums<kBits>(key_, first + n);
        place_eight<kBits>(pack_eight<kBits>(codes), octet, &run[n], outputs);
      }
    }
    sink(std::as_bytes(std::span(run)));
  }
}

void SyntheticGptq::write_qzeros(const Sink& sink, int version) const {
  std::vector<std::uint32_t> words(std::size_t(outputs_ / 32 * bits_));
  for (int g = 0; g < groups_; ++g) {
    for (int run = 0; run < outputs_ / 32; ++run) {
      const auto target = std::span(words).subspan(std::size_t(run * bits_), std::size_t(bits_));
      pack_run(bits_,
               std::span<const std::uint8_t, 32>(
                   &zeros_[std::size_t(g) * std::size_t(outputs_) + std::size_t(run) * 32], 32),
               target);
      if (version == 1) to_v1_zero_points(bits_, target);
    }
    sink(std::as_bytes(std::span(words)));
  }
}

void SyntheticGptq::write_scales(const Sink& sink, DType dtype) const {
  // Values end 2 * sqrt(3) deviations from their mean: here a quarter of it.
  const double mean = 1 / (std::sqrt(double(inputs_)) * spread(bits_).deviation);
  write_values(sink, random_key(key_, "scales"), zeros_.size(), dtype, float(mean),
               float(mean * 0.25 / 3.4641016));
}

}  // namespace guanaco
