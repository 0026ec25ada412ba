// What linear.py's `linear` computes for inputs that are rounded to bytes, 16 rows of them or fewer: single tokens of a few
// sequences, where what counts is that weights are read at the speed of memory. Layout and arguments are linear.py's; constants.h
// is written by codegen/cuda_skinny.py.
//
// A block has the products of 16 rows of weights with all inputs. Its warps take tiles in turn, and put their sums together at the
// end: no other launch adds shares. Weights are left operands of integer tensor cores. Which index of the sum a byte has does not
// matter as long as both operands agree, and neither does which row of the operand a row of weights is: so a lane reads 16 bytes at
// once, two neighbouring rows with their scales, and the same columns of the inputs. Nothing is exchanged between lanes.
#include "constants.h"
#include "warp.cuh"

constexpr int BLOCK = 16;                       // rows of weights, and the most of inputs
constexpr int HALF = 8;                         // rows of inputs that a product takes
constexpr int HELD = 8 / BITS;                  // groups of a tile
constexpr int GROUPS = COLS / GROUP;
constexpr int TILES = (GROUPS + HELD - 1) / HELD;
constexpr int WORDS = GROUP / 16;               // of a row of a tile, what a lane reads
constexpr int SPAN = WORDS < 4 ? WORDS : 4;     // of them, neighbours
constexpr int AHEAD = 256 / GROUP;              // tiles of a warp that are on their way: of 4 KiB
constexpr float UNIT = BITS == 4 ? 0.0625f : 1.0f;  // nibbles are multiplied where they are: sixteen times as large
static_assert(GROUP == 32 || GROUP == 64 || GROUP == 128, "codegen/cuda_skinny.py asks before");

// Words SPAN at a time, as far apart as four lanes read.
__device__ __forceinline__ void read_inputs(const u32* from, u32 (&to)[WORDS]) {
#pragma unroll
  for (int i = 0; i < WORDS; i += SPAN) load<SPAN>(from + 4 * i, to + i);
}

// What a lane reads of a tile: two rows of weights, and their scales in each group.
struct Tile {
  u32 rows[2][WORDS], scales[HELD];

  __device__ __forceinline__ void read(const u32* weight, const u32* scales_of, int tile) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < WORDS; i += SPAN)
        load_once<SPAN>(weight + tile * (BLOCK * GROUP / 4) + h * (GROUP / 4) + 4 * i, rows[h] + i);
#pragma unroll
    for (int half = 0; half < HELD; ++half) load_once<1>(scales_of + (tile * HELD + half) * (BLOCK / 2), scales + half);
  }

  // Four numbers of a word of row h, as bytes.
  __device__ __forceinline__ u32 open(int half, int h, int i) const {
    if constexpr (BITS == 8) return rows[h][i];
    return (half == 0 ? rows[h][i] << 4 : rows[h][i]) & 0xf0f0f0f0;
  }
};

// The inputs of HALVES times HALF rows, and sums of this lane's: rows 2 part and the next of inputs, with two rows of weights.
template <int HALVES>
struct Products {
  const u32* inputs[HALVES];
  const float* scales[HALVES][2];
  float sums[HALVES][4] = {};

  // Rows from `count` on are the last one once more, and nobody stores what comes of them.
  __device__ Products(const u32* input, const float* scales_of, int count, Lane lane) {
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      inputs[h] = input + i64(min(HALF * h + lane.row, count - 1)) * (COLS / 4) + SPAN * lane.part;
#pragma unroll
      for (int i = 0; i < 2; ++i) scales[h][i] = scales_of + i64(min(HALF * h + 2 * lane.part + i, count - 1)) * GROUPS;
    }
  }

  __device__ __forceinline__ void add(const Tile& held, int tile) {
#pragma unroll
    for (int half = 0; half < HELD; ++half) {
      const int group = tile * HELD + half;
      // An odd last group has zeros beside it, and no inputs.
      if (GROUPS % HELD != 0 && group >= GROUPS) return;
      const float low = __uint_as_float(held.scales[half] << 16), high = __uint_as_float(held.scales[half] & 0xffff0000);
#pragma unroll
      for (int h = 0; h < HALVES; ++h) {
        u32 own[WORDS];
        read_inputs(inputs[h] + group * (GROUP / 4), own);
        Sums32 found = {};
#pragma unroll
        for (int i = 0; i < WORDS; i += 2) {
          const u32 weights[4] = {held.open(half, 0, i), held.open(half, 1, i), held.open(half, 0, i + 1), held.open(half, 1, i + 1)};
          found = multiply<Bytes::SIGNED, Bytes::SIGNED>(weights, own[i], own[i + 1], found);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[h][i] += float(found.of[i]) * ((i < 2 ? low : high) * scales[h][i % 2][group]);
      }
    }
  }
};

// The sums of all warps, of every row of inputs with the block's rows of weights.
using Warps = float[WARPS][BLOCK][BLOCK];

// Of one warp, the products with its tiles of the block's.
template <int HALVES>
__device__ __forceinline__ void take_tiles(const u32* input, const float* scales, const u32* weight, const u32* weight_scales, int count,
                                         int warp, Lane lane, Warps& all) {
  Products<HALVES> products(input, scales, count, lane);
  Tile coming[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i)
    if (warp + i * WARPS < TILES) coming[i].read(weight, weight_scales, warp + i * WARPS);
  for (int first = warp; first < TILES; first += AHEAD * WARPS)
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int tile = first + i * WARPS, next = tile + AHEAD * WARPS;
      if (tile < TILES) products.add(coming[i], tile);
      if (next < TILES) coming[i].read(weight, weight_scales, next);
    }
#pragma unroll
  for (int h = 0; h < HALVES; ++h)
#pragma unroll
    for (int i = 0; i < 4; ++i) all[warp][HALF * h + 2 * lane.part + i % 2][2 * lane.row + i / 2] = products.sums[h][i];
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP, RESIDENT / WARPS)
    skinny(const u32* __restrict__ input, const float* __restrict__ scales, const u32* __restrict__ weight,
           const u32* __restrict__ weight_scales, const u16* __restrict__ bias, float* output, int rows) {
  __shared__ Warps all;
  const int warp = threadIdx.x / WARP, first = BLOCK * blockIdx.y, count = min(rows - first, BLOCK);
  const Lane lane{int(threadIdx.x) % WARP / 4, int(threadIdx.x) % 4};
  input += i64(first) * (COLS / 4), scales += i64(first) * GROUPS;
  weight += i64(blockIdx.x) * (TILES * BLOCK * GROUP / 4) + 2 * lane.row * (GROUP / 4) + SPAN * lane.part;
  weight_scales += i64(blockIdx.x) * (TILES * HELD * BLOCK / 2) + lane.row;
  if (count <= HALF)
    take_tiles<1>(input, scales, weight, weight_scales, count, warp, lane, all);
  else
    take_tiles<2>(input, scales, weight, weight_scales, count, warp, lane, all);
  __syncthreads();
  for (int i = threadIdx.x; i < count * BLOCK; i += WARPS * WARP) {
    const int row = i / BLOCK, inside = i % BLOCK, column = BLOCK * blockIdx.x + inside;
    if (ROWS % BLOCK != 0 && column >= ROWS) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += all[w][row][inside];
    float* place = output + i64(first + row) * ROWS + column;
    sum *= UNIT;
    if (BIAS) sum += __uint_as_float(u32(bias[column]) << 16);
    *place = ADD ? *place + sum : sum;
  }
}
