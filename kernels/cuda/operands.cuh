// What is multiplied with codes: factors of queries and softmax weights, as bytes of left operands.
//
// A factor is one byte, or two: with segments of columns that have steps of their own, or codes that are wide. Then halves of rows
// hold upper bytes, and others behind them the lower ones: one product takes both. So are weights, beside wide codes.
#pragma once
#include "codes.cuh"
#include "rows.cuh"
#include "seen.cuh"

// Calls `act` with every number below COUNT, as a constant.
template <int COUNT, int I = 0, typename Act>
__device__ __forceinline__ void unrolled(Act&& act) {
  if constexpr (I < COUNT) {
    act.template operator()<I>();
    unrolled<COUNT, I + 1>(act);
  }
}

constexpr int KEY_PIECES = sizeof(KEYS) / sizeof(Piece), VALUE_PIECES = sizeof(VALUES) / sizeof(Piece);

// Before the I-th piece of keys, products with four tokens; of values, sums of a lane. Behind the last: all.
template <int I>
constexpr int STEPS_BEFORE = STEPS_BEFORE<I - 1> + CHUNKS<KEYS[I - 1]>;
template <>
constexpr int STEPS_BEFORE<0> = 0;
template <int I>
constexpr int SUMS_BEFORE = SUMS_BEFORE<I - 1> + VALUES[I - 1].columns / 4;
template <>
constexpr int SUMS_BEFORE<0> = 0;

__device__ constexpr bool wide_values() {
  for (const Piece& piece : VALUES)
    if (piece.bits > LOOKED_UP) return true;
  return false;
}

constexpr int KEY_BYTES = SEGMENTS > 1 || WIDE<KEYS[0]> ? 2 : 1;
constexpr int VALUE_BYTES = wide_values() ? 2 : 1;
static_assert(VALUE_BYTES == 1 || VALUE_SCALES < 0, "lifts are taken from sums of weights, with which no scales are");

// Left operands of one chunk: words of COUNT halves of rows.
template <int COUNT>
struct Left {
  u32 words[PRODUCTS<COUNT>][4];

  // Behind the last half there may be room for another.
  __device__ __forceinline__ Left(u32 zero, u32 other_zero) {
    if constexpr (COUNT % 2 != 0) words[COUNT / 2][1] = zero, words[COUNT / 2][3] = other_zero;
  }

  __device__ __forceinline__ void fill(int half, u32 low, u32 high) {
    words[half / 2][half % 2] = low, words[half / 2][2 + half % 2] = high;
  }
};

// `x`, and the compiler does not know: what fills operands up has registers of its own, and is not made anew for every product.
__device__ __forceinline__ u32 kept(u32 x) {
  __shared__ volatile u32 aside[WARPS * WARP];
  aside[threadIdx.x] = x;
  return aside[threadIdx.x];
}

// What operands are filled up with, and sums of products begin with.
struct Filling {
  u32 zero, other_zero;
  Sums32 start;

  __device__ Filling() : zero(kept(0)), other_zero(kept(0)) {
    for (int& each : start.of) each = kept(MAGIC_BITS);
  }
};

// Byte BYTE of four words, as one.
template <int BYTE>
__device__ __forceinline__ u32 gather(const u32* words) {
  constexpr u32 PAIR = 0x40 + 0x11 * BYTE;
  return permute(permute(words[0], words[1], PAIR), permute(words[2], words[3], PAIR), 0x5410);
}

// What products gave row half `h` in column `n`: with numbers of two bytes, in units of the upper one.
template <int BYTES>
__device__ __forceinline__ float sum_of(const Sums32 (&found)[PRODUCTS<BYTES * HALVES>], int h, int n) {
  const float upper = __int_as_float(found[h / 2].of[2 * (h % 2) + n]);
  if constexpr (BYTES == 1) {
    return upper - MAGIC;
  } else {
    const int half = HALVES + h;
    const float lower = __int_as_float(found[half / 2].of[2 * (half % 2) + n]);
    return __fmaf_rn(lower, 1.0f / 256, upper - (MAGIC + MAGIC / 256));
  }
}

// Eight float16.
__device__ __forceinline__ void open_halves(const u32* from, float (&to)[8]) {
  u32 words[4];
  load<4>(from, words);
#pragma unroll
  for (int i = 0; i < 4; ++i) from_halves(words[i], to[2 * i], to[2 * i + 1]);
}

constexpr int FACTORS = KEY_BYTES * HALVES;

// Factors of a lane's rows; what sums of their products begin with, and what scores are counted in. Those of more than 16 rows lie
// in shared memory, for a lane has no registers left.
struct Factors {
  static constexpr bool SHARED = HALVES > 2;
  static constexpr int LANES = SHARED ? WARP : 1;

