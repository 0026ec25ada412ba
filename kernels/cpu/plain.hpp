// Scores and weighted sums of a page of plain numbers (bf16, fp8, float), which are widened in registers.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace ic {

// A number format: `read` widens as many numbers as a register tile is wide, but for a factor SCALE, a power of two.
constexpr int PLAIN_VECTORS = W == 4 ? 4 : 2;

struct Bf16 {
  using Stored = uint16_t;
  static constexpr float SCALE = 1;
  static void read(const uint16_t* p, vf out[PLAIN_VECTORS]) {
    for (int v = 0; v < PLAIN_VECTORS; ++v) out[v] = load_bf16(p + v * W);
  }
};
struct Fp8 {
  using Stored = uint8_t;
  static constexpr float SCALE = FP8_SCALE;
  static void read(const uint8_t* p, vf out[PLAIN_VECTORS]) {
    for (int v = 0; v < PLAIN_VECTORS; v += 2) load_fp8(p + v * W, out[v], out[v + 1]);
  }
};
struct Float {
  using Stored = float;
  static constexpr float SCALE = 1;
  static void read(const float* p, vf out[PLAIN_VECTORS]) {
    for (int v = 0; v < PLAIN_VECTORS; ++v) out[v] = load(p + v * W);
  }
};

// Calls body(row, integral_constant N) over all rows, N at a time.
template <class Body>
inline void over_rows(int rows, Body&& body) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) body(r, std::integral_constant<int, 4>{});
  for (; r < rows; ++r) body(r, std::integral_constant<int, 1>{});
}

template <class Number, int D, int PAGE>
struct Plain {
  using Stored = typename Number::Stored;
  static constexpr int VECTORS = PLAIN_VECTORS, TILE = VECTORS * W;  // keys, or dimensions, of a register tile

  // scores[q][t] = query q times key t, for all keys [D][PAGE] of the page.
  static void score(const Stored* keys, ptrdiff_t ahead, const float* queries, int count, float* scores) {
    over_rows(count, [&](int q, auto n) { score<decltype(n)::value>(keys, q == 0 ? ahead : 0, queries + q * D, scores + q * PAGE); });
  }

  // sums[q] += weights[q] @ values [PAGE][D], over the first `slots` slots of the page.
  static void gather(const Stored* values, ptrdiff_t ahead, const float* weights, int count, int slots, float* sums) {
    over_rows(count, [&](int q, auto n) {
      gather<decltype(n)::value>(values, q == 0 ? ahead : 0, weights + q * PAGE, slots, sums + q * D);
    });
  }

 private:
  static vf scaled(vf x, float scale) { return scale == 1 ? x : mul(x, set1(scale)); }

  // Calls for a line of what lies `ahead` bytes further on.
  static void call(const Stored* p, ptrdiff_t ahead) { __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, 2); }

  template <int N>
  static void score(const Stored* keys, ptrdiff_t ahead, const float* queries, float* scores) {
    for (int t = 0; t < PAGE; t += TILE) {
      vf sums[N][VECTORS];
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) sums[n][v] = zero();
      for (int d = 0; d < D; ++d) {
        const Stored* from = keys + d * PAGE + t;
        if (ahead != 0) call(from, ahead);
        vf key[VECTORS];
        Number::read(from, key);
        for (int n = 0; n < N; ++n) {
          const vf factor = set1(queries[n * D + d]);
          for (int v = 0; v < VECTORS; ++v) sums[n][v] = fma(key[v], factor, sums[n][v]);
        }
      }
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) store(scores + n * PAGE + t + v * W, scaled(sums[n][v], Number::SCALE));
    }
  }

  template <int N>
  static void gather(const Stored* values, ptrdiff_t ahead, const float* weights, int slots, float* sums) {
    for (int d = 0; d < D; d += TILE) {
      vf out[N][VECTORS];
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) out[n][v] = scaled(load(sums + n * D + d + v * W), 1 / Number::SCALE);
      for (int t = 0; t < slots; ++t) {
        const Stored* from = values + t * D + d;
        if (ahead != 0) call(from, ahead);
        vf value[VECTORS];
        Number::read(from, value);
        for (int n = 0; n < N; ++n) {
          const vf factor = set1(weights[n * PAGE + t]);
          for (int v = 0; v < VECTORS; ++v) out[n][v] = fma(value[v], factor, out[n][v]);
        }
      }
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) store(sums + n * D + d + v * W, scaled(out[n][v], Number::SCALE));
    }
  }
};

}  // namespace ic
