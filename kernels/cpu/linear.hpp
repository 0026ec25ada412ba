// Products with int8 and int4 weights and int8 activations. As with all of them (output.hpp), a result depends on its own row
// and activation alone.
#pragma once

#include "dot.hpp"
#include "output.hpp"
#include "quantize.hpp"
#include "shares.hpp"

namespace ic {

// A group's products join their sums: in one order, group by group, on every path.
inline void add_scaled(float* sum, vf dots, vf weight_scale, vf activation_scale) {
  store(sum, fma(dots, mul(weight_scale, activation_scale), load(sum)));
}

// One block of 16 weight rows: its products with all rows of activations, or with some.
template <int BITS, int OUT, int IN, int GROUP>
struct IntBlock {
  static constexpr int GROUPS = IN / GROUP, SEGMENTS = IN / segment(GROUP), BLOCKS = (OUT + ROWS - 1) / ROWS;
  static constexpr size_t STORED = stored_bytes<BITS>(GROUP), PANEL = panel_bytes(GROUP);
  // Groups of a panel, and rows of activations that it is opened for: it, their sums and a tile fill the first-level cache.
  static constexpr int DEEP = 512 / GROUP < GROUPS ? 512 / GROUP : GROUPS, HIGH = 264;
  static_assert(HIGH % TOKENS == 0, "whole tiles");

  const uint8_t* stored;
  const Quantized& input;
  int rows;

  // Adds groups [first, last) of tile `t` of N rows: sums[n] += dot * (weight scale * activation scale), group by group.
  template <int N, class Multiply, class Scales>
  void add_groups(int t, int first, int last, float* sums, Multiply&& multiply, Scales&& scales_of) const {
    const int8_t* a = input.values + size_t(t) * IN + first * GROUP * N;
    const float* factors = input.scales + size_t(t) * GROUPS + first * N;
    const int32_t* offsets = input.offsets + size_t(t) * SEGMENTS + first * (SEGMENTS / GROUPS) * N;
    for (int g = first; g < last; ++g, a += GROUP * N, factors += N, offsets += SEGMENTS / GROUPS * N) {
      vf dots[N][VECTORS];
      multiply(g, a, offsets, dots);
      for (int v = 0; v < VECTORS; ++v) {
        const vf scale = scales_of(g, v);
        for (int n = 0; n < N; ++n) add_scaled(sums + n * ROWS + v * W, dots[n][v], scale, set1(factors[n]));
      }
    }
  }

  template <int N>
  void few(int t, float* sums) const {
    add_groups<N>(
        t, 0, GROUPS, sums,
        [&](int g, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
          multiply_stored<BITS, GROUP, N>(stored + g * STORED, a, offsets, dots);
        },
        [&](int g, int v) { return load_bf16(reinterpret_cast<const uint16_t*>(stored + (g + 1) * STORED) - ROWS + v * W); });
  }

  template <int N>
  void many(const uint8_t* panel, int t, int first, int last, float* sums) const {
    add_groups<N>(
        t, first, last, sums,
        [&](int g, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
          multiply_panel<BITS, GROUP, N>(panel + (g - first) * PANEL, a, offsets, dots);
        },
        [&](int g, int v) { return load(reinterpret_cast<const float*>(panel + (g - first + 1) * PANEL) - ROWS + v * W); });
  }

  // A few rows, from the stored weights.
  void run_few(const Output& output, int block) const {
    for (int t = 0; t < rows; t += TOKENS) {
      alignas(64) float sums[TOKENS * ROWS] = {};
      with_size<TOKENS>(rows - t, [&](auto n) { few<decltype(n)::value>(t, sums); });
      for (int n = 0; n < TOKENS && t + n < rows; ++n) finish(output, t + n, block, sums + n * ROWS);
    }
  }

  // Rows [low, high), at most HIGH, from an open panel.
  void run_many(const Output& output, int block, int low, int high) const {
    alignas(64) uint8_t panel[DEEP * PANEL];
    alignas(64) float sums[HIGH * ROWS];
    std::memset(sums, 0, sizeof(float) * size_t(high - low) * ROWS);
    for (int first = 0; first < GROUPS; first += DEEP) {
      const int last = first + DEEP < GROUPS ? first + DEEP : GROUPS;
      for (int g = first; g < last; ++g) open_group<BITS, GROUP>(stored + g * STORED, panel + (g - first) * PANEL);
      for (int t = low; t < high; t += TOKENS)
        with_size<TOKENS>(rows - t, [&](auto n) { many<decltype(n)::value>(panel, t, first, last, sums + (t - low) * ROWS); });
    }
    for (int t = low; t < high; ++t) finish(output, t, block, sums + (t - low) * ROWS);
  }
};

#if defined(IC_AMX)

// Two neighbouring blocks, or the last alone, and matrix tiles of activations.
template <int BITS, int OUT, int IN, int GROUP>
struct TileBlocks {
  using Block = IntBlock<BITS, OUT, IN, GROUP>;
  static constexpr int GROUPS = Block::GROUPS, DEEP = Block::DEEP, PAIRS = (Block::BLOCKS + 1) / 2;
  static constexpr size_t PANEL = Block::PANEL, BESIDE = DEEP * PANEL;
  static constexpr int HIGH = 16;  // tiles that panels are opened for