  // `factors` and `steps` begin with the tile's.
  __device__ void fill(const u16* factors, const float* steps, const Tile& tile, Lane lane) {
    i64 places[HALVES];
    float largest[HALVES], lifted[HALVES] = {};
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int row = lane.row + 8 * h;
      places[h] = row < QUERIES && row / GROUP < tile.tokens ? place_of(row) : -1;
      // Factors are up to 127 in each segment's step, and are brought to the largest. It is no zero: times that, what is not seen
      // would not be a number.
      largest[h] = 1e-30f;
      unrolled<KEY_PIECES>([&]<int I>() { largest[h] = fmaxf(largest[h], step_of<KEYS[I]>(steps, places[h])); });
      counts_[h][own(lane)] = largest[h] * LOG2E;
    }
    unrolled<KEY_PIECES>([&]<int I>() {
      constexpr Piece P = KEYS[I];
#pragma unroll
      for (int c = 0; c < CHUNKS<P>; ++c) {
        const int chosen = HALF<P> ? lane.part % 2 : CHUNKS<P> * lane.part + c;
        Left<FACTORS> left(kept(0), kept(0));
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
          const float ratio = KEY_BYTES == 1 ? 1.0f : 256.0f * step_of<P>(steps, places[h]) / largest[h];
          float eight[8] = {}, parts[2][4];
          if (places[h] >= 0) open_halves(reinterpret_cast<const u32*>(factors + places[h] * D + P.first) + 4 * chosen, eight);
#pragma unroll
          for (int i = 0; i < 8; ++i) parts[APART<P> ? i % 2 : i / 4][APART<P> ? i / 2 : i % 4] = eight[i] * ratio;
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (HALF<P>) parts[0][i] = lane.part < 2 ? parts[0][i] : parts[1][i], parts[1][i] = 0.0f;
          lifted[h] += LIFT<P> * round(left, h, parts);
        }
#pragma unroll
        for (int p = 0; p < PRODUCTS<FACTORS>; ++p)
#pragma unroll
          for (int i = 0; i < 4; ++i) words_[STEPS_BEFORE<I> + c][p][own(lane)][i] = left.words[p][i];
      }
    });
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int start = __float2int_rn(row_sum(lifted[h]));
      begin(h, MAGIC_BITS - (KEY_BYTES == 1 ? start : start >> 8), lane);
      if constexpr (KEY_BYTES == 2) begin(HALVES + h, MAGIC_BITS - (start & 255), lane);
    }
    if (FACTORS % 2 != 0) begin(FACTORS, MAGIC_BITS, lane);
  }

  // Of the p-th product, of a chunk of columns.
  __device__ __forceinline__ void left(int chunk, int p, Lane lane, u32 (&words)[4]) const {
    if constexpr (SHARED) {
      load<4>(words_[chunk][p][own(lane)], words);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = words_[chunk][p][0][i];
    }
  }
  __device__ __forceinline__ const Sums32& start(int p, Lane lane) const { return starts_[p][own(lane)]; }
  __device__ __forceinline__ float count(int h, Lane lane) const { return counts_[h][own(lane)]; }

 private:
  alignas(16) u32 words_[STEPS_BEFORE<KEY_PIECES>][PRODUCTS<FACTORS>][LANES][4];
  Sums32 starts_[PRODUCTS<FACTORS>][LANES];
  float counts_[HALVES][LANES];

  static __device__ int own(Lane lane) { return SHARED ? 4 * lane.row + lane.part : 0; }

  __device__ void begin(int half, int start, Lane lane) {
    int* of = starts_[half / 2][own(lane)].of + half % 2 * 2;
    of[0] = of[1] = start;
  }

  // Of the piece's segment, for integers of codes as bytes.
  template <Piece P>
  static __device__ float step_of(const float* steps, i64 place) {
    return place >= 0 ? steps[place * SEGMENTS + P.segment] * UNIT<P> : 0.0f;
  }

  // Eight factors of row half `h`; returns the sum of what they become.
  static __device__ float round(Left<FACTORS>& left, int h, const float (&parts)[2][4]) {
    // Of two bytes the upper one is that of the nearest multiple of 256, and the lower one, less 128, what is left.
    constexpr float ZERO = KEY_BYTES == 1 ? MAGIC : MAGIC + 128.0f;
    u32 words[2][4];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float rounded = parts[i / 4][i % 4] + ZERO;
      words[i / 4][i % 4] = __float_as_uint(rounded), sum += rounded - ZERO;
    }
    left.fill(h, gather<KEY_BYTES - 1>(words[0]), gather<KEY_BYTES - 1>(words[1]));
    if constexpr (KEY_BYTES == 2) left.fill(HALVES + h, gather<0>(words[0]) ^ 0x80808080, gather<0>(words[1]) ^ 0x80808080);
    return sum;
  }
};

constexpr int WEIGHTS = VALUE_BYTES * HALVES;

// Softmax weights of a block: tokens in a row, and those of even and then of odd place.
struct Weights {
  static constexpr float MOST = VALUE_BYTES == 1 ? 255.0f : 65472.0f;  // a largest that is rounded up fits two bytes

  Left<WEIGHTS> straight, apart;
  float units[HALVES];

  __device__ __forceinline__ explicit Weights(const Filling& filling)
      : straight(filling.zero, filling.other_zero), apart(filling.zero, filling.other_zero) {}

  // Eight of row half `h`, up to `heaviest`; the sum of their products counts `share` times.
  __device__ __forceinline__ void fill(int h, const float (&weights)[8], float heaviest, float share) {
    constexpr float UPPER = VALUE_BYTES == 1 ? 1.0f : 256.0f;
    units[h] = heaviest * share * (UPPER / MOST);
    const float by = MOST * inverse(heaviest);
    u32 words[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = __float_as_uint(__fmaf_rn(weights[i], by, MAGIC));
    put(h, gather<VALUE_BYTES - 1>(words), gather<VALUE_BYTES - 1>(words + 4));
    if constexpr (VALUE_BYTES == 2) put(HALVES + h, gather<0>(words), gather<0>(words + 4));
  }

 private:
  __device__ __forceinline__ void put(int half, u32 low, u32 high) {
    straight.fill(half, low, high);
    apart.fill(half, permute(low, high, 0x6420), permute(low, high, 0x7531));
  }
};
