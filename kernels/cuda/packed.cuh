// Packed pages: codes are opened once for all rows of a tile.
#pragma once
#include "operands.cuh"

constexpr int VALUE_COLUMNS = 4 * SUMS_BEFORE<VALUE_PIECES>;

// The column of a lane's i-th sum.
__device__ __forceinline__ int column_of(int i, Lane lane) {
  int column = 0;
  unrolled<VALUE_PIECES>([&]<int I>() {
    constexpr int BESIDE = HALF<VALUES[I]> ? 4 : 8;
    const int own = i - SUMS_BEFORE<I>;
    if (own >= 0) column = VALUES[I].first + own / BESIDE * 4 * BESIDE + BESIDE * lane.part + own % BESIDE;
  });
  return column;
}

// Whether products with values begin with their lift taken away; with weights of two bytes that is left for the end.
template <Piece P>
constexpr bool STARTS_LIFTED = VALUE_BYTES == 1 && LIFT<P> != 0;

using PackedSums = Sums<SUMS_BEFORE<VALUE_PIECES>>;

// Scales of this lane's eight tokens, or ones.
template <int PLACE>
__device__ __forceinline__ void read_scales(const u32* head, int inside, Lane lane, float (&scales)[8]) {
  if constexpr (PLACE >= 0) {
    open_halves(head + (PLACE + inside) / 2 + 4 * lane.part, scales);
  } else {
#pragma unroll
    for (float& scale : scales) scale = 1.0f;
  }
}

// Adds a block of the page `head`, of which `inside` tokens lie before it; `first` is its own first. If it is `masked` some rows do
// not see all of it.
__device__ __forceinline__ void add_block(PackedSums& sums, const Factors& factors, const Tile& tile, const Filling& filling,
                                          const u32* head, int inside, int first, bool masked, Lane lane) {
  // Registers are left for addresses of one strip at a time: the compiler is not to see that they are always the same.
  if constexpr (Factors::SHARED) asm volatile("" : "+r"(lane.row), "+r"(lane.part));
  Sums32 found[4][PRODUCTS<FACTORS>];
#pragma unroll
  for (auto& own : found)
#pragma unroll
    for (int p = 0; p < PRODUCTS<FACTORS>; ++p) own[p] = factors.start(p, lane);
  unrolled<KEY_PIECES>([&]<int I>() {
    constexpr Piece P = KEYS[I];
    Four<P.upper> upper[CHUNKS<P>];
    Four<P.lower> lower[CHUNKS<P>];
    read_keys<P>(head, inside, lane, upper), read_keys<P>(head, inside, lane, lower);
#pragma unroll
    for (int i = 0; i < 4 * CHUNKS<P>; ++i) {
      // What lies in shared memory is read once for four tokens.
      const int j = Factors::SHARED ? i % 4 : i / CHUNKS<P>, c = Factors::SHARED ? i / 4 : i % CHUNKS<P>;
      u32 low, high, left[4];
      open<P>(upper[c], lower[c], j, low, high);
#pragma unroll
      for (int p = 0; p < PRODUCTS<FACTORS>; ++p) {
        factors.left(STEPS_BEFORE<I> + c, p, lane, left);
        if constexpr (HALF<P>)
          found[j][p] = multiply<Bytes::SIGNED, SIGNS<P>>(left, low, found[j][p]);
        else
          found[j][p] = multiply<Bytes::SIGNED, SIGNS<P>>(left, low, high, found[j][p]);
      }
    }
  });
  float scores[HALVES][8];
#pragma unroll
  for (int h = 0; h < HALVES; ++h)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      scores[h][j] = sum_of<KEY_BYTES>(found[j], h, 0), scores[h][4 + j] = sum_of<KEY_BYTES>(found[j], h, 1);

  float key_scales[8], value_scales[8];
  read_scales<KEY_SCALES>(head, inside, lane, key_scales);
  read_scales<VALUE_SCALES>(head, inside, lane, value_scales);
  Weights weights(filling);
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    float (&score)[8] = scores[h];
#pragma unroll
    for (int i = 0; i < 8; ++i) score[i] *= key_scales[i];
    if (masked) [[unlikely]] {
      const int row = lane.row + 8 * h;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (!tile.sees_packed(row, first + 8 * lane.part + i)) score[i] = -infinity();
    }
    float largest = score[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) largest = fmaxf(largest, score[i]);
    const float count = factors.count(h, lane);
    largest = row_max(largest) * count;
    // Some row may see nothing of a block that others see.
    if (TOKENS > 1) largest = fmaxf(largest, NOTHING);
    const float share = sums.raise(h, largest);
    float total = 0.0f, heaviest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float weight = exp2_of(__fmaf_rn(score[i], count, -largest));
      total += weight;
      score[i] = weight * value_scales[i];
      heaviest = fmaxf(heaviest, score[i]);
    }
    sums.total[h] += total * share;
    // Without scales the largest weight is one.
    weights.fill(h, score, VALUE_SCALES < 0 ? 1.0f : fmaxf(row_max(heaviest), 1e-30f), share);
  }

  Sums32 lifted[PRODUCTS<WEIGHTS>];
