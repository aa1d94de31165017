#pragma once

#include <array>
#include <cstdint>

namespace guanaco {

/// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
/// as 1, 2, 3" (SC 2011): 128 random bits that are a pure function of a counter and a key. Nothing
/// is carried from draw to draw, so no neighbour in a batch can disturb one.
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                           std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t even = std::uint64_t(0xd2511f53u) * counter[0];
    const std::uint64_t odd = std::uint64_t(0xcd9e8d57u) * counter[2];
    counter = {std::uint32_t(odd >> 32) ^ counter[1] ^ key[0], std::uint32_t(odd),
               std::uint32_t(even >> 32) ^ counter[3] ^ key[1], std::uint32_t(even)};
    key[0] += 0x9e3779b9u;  // the golden ratio
    key[1] += 0xbb67ae85u;  // sqrt(3) - 1
  }
  return counter;
}

/// Uniform in [0, 1) with 53 random bits: number `draw` of the sequence that `seed` names.
constexpr double uniform(std::uint64_t seed, std::uint64_t draw) {
  const auto bits = philox({std::uint32_t(draw), std::uint32_t(draw >> 32), 0, 0},
                           {std::uint32_t(seed), std::uint32_t(seed >> 32)});
  return double((std::uint64_t(bits[0]) << 21) ^ (bits[1] >> 11)) * 0x1p-53;
}

}  // namespace guanaco
