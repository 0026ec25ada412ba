// Softmax taken page by page: sums so far, and what joins them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.hpp"

namespace ic {

constexpr float HIDDEN = -1e30f;  // a score that no key has

// Of each query: output = (plain + restored coded) / total, with everything scaled by exp(-most). `coded` counts columns.
template <int QUERIES, int D, bool COMPRESSED>
struct Sums {
  float most[QUERIES];
  alignas(64) float total[QUERIES * W];  // lane by lane
  alignas(64) float plain[QUERIES * D], coded[COMPRESSED ? QUERIES * D : 1];

  void clear(int queries) {
    std::fill_n(most, queries, HIDDEN);
    std::memset(total, 0, sizeof(float) * size_t(queries) * W);
    std::memset(plain, 0, sizeof(float) * size_t(queries) * D);
    if (COMPRESSED) std::memset(coded, 0, sizeof(float) * size_t(queries) * D);
  }

  // Raises query q's maximum to `top` at least; older sums fade.
  void raise(int q, float top) {
    if (top <= most[q]) return;
    // Of nothing nothing fades.
    if (most[q] != HIDDEN) {
      const vf decay = set1(std::exp(most[q] - top));
      scale<W>(total + q * W, decay);
      scale<D>(plain + q * D, decay);
      if (COMPRESSED) scale<D>(coded + q * D, decay);
    }
    most[q] = top;
  }

  void merge(const Sums& other, int queries) {
    for (int q = 0; q < queries; ++q) {
      const float top = most[q] > other.most[q] ? most[q] : other.most[q];
      const float mine = std::exp(most[q] - top), theirs = std::exp(other.most[q] - top);
      most[q] = top;
      blend<W>(total + q * W, mine, other.total + q * W, theirs);
      blend<D>(plain + q * D, mine, other.plain + q * D, theirs);
      if (COMPRESSED) blend<D>(coded + q * D, mine, other.coded + q * D, theirs);
    }
  }

 private:
  template <int N>
  static void scale(float* x, vf factor) {
    for (int i = 0; i < N; i += W) store(x + i, mul(load(x + i), factor));
  }
  template <int N>
  static void blend(float* a, float mine, const float* b, float theirs) {
    for (int i = 0; i < N; i += W) store(a + i, fma(load(b + i), set1(theirs), mul(load(a + i), set1(mine))));
  }
};

}  // namespace ic
