// Packed pages: codes are opened once for all rows of a tile.
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

// A factor is one byte, or two: with segments of columns that have steps of their own, or codes that are wide. Then halves of rows
// hold upper bytes and others, behind them, the lower ones.
constexpr int KEY_BYTES = SEGMENTS > 1 || WIDE<KEYS[0]> ? 2 : 1;
constexpr int VALUE_BYTES = wide_values() ? 2 : 1;
static_assert(VALUE_BYTES == 1 || VALUE_SCALES < 0, "lifts are taken from sums of weights, with which no scales are");

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

// Left operands of one chunk: words of `COUNT` halves of rows.
template <int COUNT>
struct Left {
  u32 words[PRODUCTS<COUNT>][4];

  __device__ __forceinline__ void fill(int half, u32 low, u32 high) {
    words[half / 2][half % 2] = low, words[half / 2][2 + half % 2] = high;
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

// Factors of this lane's rows as bytes, as left operands; what scores of a row are counted in; what sums of products begin with.
struct Factors {
  static constexpr int COUNT = KEY_BYTES * HALVES;

  Left<COUNT> left[STEPS_BEFORE<KEY_PIECES>];
  float steps[HALVES];
  Sums32 starts[PRODUCTS<COUNT>];

  // `factors` and `steps_of` begin with the tile's.
  __device__ Factors(const u16* factors, const float* steps_of, const Tile& tile, Lane lane) {
    for (auto& chunk : left)
      for (auto& words : chunk.words) words[1] = words[3] = lane.zero;
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int row = lane.row + 8 * h;
      const bool real = row < QUERIES && row / GROUP < tile.tokens;
      const i64 place = real ? place_of(row) : 0;
      // Factors are up to 127 in each segment's step, and are brought to the largest.
      float own[SEGMENTS], step = 0.0f;
      for (int i = 0; i < SEGMENTS; ++i) own[i] = real ? steps_of[place * SEGMENTS + i] : 0.0f;
      unrolled<KEY_PIECES>([&]<int I>() { step = fmaxf(step, own[KEYS[I].segment] * UNIT<KEYS[I]>); });
      // Times a zero what is not seen would not be a number.
      step = fmaxf(step, 1e-30f);
      steps[h] = step * LOG2E;
      float lifted = 0.0f;
      unrolled<KEY_PIECES>([&]<int I>() {
        constexpr Piece P = KEYS[I];
        const float ratio = KEY_BYTES == 1 ? 1.0f : own[P.segment] * UNIT<P> * 256.0f / step;
#pragma unroll
        for (int c = 0; c < CHUNKS<P>; ++c) {
          float eight[8] = {}, low[4], high[4];
          const int chosen = HALF<P> ? lane.part % 2 : CHUNKS<P> * lane.part + c;
          if (real) open_halves(reinterpret_cast<const u32*>(factors + place * D + P.first) + 4 * chosen, eight);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            low[i] = eight[APART<P> ? 2 * i : i], high[i] = eight[APART<P> ? 2 * i + 1 : 4 + i];
            if (HALF<P>) low[i] = lane.part < 2 ? low[i] : high[i], high[i] = 0.0f;
          }
          const float added = fill(left[STEPS_BEFORE<I> + c], h, low, high, ratio);
          lifted += added * LIFT<P>;
        }
      });
      const int start = __float2int_rn(row_sum(lifted));
      begin(h, MAGIC_BITS - (KEY_BYTES == 1 ? start : start >> 8));
      if constexpr (KEY_BYTES == 2) begin(HALVES + h, MAGIC_BITS - (start & 255));
    }
  }

 private:
  // Eight factors times `ratio`, as integers; returns their sum.
  static __device__ float fill(Left<COUNT>& to, int h, const float (&low)[4], const float (&high)[4], float ratio) {
    // Of two bytes the upper one is that of the nearest multiple of 256, and the lower one, less 128, what is left.
    constexpr float ZERO = KEY_BYTES == 1 ? MAGIC : MAGIC + 128.0f;
    u32 words[8];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float rounded = __fmaf_rn(i < 4 ? low[i] : high[i - 4], ratio, ZERO);
      words[i] = __float_as_uint(rounded), sum += rounded - ZERO;
    }
    to.fill(h, gather<KEY_BYTES - 1>(words), gather<KEY_BYTES - 1>(words + 4));
    if constexpr (KEY_BYTES == 2) to.fill(HALVES + h, gather<0>(words) ^ 0x80808080, gather<0>(words + 4) ^ 0x80808080);
    return sum;
  }

  __device__ void begin(int half, int start) { starts[half / 2].of[half % 2 * 2] = starts[half / 2].of[half % 2 * 2 + 1] = start; }
};

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