  const uint8_t* weights;
  const Quantized& input;
  int rows, height;

  // Adds groups [first, last) of A tiles with P panels. Tiles multiply a group while vectors scale and add the one before.
  template <int A, int P>
  void add_groups(const uint8_t* panels, int tile, int first, int last, float* sums) const {
    const int8_t* a = input.values + size_t(tile) * height * IN;
    const float* factors = input.scales + size_t(tile) * height * GROUPS;
    TileSums dots[A * P];
    for (int g = first; g <= last; ++g) {
      const uint8_t* panel = panels + (g - first) * PANEL;
      if (g < last) multiply_tiles<GROUP, A, P>(a + g * GROUP * height, size_t(height) * IN, height, panel, BESIDE);
      if (g > first) {
        vf scales[P];
        for (int p = 0; p < P; ++p) scales[p] = load(reinterpret_cast<const float*>(panel + p * BESIDE) - ROWS);
        for (int i = 0; i < A; ++i)
          for (int n = 0; n < height; ++n) {
            const vf factor = set1(factors[(i * GROUPS + g - 1) * height + n]);
            float* sum = sums + (i * height + n) * P * ROWS;
            for (int p = 0; p < P; ++p) add_scaled(sum + p * ROWS, dots[i * P + p].of(n), scales[p], factor);
          }
      }
      if (g < last) store_tiles<A, P>(dots);
    }
  }

  // Tiles [low, high), at most HIGH.
  template <int P>
  void run(const Output& output, int block, int low, int high) const {
    alignas(64) uint8_t panels[P * BESIDE];
    alignas(64) float sums[HIGH * TILE_ROWS * P * ROWS];
    std::memset(sums, 0, sizeof(float) * size_t(high - low) * height * P * ROWS);
    for (int first = 0; first < GROUPS; first += DEEP) {
      const int last = first + DEEP < GROUPS ? first + DEEP : GROUPS;
      for (int p = 0; p < P; ++p) {
        const uint8_t* stored = weights + size_t(block + p) * GROUPS * Block::STORED;
        for (int g = first; g < last; ++g)
          open_signed<BITS, GROUP>(stored + g * Block::STORED, panels + p * BESIDE + (g - first) * PANEL);
      }
      written(panels);
      for (int tile = low; tile < high; tile += 2) {
        float* tile_sums = sums + size_t(tile - low) * height * P * ROWS;
        if (tile + 1 < high)
          add_groups<2, P>(panels, tile, first, last, tile_sums);
        else
          add_groups<1, P>(panels, tile, first, last, tile_sums);
      }
    }
    const int begin = low * height, end = high * height < rows ? high * height : rows;
    for (int t = begin; t < end; ++t)
      for (int p = 0; p < P; ++p) finish(output, t, block + p, sums + (size_t(t - begin) * P + p) * ROWS);
  }

  void run_all(Threads& threads, const Output& output) const {
    const int tiles = tiles_of(rows), stripes = (tiles + HIGH - 1) / HIGH;
    const int high = ((tiles + stripes - 1) / stripes + 1) / 2 * 2;
    share_out(threads, stripes * PAIRS, [&](int first, int last) {
      const Tiles configured(height);
      for (int i = first; i < last; ++i) {
        const int block = i % PAIRS * 2, low = i / PAIRS * high, end = low + high < tiles ? low + high : tiles;
        if (block + 1 < Block::BLOCKS)
          run<2>(output, block, low, end);
        else
          run<1>(output, block, low, end);
      }
    });
  }
};

#endif

// int8 or int4 weights, int8 activations: [OUT/16][IN/GROUP] stored groups (dot.hpp).
template <int BITS, int OUT, int IN, int GROUP>
void linear_int(Threads& threads, const uint8_t* weights, const Quantized& input, int rows, Output output) {
#if defined(IC_AMX)
  if constexpr (by_tiles<GROUP>(FEW + 1))
    if (by_tiles<GROUP>(rows))
      return TileBlocks<BITS, OUT, IN, GROUP>{weights, input, rows, tile_height(rows)}.run_all(threads, output);
#endif
  using Block = IntBlock<BITS, OUT, IN, GROUP>;
  const auto of = [&](int block) { return Block{weights + size_t(block) * Block::GROUPS * Block::STORED, input, rows}; };
  if (rows <= FEW) {
    share_out(threads, Block::BLOCKS, [&](int first, int last) {
      for (int block = first; block < last; ++block) of(block).run_few(output, block);
    });
    return;
  }
  // Stripes of rows, about as high, that stay in the second-level cache while the blocks pass.
  const int stripes = (rows + Block::HIGH - 1) / Block::HIGH;
  const int height = ((rows + stripes - 1) / stripes + TOKENS - 1) / TOKENS * TOKENS;
  share_out(threads, stripes * Block::BLOCKS, [&](int first, int last) {
    for (int i = first; i < last; ++i) {
      const int block = i % Block::BLOCKS, low = i / Block::BLOCKS * height, high = low + height;
      of(block).run_many(output, block, low, high < rows ? high : rows);
    }
  });
}

}  // namespace ic
