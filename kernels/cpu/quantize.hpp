// Activations as int8: one float scale per row and group, as the Program's Quantize operation says.
#pragma once

#include "simd.hpp"

namespace ic {

// Rows of `cols` values, with a scale and the integer sum of each group. The sum serves formats whose stored weights
// carry an offset: sum((w + c) q) - c sum(q).
struct Quantized {
  int8_t* values;
  float* scales;
  int32_t* sums;
};

template <int COLS, int GROUP>
void quantize_row(const float* x, int8_t* values, float* scales, int32_t* sums) {
  static_assert(COLS % GROUP == 0 && GROUP % 16 == 0, "whole groups of whole vectors");
  for (int g = 0; g < COLS / GROUP; ++g, x += GROUP, values += GROUP) {
    vf most = zero();
    for (int i = 0; i < GROUP; i += W) {
      const vf v = load(x + i);
      most = vmax(most, vmax(v, sub(zero(), v)));
    }
    const float scale = hmax(most) / 127.0f;
    const vf inverse = set1(scale > 0 ? 1.0f / scale : 0.0f);
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i += W) {
      alignas(64) float rounded[W];
      store(rounded, round_even(mul(load(x + i), inverse)));
      for (int j = 0; j < W; ++j) {
        const auto q = int8_t(rounded[j]);
        values[i + j] = q;
        sum += q;
      }
    }
    scales[g] = scale;
    sums[g] = sum;
  }
}

}  // namespace ic
