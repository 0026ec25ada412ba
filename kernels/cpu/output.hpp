// What matrix products have in common: rows of activations with a stored matrix, 16 output rows interleaved in a block.
//
// A result depends on its own row and activation alone, in a fixed order of inputs: the same bits come out whatever else is
// in the batch and however many threads run.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace ic {

constexpr int ROWS = 16;           // of weights, interleaved
constexpr int VECTORS = ROWS / W;  // float vectors that hold one number per row

// What a product does with its sums.
struct Output {
  float* rows;
  size_t stride;
  const uint16_t* bias;  // bf16, or null
  bool add;              // to what is there
};

inline void finish(const Output& output, int t, int block, const float* sums) {
  float* to = output.rows + t * output.stride + block * ROWS;
  for (int v = 0; v < VECTORS; ++v) {
    vf sum = load(sums + v * W);
    if (output.bias != nullptr) sum = ic::add(sum, load_bf16(output.bias + block * ROWS + v * W));
    if (output.add) sum = ic::add(sum, load(to + v * W));
    store(to + v * W, sum);
  }
}

// Calls body(integral_constant N) with as many rows as there are, MOST at most.
template <int MOST, class Body>
void with_size(int rows, Body&& body) {
  if constexpr (MOST == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    if (rows >= MOST)
      body(std::integral_constant<int, MOST>{});
    else
      with_size<MOST - 1>(rows, body);
  }
}

}  // namespace ic
