// A trial of what not every processor of an instruction set gives, before an engine is opened: matrix tiles.
#pragma once

#include "abi.h"
#include "linear.hpp"

namespace ic {

#if defined(IC_AMX)

// Whether a product by tiles has the bits that vectors give, which take its rows one by one. Three blocks of weights and three
// tiles of activations, so that of both there is a pair and one alone, and the last is padded.
template <int BITS>
bool tiles_agree() {
  constexpr int OUT = 3 * ROWS, GROUP = TILE_INPUTS, IN = 3 * GROUP, COUNT = 2 * TILE_ROWS + 6;
  static_assert(tiles_of(COUNT) == 3 && tiles_of(COUNT) * tile_height(COUNT) > COUNT, "as said above");
  constexpr size_t STORED = stored_bytes<BITS>(GROUP), SIZE = OUT / ROWS * (IN / GROUP) * STORED;
  uint32_t state = 1;
  const auto draw = [&] { return (state = state * 1664525 + 1013904223) >> 24; };
  std::vector<uint8_t> weights(SIZE);
  for (auto& byte : weights) byte = uint8_t(draw());
  for (size_t scales = STORED - 2 * ROWS; scales < SIZE; scales += STORED)
    for (int i = 0; i < 2 * ROWS; i += 2) weights[scales + i] = uint8_t(draw()), weights[scales + i + 1] = 0x3f;  // bf16, 0.5 to 2
  std::vector<float> x(COUNT * IN), found(COUNT * OUT), expected(COUNT * OUT);
  for (auto& value : x) value = float(draw()) - 128;

  Threads one(1);
  QuantizedRows rows(COUNT, IN, GROUP);
  for (int row = 0; row < COUNT; ++row) quantize_row<IN, GROUP>(x.data() + row * IN, rows, row, COUNT);
  linear_int<BITS, OUT, IN, GROUP>(one, weights.data(), rows, COUNT, {found.data(), OUT, nullptr, false});
  for (int row = 0; row < COUNT; ++row) {
    quantize_row<IN, GROUP>(x.data() + row * IN, rows, 0, 1);
    linear_int<BITS, OUT, IN, GROUP>(one, weights.data(), rows, 1, {expected.data() + row * OUT, OUT, nullptr, false});
  }
  return std::memcmp(found.data(), expected.data(), sizeof(float) * found.size()) == 0;
}

// 0, IC_NOT_PERMITTED or IC_WRONG_PRODUCTS.
inline int32_t try_processor() {
  if (!tiles_permitted()) return IC_NOT_PERMITTED;
  return tiles_agree<4>() && tiles_agree<8>() ? 0 : IC_WRONG_PRODUCTS;
}

#else

inline int32_t try_processor() { return 0; }

#endif

}  // namespace ic
