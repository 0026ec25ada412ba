// Products with bf16 weights and float activations. Even and odd inputs are summed apart, each in order, and then added.
#pragma once

#include <cstring>

#include "output.hpp"
#include "shares.hpp"

namespace ic {

// One block of 16 weight rows, bf16 [IN][16]: its products with all rows of activations, or with some.
template <int IN>
struct FloatBlock {
  static_assert(IN % 2 == 0, "an even number of inputs");
  // Rows of activations that are multiplied together: as many as their sums and what they are made of fit into registers, of
  // the stored weights both sums of each row, of an open panel one.
  static constexpr int FEW = W == 16 ? 8 : 2, TOKENS = W == 16 ? 24 : W == 8 ? 6 : 4;
  // From so many rows on, panels are opened: on two cores of a Zen 4, 6 rows of a model of 1.04 billion weights take 147 ms two
  // at a time and 236 ms by panels, 16 rows 359 ms by panels.
  static constexpr int MANY = W == 8 ? 2 * TOKENS : TOKENS;
  // Inputs of a panel, and rows of activations that it is opened for: it and a tile fill the first-level cache.
  static constexpr int DEEP = IN < 256 ? IN : 256, HIGH = 96;
  static_assert(HIGH % TOKENS == 0, "whole tiles");

  using Sums = float[2][HIGH][ROWS];

  const uint16_t* stored;
  const float* input;
  size_t stride;

  // N rows from the stored weights.
  template <int N>
  void few(const Output& output, int block, int t) const {
    const uint16_t* w = stored;
    const float* x = input + t * stride;
    vf even[N][VECTORS], odd[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) even[n][v] = odd[n][v] = zero();
    for (int k = 0; k < IN; k += 2, w += 2 * ROWS) {
      for (int v = 0; v < VECTORS; ++v) {
        const vf first = load_bf16(w + v * W), second = load_bf16(w + ROWS + v * W);
        for (int n = 0; n < N; ++n) {
          even[n][v] = fma(first, set1(x[n * stride + k]), even[n][v]);
          odd[n][v] = fma(second, set1(x[n * stride + k + 1]), odd[n][v]);
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      alignas(64) float sums[ROWS];
      for (int v = 0; v < VECTORS; ++v) store(sums + v * W, add(even[n][v], odd[n][v]));
      finish(output, t + n, block, sums);
    }
  }

  // Adds every other of 2 * `count` inputs to the sums of N rows.
  template <int N>
  void add_inputs(const float* panel, int count, const float* x, float (*sums)[ROWS]) const {
    vf sum[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) sum[n][v] = load(sums[n] + v * W);
    for (int k = 0; k < count; ++k, panel += ROWS) {
      vf weights[VECTORS];
      for (int v = 0; v < VECTORS; ++v) weights[v] = load(panel + v * W);
      for (int n = 0; n < N; ++n) {
        const vf value = set1(x[n * stride + 2 * k]);
        for (int v = 0; v < VECTORS; ++v) sum[n][v] = fma(weights[v], value, sum[n][v]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) store(sums[n] + v * W, sum[n][v]);
  }

  // Rows [low, high), at most HIGH, from open panels.
  void many(const Output& output, int block, int low, int high) const {
    alignas(64) float panel[2][DEEP / 2][ROWS];
    alignas(64) Sums sums;
    for (auto& half : sums) std::memset(half, 0, sizeof(half[0]) * size_t(high - low));
    for (int first = 0; first < IN; first += DEEP) {
      const int inputs = first + DEEP < IN ? DEEP : IN - first;
      for (int k = 0; k < inputs; ++k)
        for (int v = 0; v < VECTORS; ++v)
          store(panel[k % 2][k / 2] + v * W, load_bf16(stored + size_t(first + k) * ROWS + v * W));
      for (int odd = 0; odd < 2; ++odd)
        for (int t = low; t < high; t += TOKENS)
          with_size<TOKENS>(high - t, [&](auto n) {
            add_inputs<decltype(n)::value>(panel[odd][0], inputs / 2, input + t * stride + first + odd, sums[odd] + (t - low));
          });
    }
    for (int t = low; t < high; ++t) {
      float* even = sums[0][t - low];
      for (int v = 0; v < VECTORS; ++v) store(even + v * W, add(load(even + v * W), load(sums[1][t - low] + v * W)));
      finish(output, t, block, even);
    }
  }
};

// bf16 weights [OUT/16][IN][16].
template <int OUT, int IN>
void linear_bf16(Threads& threads, const uint8_t* weights, const float* input, size_t stride, int rows, Output output) {
  using Block = FloatBlock<IN>;
  share_out(threads, (OUT + ROWS - 1) / ROWS, [&](int first, int last) {
    for (int block = first; block < last; ++block) {
      const Block one{reinterpret_cast<const uint16_t*>(weights) + size_t(block) * IN * ROWS, input, stride};
      if (rows < Block::MANY)
        for (int t = 0; t < rows; t += Block::FEW)
          with_size<Block::FEW>(rows - t, [&](auto n) { one.template few<decltype(n)::value>(output, block, t); });
      else
        for (int low = 0; low < rows; low += Block::HIGH)
          one.many(output, block, low, low + Block::HIGH < rows ? low + Block::HIGH : rows);
    }
  });
}

}  // namespace ic
