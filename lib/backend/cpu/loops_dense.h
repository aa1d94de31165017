#pragma once

// Products with packed floats, over the lanes of the file that includes this. Each output is one
// chain y = fma(x[k], w[k], y), k ascending, whatever the tile: so the number of rows cannot
// matter.

#include "backend/cpu/kernels.h"
#include "backend/cpu/loops_gptq.h"

namespace guanaco::cpu {
namespace {

inline constexpr int kAccumulators = kTileRows * kTilePanels;

template <Element element>
inline Floats load_weights(const std::byte* panel, int k) {
  if constexpr (element == Element::f32)
    return load(reinterpret_cast<const float*>(panel) + std::size_t(k) * kPanel);
  const std::uint16_t* halves =
      reinterpret_cast<const std::uint16_t*>(panel) + std::size_t(k) * kPanel;
  return element == Element::f16 ? load_half(halves) : load_bfloat(halves);
}

/// Rows [row, row + R) times panels [p, p + N).
template <Element element, int R, int N>
void multiply_floats(const DensePanels& panels, int p, const float* x, std::size_t x_stride,
                     int row, const Product& product) {
  const std::byte* const panel = panels.data + p * panels.panel_bytes;
  Floats y[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) y[r][n] = set(0.0f);
  const float* const first = x + row * x_stride;
  for (int k = 0; k < panels.inputs; ++k) {
    Floats weights[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      weights[n] = load_weights<element>(panel + n * panels.panel_bytes, k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats value = set(first[r * x_stride + k]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) y[r][n] = fma(value, weights[n], y[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) finish(product, row + r, (p + n) * kPanel, y[r][n]);
}

/// As above for 1 <= rows <= R.
template <Element element, int R, int N>
void multiply_floats_up_to(int rows, const DensePanels& panels, int p, const float* x,
                           std::size_t x_stride, int row, const Product& product) {
  if (rows == R)
    multiply_floats<element, R, N>(panels, p, x, x_stride, row, product);
  else if constexpr (R > 1)
    multiply_floats_up_to<element, R - 1, N>(rows, panels, p, x, x_stride, row, product);
}

template <Element element>
void multiply_dense(const DensePanels& panels, int first, int last, const float* x,
                    std::size_t x_stride, int rows, const Product& product) {
  int p = first;
  if (rows == 1)  // several panels at a time: one chain alone would wait for its own result
    for (; p + 4 <= last; p += 4)
      multiply_floats<element, 1, 4>(panels, p, x, x_stride, 0, product);
  for (; p < last; p += kTilePanels)
    for (int row = 0; row < rows; row += kTileRows) {
      const int tile = rows - row < kTileRows ? rows - row : kTileRows;
      if (p + kTilePanels <= last)
        multiply_floats_up_to<element, kTileRows, kTilePanels>(tile, panels, p, x, x_stride, row,
                                                               product);
      else
        multiply_floats_up_to<element, kTileRows, 1>(tile, panels, p, x, x_stride, row, product);
    }
}

void multiply_dense(const DensePanels& panels, int first, int last, const float* x,
                    std::size_t x_stride, int rows, const Product& product) {
  const auto multiply = panels.element == Element::f16    ? multiply_dense<Element::f16>
                        : panels.element == Element::bf16 ? multiply_dense<Element::bf16>
                                                          : multiply_dense<Element::f32>;
  multiply(panels, first, last, x, x_stride, rows, product);
}

}  // namespace
}  // namespace guanaco::cpu
