// Codes of 1 to 8 bits: how a lane reads those of a page, and how they become bytes that integer tensor cores multiply.
//
// A code stands for the integer UNIT (byte - LIFT). Up to 4 bits a byte permute looks four up at once, with nibbles for selectors;
// bytes of 4 bits are lifted, so that none is negative. Wider codes stand for odd numbers in a row, and are bytes when they are
// shifted up: of a word of eight, first those of even place and then those of odd place.
#pragma once
#include "constants.h"
#include "warp.cuh"

constexpr int BLOCK = 32;  // tokens

constexpr int LOOKED_UP = 4;  // bits at most

template <Piece P>
constexpr bool WIDE = (P.bits > LOOKED_UP);
// Whether a word's bytes are of even and then of odd places.
template <Piece P>
constexpr bool APART = WIDE<P> && P.bits < 8;
template <Piece P>
constexpr Bytes SIGNS = WIDE<P> ? Bytes::UNSIGNED : Bytes::SIGNED;
template <Piece P>
constexpr float UNIT = WIDE<P> ? float(1 << P.bits) / 128 : 1.0f / SPREADS[P.bits];
template <Piece P>
constexpr float LIFT = WIDE<P> ? float((1 << P.bits) - 1) / UNIT<P> : float(LIFTS[P.bits]);

// Pieces of 16 columns are a half of what the others are made of.
template <Piece P>
constexpr bool HALF = (P.columns < 32);
template <Piece P>
constexpr int CHUNKS = HALF<P> ? 1 : P.columns / 32;

// Four rows of a strip are as many words as a code has bits. Eight codes take one, or two side by side if they are bytes; from
// those of one row, or of rows that share them, or of a plane, it is NEXT_WORDS to the next, and ROWS_APART times so.
template <Strip S>
constexpr int WORDS_BESIDE = S.bits == 8 ? 2 : 1;
template <Strip S>
constexpr int ROWS_APART = S.bits / WORDS_BESIDE<S>;
template <Strip S>
constexpr int NEXT_WORDS = S.bits == 3 ? S.plane : S.row;
template <Strip S>
constexpr int FOUR_ROWS = S.bits == 3 ? S.row : ROWS_APART<S> * S.row;

template <Strip S>
struct Four {
  u32 words[S.bits > 0 ? S.bits : 1];

  // Nibbles of the j-th row.
  __device__ __forceinline__ u32 nibbles(int j) const {
    if constexpr (S.bits == 4) return words[j];
    if constexpr (S.bits == 2) return words[j / 2] >> 2 * (j % 2) & 0x33333333;
    if constexpr (S.bits == 1) return words[0] >> j & 0x11111111;
    if constexpr (S.bits == 3) return j < 3 ? words[j] & 0x77777777 : fourth();
  }
  __device__ __forceinline__ u32 fourth() const {
    return (words[0] >> 3 & 0x11111111) | (words[1] >> 2 & 0x22222222) | (words[2] >> 1 & 0x44444444);
  }
};

// Bytes of eight codes of the j-th row.
template <Piece P>
__device__ __forceinline__ void open(const Four<P.upper>& upper, const Four<P.lower>& lower, int j, u32& low, u32& high) {
  if constexpr (P.bits == 8) {
    low = upper.words[2 * j], high = upper.words[2 * j + 1];
  } else if constexpr (WIDE<P>) {
    constexpr u32 UPPER = 0xf0f0f0f0;
    const u32 above = upper.nibbles(j), below = lower.nibbles(j) << (8 - P.bits);
    low = select(UPPER, above << 4, below), high = select(UPPER, above, below >> 4);
  } else if constexpr (P.bits == LOOKED_UP) {
    // A nibble's upper bit makes the permute repeat a byte's sign, which is none: each table gives zeros for the other's codes.
    constexpr u64 FIRST = POINTS[P.bits][0], SECOND = POINTS[P.bits][1];
    const u32 word = upper.nibbles(j), other = word ^ 0x88888888;
    low = permute(FIRST, word) | permute(SECOND, other);
    high = permute(FIRST, word >> 16) | permute(SECOND, other >> 16);
  } else {
    constexpr u64 ALL = POINTS[P.bits][0];
    const u32 word = upper.nibbles(j);
    low = permute(ALL, word), high = permute(ALL, word >> 16);
  }
}