// Weights of a block as bytes, as left operands: tokens in a row, and those of even and then of odd place.
struct Weights {
  static constexpr int COUNT = VALUE_BYTES * HALVES;
  static constexpr float MOST = VALUE_BYTES == 1 ? 255.0f : 65472.0f;  // a largest that is rounded up fits two bytes

  Left<COUNT> straight, apart;
  float units[HALVES];

  __device__ __forceinline__ explicit Weights(Lane lane) {
#pragma unroll
    for (auto& words : straight.words) words[1] = words[3] = lane.zero;
#pragma unroll
    for (auto& words : apart.words) words[1] = words[3] = lane.zero;
  }

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

// Adds a block of the page `head`, of which `inside` tokens lie before it; `first` is its own first. If it is `masked` some rows do
// not see all of it.
__device__ __forceinline__ void add_block(PackedSums& sums, const Factors& factors, const Sight& sight, const u32* head, int inside,
                                          int first, bool masked, Lane lane) {
  float scores[HALVES][8];
  {
    Sums32 found[4][PRODUCTS<Factors::COUNT>];
#pragma unroll
    for (auto& own : found)
#pragma unroll
      for (int p = 0; p < PRODUCTS<Factors::COUNT>; ++p) own[p] = factors.starts[p];
    unrolled<KEY_PIECES>([&]<int I>() {
      constexpr Piece P = KEYS[I];
      Four<P.upper> upper[CHUNKS<P>];
      Four<P.lower> lower[CHUNKS<P>];
      read_keys<P>(head, inside, lane, upper), read_keys<P>(head, inside, lane, lower);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int c = 0; c < CHUNKS<P>; ++c) {
          u32 low, high;
          open<P>(upper[c], lower[c], j, low, high);
#pragma unroll
          for (int p = 0; p < PRODUCTS<Factors::COUNT>; ++p) {
            const auto& left = factors.left[STEPS_BEFORE<I> + c].words[p];
            if constexpr (HALF<P>)
              found[j][p] = multiply<Bytes::SIGNED, SIGNS<P>>(left, low, found[j][p]);
            else
              found[j][p] = multiply<Bytes::SIGNED, SIGNS<P>>(left, low, high, found[j][p]);
          }
        }
    });
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        scores[h][j] = sum_of<KEY_BYTES>(found[j], h, 0), scores[h][4 + j] = sum_of<KEY_BYTES>(found[j], h, 1);
  }

  float key_scales[8], value_scales[8];
  read_scales<KEY_SCALES>(head, inside, lane, key_scales);
  read_scales<VALUE_SCALES>(head, inside, lane, value_scales);
  Weights weights(lane);
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    float (&score)[8] = scores[h];
#pragma unroll
    for (int i = 0; i < 8; ++i) score[i] *= key_scales[i];
    if (masked) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (!sight.sees_packed(h, first + 8 * lane.part + i)) score[i] = -infinity();
    }
    float largest = score[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) largest = fmaxf(largest, score[i]);
    largest = row_max(largest) * factors.steps[h];
    // Some row may see nothing of a block that others see.
    if (TOKENS > 1) largest = fmaxf(largest, NOTHING);
    const float share = sums.raise(h, largest);
    float total = 0.0f, heaviest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float weight = exp2_of(__fmaf_rn(score[i], factors.steps[h], -largest));
      total += weight;
      score[i] = weight * value_scales[i];
      heaviest = fmaxf(heaviest, score[i]);
    }
    sums.total[h] += total * share;
    // Without scales the largest weight is one.
    weights.fill(h, score, VALUE_SCALES < 0 ? 1.0f : fmaxf(row_max(heaviest), 1e-30f), share);
  }

  constexpr Sums32 ZEROS = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
  Sums32 lifted[PRODUCTS<Weights::COUNT>];
#pragma unroll
  for (int p = 0; p < PRODUCTS<Weights::COUNT>; ++p) {
    constexpr u32 BACK = 0x01010101u * u8(-LIFTS[LOOKED_UP]);
    lifted[p] = multiply<Bytes::UNSIGNED, Bytes::SIGNED>(weights.straight.words[p], BACK, BACK, ZEROS);
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
        Sums32 found[PRODUCTS<Weights::COUNT>];
#pragma unroll
        for (int p = 0; p < PRODUCTS<Weights::COUNT>; ++p)
          found[p] = multiply<Bytes::UNSIGNED, SIGNS<P>>(left.words[p], low, high, STARTS_LIFTED<P> ? lifted[p] : ZEROS);
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
__device__ void add_packed(PackedSums& sums, const Factors& factors, const Sight& sight, Ring& ring, const u32* pool,
                           const int* table, int page_words, int page, int end, Lane lane) {
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
        add_block(sums, factors, sight, ring.pages[stage], inside, first, sight.hides(first, BLOCK), lane);
    }
    free = stage, stage = stage + 1 < STAGES ? stage + 1 : 0;
  }
}