#pragma unroll
  for (int p = 0; p < PRODUCTS<WEIGHTS>; ++p) {
    constexpr u32 BACK = 0x01010101u * u8(-LIFTS[LOOKED_UP]);
    lifted[p] = multiply<Bytes::UNSIGNED, Bytes::SIGNED>(weights.straight.words[p], BACK, BACK, filling.start);
  }
  unrolled<VALUE_PIECES>([&]<int I>() {
    constexpr Piece P = VALUES[I];
    Four<P.upper> upper[CHUNKS<P>];
    Four<P.lower> lower[CHUNKS<P>];
    read_values<P>(head, inside, lane, upper), read_values<P>(head, inside, lane, lower);
    constexpr int COLUMNS = HALF<P> ? 2 : 4;
    const auto& left = APART<P> ? weights.apart : weights.straight;
#pragma unroll
    for (int c = 0; c < CHUNKS<P>; ++c)
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        u32 low, high;
        open<P>(upper[c], lower[c], j, low, high);
        Sums32 found[PRODUCTS<WEIGHTS>];
#pragma unroll
        for (int p = 0; p < PRODUCTS<WEIGHTS>; ++p)
          found[p] = multiply<Bytes::UNSIGNED, SIGNS<P>>(left.words[p], low, high, STARTS_LIFTED<P> ? lifted[p] : filling.start);
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
          float* out = sums.out[h] + SUMS_BEFORE<I> + 2 * COLUMNS * c + j;
          out[0] += sum_of<VALUE_BYTES>(found, h, 0) * weights.units[h];
          out[COLUMNS] += sum_of<VALUE_BYTES>(found, h, 1) * weights.units[h];
        }
      }
  });
}

// Takes the lifts of values away that are still there, and counts sums in the units of the cache.
__device__ __forceinline__ void lower(PackedSums& sums) {
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    const float total = row_sum(sums.total[h]);
    unrolled<VALUE_PIECES>([&]<int I>() {
      constexpr Piece P = VALUES[I];
#pragma unroll
      for (int i = 0; i < P.columns / 4; ++i) {
        float& sum = sums.out[h][SUMS_BEFORE<I> + i];
        sum = UNIT<P> * (STARTS_LIFTED<P> ? sum : sum - LIFT<P> * total);
      }
    });
  }
}

// One head of a few pages, on the way from memory or here, for one warp.
struct Ring {
  u32 pages[STAGES][HEAD];
};

// Adds packed pages from `page` to `end`, every WARPS-th.
__device__ void add_packed(PackedSums& sums, const Factors& factors, const Tile& tile, const Sight& sight, Ring& ring,
                           const u32* pool, const int* table, int page_words, int page, int end, Lane lane) {
  const Filling filling;
  int coming = page, place = coming < end ? table[coming] : 0;
  const int own = 4 * (4 * lane.row + lane.part);
  const auto call = [&](int stage) {
    if (coming < end) {
      const u32* from = pool + i64(place) * page_words + own;
      u32* to = ring.pages[stage] + own;
#pragma unroll
      for (int i = 0; i < HEAD; i += 4 * WARP)
        if (i + 4 * WARP <= HEAD || i + own < HEAD) copy_ahead(to + i, from + i);
      coming += WARPS;
      // Where the page lies that is called for next time.
      if (coming < end) place = table[coming];
    }
    end_copies();
  };
  for (int stage = 0; stage < STAGES - 1; ++stage) call(stage);
  for (int stage = 0, free = STAGES - 1; page < end; page += WARPS) {
    await_copies<STAGES - 2>();
    __syncwarp();  // what all lanes copied is here, and all have read the page before
    call(free);
    for (int inside = 0; inside < PAGE; inside += BLOCK) {
      const int first = page * PAGE + inside;
      if (first + BLOCK > sight.some_from)
        add_block(sums, factors, tile, filling, ring.pages[stage], inside, first, sight.hides(first, BLOCK), lane);
    }
    free = stage, stage = stage + 1 < STAGES ? stage + 1 : 0;
  }
}