// What a lane reads of the keys of a block in the page `head`, of which `inside` tokens lie before it: of the lane.row-th four
// tokens of the block, the lane.part-th CHUNKS times eight columns. Of 16 columns there are two eights: of four lanes the first two
// have the beginnings of words, the others what is left.
template <Piece P, Strip S>
__device__ __forceinline__ void read_keys(const u32* head, int inside, Lane lane, Four<S> (&chunks)[CHUNKS<P>]) {
  constexpr int BESIDE = WORDS_BESIDE<S>;
  const u32* from = head + S.place + (inside / 4 + lane.row) * FOUR_ROWS<S>;
  if constexpr (HALF<P>) {
    const int half = lane.part / 2;
    from += lane.part % 2 * BESIDE + (S.bits == 8 ? half : 0);
#pragma unroll
    for (int i = 0; i < ROWS_APART<S>; ++i)
      chunks[0].words[BESIDE * i] = from[i * NEXT_WORDS<S>] >> (S.bits == 8 ? 0 : half * (APART<P> ? 4 : 16));
  } else {
    constexpr int COUNT = CHUNKS<P> * BESIDE;
#pragma unroll
    for (int i = 0; i < ROWS_APART<S>; ++i) {
      u32 found[COUNT];
      load<COUNT, S.row>(from + COUNT * lane.part + i * NEXT_WORDS<S>, found);
#pragma unroll
      for (int k = 0; k < COUNT; ++k) chunks[k / BESIDE].words[BESIDE * i + k % BESIDE] = found[k];
    }
  }
}

// The same of values: of the lane.part-th eight tokens, the lane.row-th four columns of each 32. Of 16 a lane has two, 2 lane.row
// and the next, which `open` takes for rows 0 and 1.
template <Piece P, Strip S>
__device__ __forceinline__ void read_values(const u32* head, int inside, Lane lane, Four<S> (&chunks)[CHUNKS<P>]) {
  constexpr int BESIDE = WORDS_BESIDE<S>;
  constexpr bool SHARED = S.bits % 2 != 0;  // words by all four
  const u32* from = head + S.place + BESIDE * (inside / 8 + lane.part);
  if constexpr (!HALF<P>) {
#pragma unroll
    for (int c = 0; c < CHUNKS<P>; ++c)
#pragma unroll
      for (int i = 0; i < ROWS_APART<S>; ++i)
        load<BESIDE>(from + (8 * c + lane.row) * FOUR_ROWS<S> + i * NEXT_WORDS<S>, chunks[c].words + BESIDE * i);
  } else if constexpr (!SHARED) {
#pragma unroll
    for (int i = 0; i < ROWS_APART<S> / 2; ++i)
      load<BESIDE>(from + lane.row * (FOUR_ROWS<S> / 2) + i * NEXT_WORDS<S>, chunks[0].words + BESIDE * i);
  } else {
    Four<S> all;
#pragma unroll
    for (int i = 0; i < ROWS_APART<S>; ++i) all.words[i] = from[lane.row / 2 * FOUR_ROWS<S> + i * NEXT_WORDS<S>];
    const bool later = lane.row % 2 != 0;
    if constexpr (S.bits == 1) {
      chunks[0].words[0] = all.words[0] >> (later ? 2 : 0);
    } else {
      chunks[0].words[0] = later ? all.words[2] : all.words[0];
      chunks[0].words[1] = later ? all.fourth() : all.words[1];
    }
  }
}
