// Factors rounded to integers and a step (runtime/kv/rounding.py): exactly multiplied and summed in any order.
#pragma once

#include "simd.hpp"

namespace ic {

// The greatest integers: of a query's factors and of softmax weights in a byte each, and of both where codes are wide.
constexpr int MOST_FACTOR = 127, MOST_WEIGHT = 204, MOST_WIDE = 32767;

// The largest magnitude of x[0..n).
inline float largest_of(const float* x, int n) {
  vf most = zero();
  for (int i = 0; i < n; i += W) {
    const vf v = load(x + i);
    most = vmax(most, vmax(v, sub(zero(), v)));
  }
  return hmax(most);
}

// Rounds factors, of which `largest` is the largest magnitude and becomes `most`; returns their step. Factors that are all tiny are
// zero: the inverse of their step would overflow. store(i, numbers) rounds W of them.
template <class Store>
inline float round_factors(const float* x, int n, float largest, int most, Store&& store) {
  const float step = largest / float(most);
  const vf inverse = set1(largest > 1e-30f ? 1.0f / step : 0.0f);
  for (int i = 0; i < n; i += W) store(i, mul(load(x + i), inverse));
  return step;
}

// As bytes; those of weights, which are never negative, are unsigned.
inline float round_bytes(const float* x, int n, float largest, int most, uint8_t* out) {
  return round_factors(x, n, largest, most, [&](int i, vf u) { store_bytes(out + i, u); });
}

// As numbers of 16 bits, the middle two of four exchanged: as open tiles of wide codes have them.
inline float round_wide(const float* x, int n, float largest, uint8_t* out) {
  return round_factors(x, n, largest, MOST_WIDE, [&](int i, vf u) { store_exchanged(out + 2 * i, u); });
}

}  // namespace ic
