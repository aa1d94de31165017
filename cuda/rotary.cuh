#pragma once

#include "kernels.h"

namespace guanaco::cuda {

/// Frequency i at a position (lib/checkpoint/rotary.h says where they come from).
__device__ inline float rotary_frequency(const RotaryTable& rotary, int i, int head_dim,
                                         int position) {
  if (position < rotary.switch_position) return rotary.frequencies[i];
  if (rotary.long_frequencies != nullptr) return rotary.long_frequencies[i];
  const double length = position + 1.0;  // dynamic: the base grows with the length so far
  const double base =
      rotary.theta * pow(rotary.factor * length / rotary.context - (rotary.factor - 1),
                         double(head_dim) / (head_dim - 2));
  return float(pow(base, -2.0 * i / head_dim));
}

/// Cosine and sine of the rotation of pair i at a position.
__device__ inline float2 rotary_angle(const RotaryTable& rotary, int i, int head_dim,
                                      int position) {
  float sine, cosine;
  sincosf(float(position) * rotary_frequency(rotary, i, head_dim, position), &sine, &cosine);
  return {cosine * rotary.attention_factor, sine * rotary.attention_factor};
}

}  // namespace guanaco::cuda
