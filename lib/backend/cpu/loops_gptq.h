#pragma once

// Products with packed GPTQ weights, over the lanes of the file that includes this.
//
// y = sum over blocks of float(D) * (weight scale * activation scale), blocks in ascending order,
// where D = sum (code - zero) * value is an exact integer. One row takes D as
// sum code * value - zero * sum value, straight from the packed codes; many rows take (code - zero)
// from a block that was unpacked once for all of them. Both give the same D, so the same y.

#include "backend/cpu/kernels.h"

namespace guanaco::cpu {
namespace {

/// How far ahead of the codes to ask for more, in bytes: beside this much arithmetic the hardware
/// alone does not keep the memory busy. Asking past the end is harmless.
inline constexpr int kAhead = 16384;

/// Rows whose results are held in the nearest cache while a panel's blocks go by.
inline constexpr int kChunkRows = 128;

/// Adds bias and what was there, and stores the lanes that are outputs.
inline void finish(const Product& product, int row, int output, Floats y) {
  const int count = product.outputs - output;
  float* out = product.y + std::size_t(row) * product.stride + output;
  if (count >= kPanel) {
    if (product.bias) y = add(y, load(product.bias + output));
    store(out, product.add ? add(load(out), y) : y);
  } else {
    if (product.bias) y = add(y, load_first(product.bias + output, count));
    store_first(out, product.add ? add(load_first(out, count), y) : y, count);
  }
}

inline std::int32_t load_pair(const std::int16_t* values) {
  std::int32_t pair;
  __builtin_memcpy(&pair, values, sizeof pair);
  return pair;
}

/// The codes of positions j and j + P/2 in the halves of each lane.
template <int bits, int j>
inline Ints codes(Ints words) {
  if constexpr (j > 0) words = shift_right_halves<bits * j>(words);
  if constexpr (bits * (j + 1) < 16) words = bit_and(words, set(((1 << bits) - 1) * 0x10001));
  return words;
}

/// Adds one line of codes times its values to four sums, taken in turn to hide the latency.
template <int bits, int turn, int j = 0>
inline void accumulate(Ints (&sums)[4], Ints words, const std::int16_t* values) {
  constexpr int kSum = (turn + j) % 4;
  sums[kSum] = dot_halves(sums[kSum], codes<bits, j>(words), set(load_pair(values + 2 * j)));
  if constexpr (j + 1 < 16 / bits) accumulate<bits, turn, j + 1>(sums, words, values);
}

template <bool half_scales>
inline Floats load_scales(const std::byte* panel, int group) {
  if constexpr (half_scales)
    return load_half(reinterpret_cast<const std::uint16_t*>(panel) + group * kPanel);
  else
    return load(reinterpret_cast<const float*>(panel) + group * kPanel);
}

inline Ints load_zeros(const GptqPanels& panels, const std::byte* panel, int group) {
  return load_bytes(reinterpret_cast<const std::uint8_t*>(panel + panels.zeros_offset) +
                    group * kPanel);
}

template <int bits, bool half_scales>
void multiply_row(const GptqPanels& panels, int first, int last, const QuantisedRows& x,
                  const Product& product) {
  const int lines = panels.block * bits / 32;  // of a block: even
  for (int p = first; p < last; ++p) {
    const std::byte* const panel = panels.data + p * panels.panel_bytes;
    const std::byte* line = panel + panels.codes_offset;
    const std::int16_t* values = x.values;
    Floats y = set(0.0f);
    int group = 0, blocks_left = panels.blocks_per_group;
    for (int block = 0; block < panels.blocks; ++block) {
      Ints sums[4] = {set(0), set(0), set(0), set(0)};
      for (int i = 0; i < lines; i += 2) {
        prefetch(line + kAhead);
        prefetch(line + kAhead + 64);
        accumulate<bits, 0>(sums, load_ints(line), values);
        accumulate<bits, 2>(sums, load_ints(line + 64), values + 32 / bits);
        line += 128;
        values += 64 / bits;
      }
      const Ints products = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
      const Ints zeros = multiply(load_zeros(panels, panel, group), set(x.sums[block]));
      const Floats scale = multiply(load_scales<half_scales>(panel, group), set(x.scales[block]));
      y = fma(to_floats(subtract(products, zeros)), scale, y);
      if (--blocks_left == 0) {
        ++group;
        blocks_left = panels.blocks_per_group;
      }
    }
    finish(product, 0, p * kPanel, y);
  }
}

/// Writes (code - zero) of one line as 16-bit pairs, `stride` numbers from one pair to the next.
template <int bits, int j = 0>
inline void unpack_line(Ints words, Ints zeros, std::int32_t* out, int stride) {
  store(out + j * stride, subtract_halves(codes<bits, j>(words), zeros));
  if constexpr (j + 1 < 16 / bits) unpack_line<bits, j + 1>(words, zeros, out, stride);
}

/// One block of N panels, unpacked.
template <int N>
struct Block {
  alignas(64) std::int32_t pairs[kMaxBlock / 2][N * kPanel];
  Floats scales[N];
};

/// y[r] += block * values of R rows, everything in registers.
template <int R, int N>
inline void multiply_tile(const Block<N>& block, int size, const std::int16_t* values,
                          const float* scales, float* y) {
  Ints sums[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[r][n] = set(0);
  const auto step = [&](int i) __attribute__((always_inline)) {
    Ints weights[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) weights[n] = load_ints(block.pairs[i] + n * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Ints value = set(load_pair(values + r * size + 2 * i));
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n] = dot_halves(sums[r][n], weights[n], value);
    }
  };
  for (int i = 0; i < size / 2; i += 4) {  // by four: g++ 12 copies all sums once an iteration
    step(i);
    step(i + 1);
    step(i + 2);
    step(i + 3);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* out = y + (r * N + n) * kPanel;
      const Floats scale = multiply(block.scales[n], set(scales[r]));
      store(out, fma(to_floats(sums[r][n]), scale, load(out)));
    }
}

/// As above for 1 <= rows <= R.
template <int R, int N>
inline void multiply_up_to(int rows, const Block<N>& block, int size, const std::int16_t* values,
                           const float* scales, float* y) {
  if (rows == R)
    multiply_tile<R, N>(block, size, values, scales, y);
  else if constexpr (R > 1)
    multiply_up_to<R - 1, N>(rows, block, size, values, scales, y);
}

/// N neighbouring panels times rows [first_row, first_row + rows), rows <= kChunkRows.
template <int bits, bool half_scales, int N>
void multiply_chunk(const GptqPanels& panels, int p, const QuantisedRows& x, int first_row,
                    int rows, const Product& product) {
  constexpr int kPairs = 16 / bits;  // of one word
  const int lines = panels.block * bits / 32;
  Block<N> unpacked;
  alignas(64) float y[kChunkRows * N * kPanel];
  for (int i = 0; i < rows * N; ++i) store(y + i * kPanel, set(0.0f));

  for (int block = 0; block < panels.blocks; ++block) {
    const int group = block / panels.blocks_per_group;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const std::byte* const panel = panels.data + (p + n) * panels.panel_bytes;
      const std::byte* const code = panel + panels.codes_offset + std::size_t(block) * lines * 64;
      Ints zeros = load_zeros(panels, panel, group);
      zeros = add(zeros, shift_left<16>(zeros));
      for (int i = 0; i < lines; ++i) {
        prefetch(code + i * 64 + kAhead);
        unpack_line<bits>(load_ints(code + i * 64), zeros, unpacked.pairs[i * kPairs] + n * kPanel,
                          N * kPanel);
      }
      unpacked.scales[n] = load_scales<half_scales>(panel, group);
    }
    for (int row = 0; row < rows; row += kTileRows) {
      const std::size_t in_x = std::size_t(block) * x.rows + first_row + row;
      multiply_up_to<kTileRows, N>(rows - row < kTileRows ? rows - row : kTileRows, unpacked,
                                   panels.block, x.values + in_x * panels.block, x.scales + in_x,
                                   y + row * N * kPanel);
    }
  }
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      finish(product, first_row + row, (p + n) * kPanel, load(y + (row * N + n) * kPanel));
}

template <int bits, bool half_scales>
void multiply_gptq(const GptqPanels& panels, int first, int last, const QuantisedRows& x,
                   const Product& product) {
  if (x.rows == 1) return multiply_row<bits, half_scales>(panels, first, last, x, product);
  for (int p = first; p < last; p += kTilePanels)
    for (int row = 0; row < x.rows; row += kChunkRows) {
      const int chunk = x.rows - row < kChunkRows ? x.rows - row : kChunkRows;
      if (p + kTilePanels <= last)
        multiply_chunk<bits, half_scales, kTilePanels>(panels, p, x, row, chunk, product);
      else
        multiply_chunk<bits, half_scales, 1>(panels, p, x, row, chunk, product);
    }
}

void multiply_gptq(const GptqPanels& panels, int first, int last, const QuantisedRows& x,
                   const Product& product) {
  const auto multiply =
      panels.bits == 2     ? panels.half_scales ? multiply_gptq<2, true> : multiply_gptq<2, false>
          : panels.bits == 4 ? panels.half_scales ? multiply_gptq<4, true> : multiply_gptq<4, false>
          : panels.half_scales ? multiply_gptq<8, true>
                           : multiply_gptq<8, false>;
  multiply(panels, first, last, x, product);
}

void quantise(const float* x, const std::int32_t* order, const GptqPanels& panels, int row,
              const QuantisedRows& out) {
  const int run = 32 / panels.bits;  // positions of one word of codes
  for (int block = 0; block < panels.blocks; ++block) {
    const std::size_t place = std::size_t(block) * out.rows + row;
    alignas(64) float gathered[kMaxBlock];
    const float* source = x + block * panels.block;
    if (order) {
      for (int i = 0; i < panels.block; ++i) {
        const std::int32_t input = order[block * panels.block + i];
        gathered[i] = input < 0 ? 0.0f : x[input];
      }
      source = gathered;
    }
    // As integers, magnitudes of floats keep their order and NaN is the largest: it reaches the
    // scale and with it every product.
    Ints magnitude = set(0);
    for (int i = 0; i < panels.block; i += 16)
      magnitude = larger(magnitude, bit_and(as_ints(load(source + i)), set(0x7fffffff)));
    const float most = __builtin_bit_cast(float, largest(magnitude));
    const bool vanishes = most < 1e-30f;  // its inverse would overflow
    const float inverse = vanishes ? 0.0f : 32767.0f / most;

    alignas(64) std::int16_t values[kMaxBlock];
    Ints total = set(0);
    for (int i = 0; i < panels.block; i += 16) {
      const Ints value = round(multiply(load(source + i), set(inverse)));
      total = add(total, value);
      store_low_halves(values + i, value);
    }
    std::int16_t* const pairs = out.values + place * panels.block;
    for (int i = 0; i < panels.block; i += run)
      for (int j = 0; j < run / 2; ++j) {
        pairs[i + 2 * j] = values[i + j];
        pairs[i + 2 * j + 1] = values[i + j + run / 2];
      }
    out.scales[place] = vanishes ? 0.0f : most / 32767.0f;
    out.sums[place] = sum(total);
  }
}

}  // namespace
}  // namespace guanaco::cpu
