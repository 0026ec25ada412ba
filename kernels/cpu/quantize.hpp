// Activations as int8: one float scale per row and group, as the Program's Quantize operation says.
#pragma once

#include "amx.hpp"
#include "memory.hpp"

namespace ic {

// The rows of a step lie in tiles of TOKENS, the last with what is left. In a tile of N rows everything is interleaved:
// values [COLS/4][N][4], scales [COLS/GROUP][N], offsets [COLS/segment][N] (what products with unsigned weights start with).
// Rows for matrix tiles (amx.hpp) lie in tiles of one height N: values [COLS/64][N][64], scales as above, no offsets.
struct Quantized {
  int8_t* values;
  float* scales;
  int32_t* offsets;
};

// Room for `count` rows of up to `width` values, in groups of `group` or more, and for what pads the last tile.
struct QuantizedRows : Quantized {
  QuantizedRows(size_t count, size_t width, size_t group)
      : room((count + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS),
        bytes(room * width),
        factors(room * (width / group)),
        totals(room * (width / size_t(segment(int(group))))) {
    values = bytes.data(), scales = factors.data(), offsets = totals.data();
  }
  const size_t room;  // rows
  Memory<int8_t> bytes;
  Memory<float> factors;
  Memory<int32_t> totals;
};

// One row, at its place in the tile of `together` rows that begins with row `first`, interleaved by so many INPUTS.
template <int COLS, int GROUP, int INPUTS>
void quantize_into(const float* x, const Quantized& to, int first, int place, int together) {
  static_assert(COLS % GROUP == 0 && GROUP % 32 == 0 && GROUP % INPUTS == 0, "whole groups of whole vectors");
  constexpr int GROUPS = COLS / GROUP, SEGMENT = segment(GROUP), SEGMENTS = GROUP / SEGMENT;
  int8_t* values = to.values + size_t(first) * COLS + place * INPUTS;
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
    if constexpr (INPUTS == QUAD)
      for (int s = 0; s < SEGMENTS; ++s, offsets += together) *offsets = offset_of<SEGMENT>(group + s * SEGMENT);
    if (together == 1) {
      std::memcpy(values, group, GROUP);
      values += GROUP;
    } else {
      for (int i = 0; i < GROUP; i += INPUTS, values += together * INPUTS) std::memcpy(values, group + i, INPUTS);
    }
  }
}

// Row `row` of `rows`.
template <int COLS, int GROUP>
void quantize_row(const float* x, const Quantized& to, int row, int rows) {
  if constexpr (by_tiles<GROUP>(FEW + 1)) {
    if (by_tiles<GROUP>(rows)) {
      const int height = tile_height(rows);
      return quantize_into<COLS, GROUP, TILE_INPUTS>(x, to, row / height * height, row % height, height);
    }
  }
  const int first = row / TOKENS * TOKENS;
  quantize_into<COLS, GROUP, QUAD>(x, to, first, row - first, rows - first < TOKENS ? rows - first : TOKENS);
}

}  // namespace ic
