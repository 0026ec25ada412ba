// A tile's queries as the rows of products: which token of which head each is, and what it has summed up.
#pragma once
#include "constants.h"
#include "warp.cuh"

constexpr int QUERIES = TOKENS * GROUP;
constexpr int HALVES = (QUERIES + 7) / 8;  // of products, which have 16 rows
constexpr int ROWS = 8 * HALVES;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float NOTHING = -1e30f;  // below every score

// Of so many halves of rows; half `h` is in the h / 2-th.
template <int COUNT>
constexpr int PRODUCTS = (COUNT + 1) / 2;

// Where row `row` is among the query heads of the batch, behind the tile's first.
__device__ __forceinline__ int place_of(int row) { return row / GROUP * (KV_HEADS * GROUP) + row % GROUP; }

// Queries over what was seen so far, of this lane's rows: OWN sums of each.
template <int OWN>
struct Sums {
  float out[HALVES][OWN] = {};
  float most[HALVES], total[HALVES] = {};  // total: of this lane's tokens

  __device__ Sums() {
    for (float& each : most) each = NOTHING;
  }

  // Takes up a block whose largest score is `largest`; returns what its weights are to be multiplied with.
  __device__ __forceinline__ float raise(int h, float largest) {
    if (__any_sync(EVERY, largest > most[h])) {
      const float higher = fmaxf(most[h], largest), fade = exp2_of(most[h] - higher);
      total[h] *= fade;
#pragma unroll
      for (float& each : out[h]) each *= fade;
      most[h] = higher;
    }
    return exp2_of(largest - most[h]);
  }
};
