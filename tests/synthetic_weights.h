#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "io/safetensors.h"

// The random contents of synthetic tensors. Every value is a function of (key, its place), so a
// tensor can be made in pieces of any size.
namespace guanaco {

/// Takes the next bytes of a tensor.
using Sink = std::function<void(std::span<const std::byte>)>;

/// A key for one tensor's contents.
std::uint64_t random_key(std::uint64_t seed, std::string_view name) noexcept;
/// 64 random bits for each place.
std::uint64_t random_bits(std::uint64_t key, std::uint64_t place) noexcept;

/// `count` bell-shaped values within 3.5 deviations of the mean, as F16, BF16 or F32.
void write_values(const Sink& sink, std::uint64_t key, std::uint64_t count, DType dtype, float mean,
                  float deviation);

/// Group of each of `inputs` rows: runs of group_size rows (the last may be short), or with
/// `shuffle` as many rows for each group at random places. group_size -1: one group.
std::vector<std::int32_t> group_index(int inputs, int group_size, bool shuffle, std::uint64_t key);

/// 32 codes of `bits` bits as consecutive words, lowest bits first (reference/formats.md 1.3).
/// `words` has `bits` elements.
void pack_run(int bits, std::span<const std::uint8_t, 32> codes, std::span<std::uint32_t> words);

/// Turns the words of 32 zero points into what a v1 file holds: one less each, with the borrow that
/// word-wise subtraction gives (reference/formats.md 1.4).
void to_v1_zero_points(int bits, std::span<std::uint32_t> words);

/// The random codes, zero points and scales of one GPTQ linear: weights of deviation about
/// 1 / sqrt(inputs). `inputs` and `outputs` are multiples of 32.
class SyntheticGptq {
 public:
  SyntheticGptq(std::uint64_t key, int bits, int inputs, int outputs,
                std::span<const std::int32_t> group, bool symmetric);

  void write_qweight(const Sink& sink) const;
  void write_qzeros(const Sink& sink, int version) const;
  void write_scales(const Sink& sink, DType dtype) const;

 private:
  template <int kBits>
  void write_codes(const Sink& sink) const;

  std::uint64_t key_;
  int bits_, inputs_, outputs_, groups_;
  std::span<const std::int32_t> group_;  ///< [inputs]
  std::vector<std::uint8_t> zeros_;      ///< [groups, outputs]
};

}  // namespace guanaco
