// Exact pages: bfloat16, 16 tokens at a time.
#pragma once
#include "codes.cuh"
#include "seen.cuh"

constexpr int EXACT_BLOCK = 16;

using ExactSums = Sums<D / 4>;

// Queries in bfloat16, for all warps. Rows begin in banks of their own.
struct Queries {
  u32 words[ROWS][D / 2 + 4];

  // `queries` begins with those of the tile's first token and the first head.
  __device__ void fill(const Query* queries, int stride, const Tile& tile) {
    for (int i = threadIdx.x; i < ROWS * D / 2; i += WARPS * WARP) {
      const int row = i / (D / 2), word = i % (D / 2);
      const bool real = row < QUERIES && row / GROUP < tile.tokens;
      words[row][word] = real ? two(queries + i64(row / GROUP) * stride + row % GROUP * D + 2 * word) : 0;
    }
  }

 private:
  static __device__ u32 two(const u16* from) { return from[0] | u32(from[1]) << 16; }
  static __device__ u32 two(const float* from) { return to_bf16(from[0], from[1]); }
};

// Adds a block of exact tokens, of which `first` is the first. Of its values, a lane's sums are of columns 64 c + 16 part to that
// plus 15.
__device__ __forceinline__ void add_exact_block(ExactSums& sums, const Queries& queries, const Tile& tile, const Sight& sight,
                                                const u32* keys, const u32* values, float scale, int first, Lane lane) {
  float scores[PRODUCTS<HALVES>][2][4] = {};
#pragma unroll 1  // sums and what is on its way take the registers
  for (int c = 0; c < D / 32; ++c) {
    const int word = 16 * c + 4 * lane.part;
    u32 own[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) load<4>(keys + (8 * j + lane.row) * (D / 2) + word, own[j]);
#pragma unroll
    for (int p = 0; p < PRODUCTS<HALVES>; ++p) {
      u32 low[4], high[4] = {};
      load<4>(queries.words[16 * p + lane.row] + word, low);
      if (2 * p + 1 < HALVES) load<4>(queries.words[16 * p + 8 + lane.row] + word, high);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        multiply_bf16(scores[p][j], {low[0], high[0], low[1], high[1]}, own[j][0], own[j][1]);
        multiply_bf16(scores[p][j], {low[2], high[2], low[3], high[3]}, own[j][2], own[j][3]);
      }
    }
  }
  u32 weights[PRODUCTS<HALVES>][4] = {};
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    float score[4], largest = NOTHING, total = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = sight.sees_exact(tile, h, first + i / 2 * 8 + 2 * lane.part + i % 2);
      score[i] = seen ? scores[h / 2][i / 2][h % 2 * 2 + i % 2] * scale : -infinity();
      largest = fmaxf(largest, score[i]);
    }
    largest = row_max(largest);
    const float share = sums.raise(h, largest);
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] = exp2_of(score[i] - largest) * share, total += score[i];
    sums.total[h] += total;
    weights[h / 2][h % 2] = to_bf16(score[0], score[1]), weights[h / 2][2 + h % 2] = to_bf16(score[2], score[3]);
  }
#pragma unroll
  for (int c = 0; c < D / 64; ++c) {
    u32 own[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load<4>(values + (i / 2 * 8 + 2 * lane.part + i % 2) * (D / 2) + 32 * c + 4 * lane.row, own[i]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const u32 half = i % 2 == 0 ? 0x5410 : 0x7632;
      const u32 low = permute(own[0][i / 2], own[1][i / 2], half), high = permute(own[2][i / 2], own[3][i / 2], half);
#pragma unroll
      for (int p = 0; p < PRODUCTS<HALVES>; ++p) {
        constexpr int LAST = HALVES - 1;
        float* above = sums.out[2 * p] + 16 * c + i;
        float* below = sums.out[min(2 * p + 1, LAST)] + 16 * c + i;
        const bool both = 2 * p + 1 < HALVES;
        float found[4] = {above[0], above[8], both ? below[0] : 0.0f, both ? below[8] : 0.0f};
        multiply_bf16(found, weights[p], low, high);
        above[0] = found[0], above[8] = found[1];
        if (both) below[0] = found[2], below[8] = found[3];
      }
    }
  }
}
