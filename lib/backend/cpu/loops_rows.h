#pragma once

// What happens to one row between the products, over the lanes of the file that includes this.

#include "backend/cpu/kernels.h"

namespace guanaco::cpu {
namespace {

/// e^x to about one unit in the last place, for x clamped to [-87, 88]; NaN stays NaN.
inline Floats exponential(Floats x) {
  x = larger(set(-87.0f), smaller(set(88.0f), x));
  const Ints exponent = round(multiply(x, set(1.44269504f)));
  const Floats n = to_floats(exponent);
  // x = n ln 2 + r; ln 2 in two parts, the first short enough for n times it to be exact.
  Floats r = fma(n, set(-0.693145752f), x);
  r = fma(n, set(-1.42860677e-6f), r);
  Floats y = set(1.0f / 5040);  // Taylor: |r| <= ln 2 / 2 leaves 5e-9
  y = fma(y, r, set(1.0f / 720));
  y = fma(y, r, set(1.0f / 120));
  y = fma(y, r, set(1.0f / 24));
  y = fma(y, r, set(1.0f / 6));
  y = fma(y, r, set(0.5f));
  y = fma(y, r, set(1.0f));
  y = fma(y, r, set(1.0f));
  return as_floats(add(as_ints(y), shift_left<23>(exponent)));
}

void rms_norm(const float* x, const float* weight, float epsilon, int count, float* out) {
  Floats squares = set(0.0f);  // lane i adds the elements i, i + 16, ...
  for (int i = 0; i < count; i += 16) {
    const Floats value = load_first(x + i, count - i);
    squares = fma(value, value, squares);
  }
  const Floats scale = set(1.0f / __builtin_sqrtf(sum(squares) / float(count) + epsilon));
  for (int i = 0; i < count; i += 16) {
    const Floats value = multiply(load_first(x + i, count - i), scale);
    store_first(out + i, multiply(value, load_first(weight + i, count - i)), count - i);
  }
}

void swiglu(const float* gate, const float* up, int count, float* out) {
  for (int i = 0; i < count; i += 16) {
    const Floats g = load_first(gate + i, count - i);
    const Floats below = add(set(1.0f), exponential(subtract(set(0.0f), g)));
    store_first(out + i, multiply(divide(g, below), load_first(up + i, count - i)), count - i);
  }
}

}  // namespace
}  // namespace guanaco::cpu
