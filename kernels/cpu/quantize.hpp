// Activations as int8: one float scale per row and group, as the Program's Quantize operation says.
#pragma once

#include "dot.hpp"
#include "memory.hpp"

namespace ic {

// The rows of a step lie in tiles of TOKENS, the last with what is left. In a tile of N rows everything is interleaved:
// values [COLS/4][N][4], scales [COLS/GROUP][N], offsets [COLS/segment][N] (what products with unsigned weights start with).
struct Quantized {
  int8_t* values;
  float* scales;
  int32_t* offsets;
};

// Room for `count` rows of up to `width` values, in groups of `group` or more.
struct QuantizedRows : Quantized {
  QuantizedRows(size_t count, size_t width, size_t group)
      : bytes(count * width), factors(count * (width / group)), totals(count * (width / size_t(segment(int(group))))) {
    values = bytes.data(), scales = factors.data(), offsets = totals.data();
  }
  Memory<int8_t> bytes;
  Memory<float> factors;
  Memory<int32_t> totals;
};

// Row `row` of `rows`.
template <int COLS, int GROUP>
void quantize_row(const float* x, const Quantized& to, int row, int rows) {
  static_assert(COLS % GROUP == 0 && GROUP % 32 == 0, "whole groups of whole vectors");
  constexpr int GROUPS = COLS / GROUP, SEGMENT = segment(GROUP), SEGMENTS = GROUP / SEGMENT;
  const int first = row / TOKENS * TOKENS, place = row - first;
  const int together = rows - first < TOKENS ? rows - first : TOKENS;
  int8_t* values = to.values + size_t(first) * COLS + place * QUAD;
  float* scales = to.scales + size_t(first) * GROUPS + place;
  int32_t* offsets = to.offsets + size_t(first) * (COLS / SEGMENT) + place;
  for (int g = 0; g < GROUPS; ++g, x += GROUP) {
    vf most = zero();
    for (int i = 0; i < GROUP; i += W) {
      const vf v = load(x + i);
      most = vmax(most, vmax(v, sub(zero(), v)));
    }
    const float scale = hmax(most) / 127.0f;
    const vf inverse = set1(scale > 0 ? 1.0f / scale : 0.0f);
    alignas(64) int8_t group[GROUP];
    for (int i = 0; i < GROUP; i += W) store_bytes(group + i, mul(load(x + i), inverse));
    *scales = scale;
    scales += together;
    for (int s = 0; s < SEGMENTS; ++s, offsets += together) *offsets = offset_of<SEGMENT>(group + s * SEGMENT);
    if (together == 1) {
      std::memcpy(values, group, GROUP);
      values += GROUP;
    } else {
      for (int i = 0; i < GROUP; i += QUAD, values += together * QUAD) std::memcpy(values, group + i, QUAD);
    }
  }
}

}  // namespace ic
