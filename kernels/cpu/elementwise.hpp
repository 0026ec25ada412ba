// The operations of one row: norm, rotary embedding, gate, activation, embedding look-up.
#pragma once

#include "simd.hpp"

namespace ic {

// BLOCKED: the table is stored for products as well, 16 rows interleaved (linear.hpp), since the head shares it.
template <int N, bool BLOCKED>
void embed(const uint16_t* table, int token, float* out) {
  constexpr int ROWS = 16;
  const uint16_t* first = BLOCKED ? table + size_t(token / ROWS) * N * ROWS + token % ROWS : table + size_t(token) * N;
  for (int i = 0; i < N; ++i) out[i] = from_bf16(first[BLOCKED ? i * ROWS : i]);
}

// out = x / sqrt(mean(x^2) + epsilon) * weight; in place if out == x.
template <int N>
void norm(const float* x, const uint16_t* weight, float epsilon, float* out) {
  static_assert(N % W == 0, "whole vectors");
  vf squares = zero();
  for (int i = 0; i < N; i += W) squares = fma(load(x + i), load(x + i), squares);
  const vf inverse = set1(1.0f / std::sqrt(hsum(squares) / N + epsilon));
  for (int i = 0; i < N; i += W) store(out + i, mul(mul(load(x + i), inverse), load_bf16(weight + i)));
}

// Turns pair (x[j], x[j + D/2]) by the angle whose cosine and sine are given.
template <int D>
void rotate(float* x, const float* cosine, const float* sine) {
  for (int j = 0; j < D / 2; j += W) {
    const vf a = load(x + j), b = load(x + j + D / 2), c = load(cosine + j), s = load(sine + j);
    store(x + j, sub(mul(a, c), mul(b, s)));
    store(x + j + D / 2, fma(a, s, mul(b, c)));
  }
}

// Cosines and sines of position * frequencies[j], times scale.
template <int D>
void angles(int position, const double* frequencies, double scale, float* cosine, float* sine) {
  for (int j = 0; j < D / 2; ++j) {
    const double angle = position * frequencies[j];
    cosine[j] = float(std::cos(angle) * scale);
    sine[j] = float(std::sin(angle) * scale);
  }
}

inline vf silu(vf x) { return mul(x, div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x))))); }

// out = silu(x[:N]) * x[N:].
template <int N>
void gate(const float* x, float* out) {
  static_assert(N % W == 0, "whole vectors");
  for (int i = 0; i < N; i += W) store(out + i, mul(silu(load(x + i)), load(x + N + i)));
}

// out = out + silu(x).
template <int N>
void activate(const float* x, float* out) {
  static_assert(N % W == 0, "whole vectors");
  for (int i = 0; i < N; i += W) store(out + i, add(load(out + i), silu(load(x + i))));
}

}  // namespace ic
