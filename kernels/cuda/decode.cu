// What attend.py computes, for tiles of one token and codes of 2 to 4 bits, at most 16 query heads to a key-value head: README.md
// tells what the arguments are. constants.h is written by codegen/cuda_decode.py.
//
// Warps take the pages of a share in turn; copies of the next ones are on their way meanwhile. Codes become bytes that integer
// tensor cores multiply: a byte permute looks four up at once, with nibbles for selectors, and words of a strip lie so that what a
// lane reads is what it holds of a product's operand: nothing is exchanged. Keys and values are right operands. Of tokens, lane t
// of the four that hold a row has scores of 8t to 8t + 7 of a block, and these are the indices that its words of values tell of.
//
// Softmax weights, times the scales of values, are rounded to bytes: the largest of a block becomes 255.
#include "constants.h"
#include "warp.cuh"

constexpr int BLOCK = 32, EXACT_BLOCK = 16;  // tokens
constexpr int HALVES = GROUP > 8 ? 2 : 1;    // of the 16 rows of a product's left operand, those that hold queries
constexpr int ROWS = 8 * HALVES;
constexpr int OWN = D / 4;                   // sums of a row that a lane holds
constexpr int CHUNKS = D / 32;               // columns of keys that a product takes at once
constexpr int EVERY_PAGE = 1 << 24;
constexpr float LOG2E = 1.4426950408889634f;
static_assert((D == 64 || D == 128) && PAGE % BLOCK == 0 && GROUP <= 16, "codegen/cuda_decode.py asks before");

// Where this lane stands: rows lane / 4 and that plus 8, and which of the four lanes that hold them. `zero` is one that the
// compiler does not know: what fills operands up stays in registers then, instead of being made anew for every product.
struct Lane {
  int row, part;
  u32 zero;
};

// Queries of the tile's token over what was seen so far, of this lane's rows.
struct Sums {
  float out[HALVES][OWN] = {};
  float most[HALVES], total[HALVES];  // total: of this lane's tokens

  __device__ Sums() {
    for (int h = 0; h < HALVES; ++h) most[h] = -infinity(), total[h] = 0.0f;
  }

  // Takes up a block whose largest score is `largest`; returns what its weights are to be multiplied with.
  __device__ __forceinline__ float raise(int h, float largest) {
    if (__any_sync(EVERY, largest > most[h])) {
      const float higher = fmaxf(most[h], largest);
      const float fade = higher == -infinity() ? 1.0f : exp2_of(most[h] - higher);
      total[h] *= fade;
#pragma unroll
      for (int i = 0; i < OWN; ++i) out[h][i] *= fade;
      most[h] = higher;
    }
    return most[h] == -infinity() ? 0.0f : exp2_of(largest - most[h]);
  }
};

// Codes of BITS bits: words of nibbles, and the integers that they stand for, as bytes. Those of 4 bits have LIFT<4> added, so that
// no integer is negative: then of two bytes, one for codes with and one for codes without the upper bit, seven bits are selected.
template <int BITS>
struct Codes {
  // Of the words w of a lane, nibbles of the j-th of four rows of the strip.
  static __device__ __forceinline__ u32 nibbles(const u32 (&w)[BITS], int j) {
    if constexpr (BITS == 4) return w[j];
    if constexpr (BITS == 2) return w[j / 2] >> 2 * (j % 2) & 0x33333333;
    if constexpr (BITS == 3) {
      if (j < 3) return w[j] & 0x77777777;
      return (w[0] >> 3 & 0x11111111) | (w[1] >> 2 & 0x22222222) | (w[2] >> 1 & 0x44444444);
    }
  }

  static __device__ __forceinline__ void open(u32 word, u32& low, u32& high) {
    if constexpr (BITS == 4) {
      low = half(word), high = half(word >> 16);
    } else {
      constexpr u64 POINTS = BITS == 3 ? POINTS3 : POINTS2;
      low = permute(POINTS, word), high = permute(POINTS, word >> 16);
    }
  }

 private:
  static __device__ __forceinline__ u32 half(u32 word) {
    const u32 rest = word & 0x77777777;
    return select(permute(0x8080808080808080, word), permute(UPPER_POINTS4, rest), permute(LOWER_POINTS4, rest));
  }
};

template <int BITS>
constexpr int LIFT = BITS == 4 ? LIFT4 : 0;

// A strip of rows of WIDTH words, PLANE words to a plane: from where four rows begin to the next four, and from one to the next of
// the words that hold them.
template <int BITS, int WIDTH>
constexpr int FOUR_ROWS = BITS == 3 ? WIDTH : BITS * WIDTH;
template <int BITS, int WIDTH, int PLANE>
constexpr int NEXT_WORD = BITS == 3 ? PLANE : WIDTH;

// What a lane reads of the keys of a block in the page `head`, of which `inside` tokens lie before it.
struct Keys {
  u32 words[CHUNKS][KEY_BITS];

  __device__ __forceinline__ Keys(const u32* head, int inside, Lane lane) {
    constexpr int WIDTH = D / 8, PLANE = PAGE / 4 * WIDTH;
    const u32* from = head + KEY_PLACE + (inside / 4 + lane.row) * FOUR_ROWS<KEY_BITS, WIDTH> + CHUNKS * lane.part;
#pragma unroll
    for (int i = 0; i < KEY_BITS; ++i) {
      u32 found[CHUNKS];
      load<CHUNKS>(from + i * NEXT_WORD<KEY_BITS, WIDTH, PLANE>, found);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) words[c][i] = found[c];
    }
  }
};

struct Values {
  u32 words[CHUNKS][VALUE_BITS];

  __device__ __forceinline__ Values(const u32* head, int inside, Lane lane) {
    constexpr int WIDTH = PAGE / 8, PLANE = D / 4 * WIDTH;
    const u32* from = head + VALUE_PLACE + lane.row * FOUR_ROWS<VALUE_BITS, WIDTH> + inside / 8 + lane.part;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
      for (int i = 0; i < VALUE_BITS; ++i)
        words[c][i] = from[8 * c * FOUR_ROWS<VALUE_BITS, WIDTH> + i * NEXT_WORD<VALUE_BITS, WIDTH, PLANE>];
  }
};

// Eight float16.
__device__ __forceinline__ void open_halves(const u32* from, float (&to)[8]) {
  u32 words[4];
  load<4>(from, words);
#pragma unroll
  for (int i = 0; i < 4; ++i) from_halves(words[i], to[2 * i], to[2 * i + 1]);
}

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

// Four numbers times `by`, from -128 to 255, rounded to bytes of a word.
__device__ __forceinline__ u32 bytes(const float* numbers, float by) {
  u32 rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = __float_as_uint(__fmaf_rn(numbers[i], by, MAGIC));
  return permute(permute(rounded[0], rounded[1], 0x0040), permute(rounded[2], rounded[3], 0x0040), 0x5410);
}

// The factors of this lane's rows as bytes, four to a word, as left operands; the row's step; what sums of products begin with.
struct Factors {
  u32 words[CHUNKS][4];
  float steps[HALVES];
  Sums32 starts;

  __device__ Factors(const u16* factors, const float* steps_of, Lane lane) {
    for (int h = 0; h < 2; ++h) {
      const int row = lane.row + 8 * h;
      // Times a zero what is not seen would not be a number.
      if (h < HALVES) steps[h] = fmaxf(row < GROUP ? steps_of[row] * LOG2E : 0.0f, 1e-30f);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        if (h >= HALVES) {
          words[c][h] = words[c][2 + h] = lane.zero;
          continue;
        }
        float numbers[8] = {};
        if (row < GROUP) open_halves(reinterpret_cast<const u32*>(factors + row * D + 8 * (CHUNKS * lane.part + c)), numbers);
        words[c][h] = bytes(numbers, 1.0f), words[c][2 + h] = bytes(numbers + 4, 1.0f);
      }
    }
    starts = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
    if constexpr (LIFT<KEY_BITS> != 0) {
      constexpr u32 BACK = 0x01010101u * u8(-LIFT<KEY_BITS>);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) starts = multiply_signed(words[c], BACK, BACK, starts);
    }
  }
};

// Adds a block of the page `head`, of which `inside` tokens lie before it; the first `hidden` of its own are not seen.
__device__ __forceinline__ void add_block(Sums& sums, const Factors& factors, const u32* head, int inside, int hidden, Lane lane) {
  const Keys keys(head, inside, lane);
  float scores[HALVES][8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    Sums32 found;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      u32 low, high;
      Codes<KEY_BITS>::open(Codes<KEY_BITS>::nibbles(keys.words[c], j), low, high);
      found = multiply_signed(factors.words[c], low, high, c == 0 ? factors.starts : found);
    }
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      scores[h][j] = __int_as_float(found.of[2 * h]) - MAGIC;
      scores[h][4 + j] = __int_as_float(found.of[2 * h + 1]) - MAGIC;
    }
  }

  float key_scales[8], value_scales[8];
  read_scales<KEY_SCALES>(head, inside, lane, key_scales);
  read_scales<VALUE_SCALES>(head, inside, lane, value_scales);
  u32 weights[4] = {0, lane.zero, 0, lane.zero};
  float units[HALVES];
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    float (&score)[8] = scores[h];
#pragma unroll
    for (int i = 0; i < 8; ++i) score[i] *= key_scales[i];
    if (hidden > 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (8 * lane.part + i < hidden) score[i] = -infinity();
    }
    float largest = score[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) largest = fmaxf(largest, score[i]);
    largest = row_max(largest) * factors.steps[h];
    const float share = sums.raise(h, largest);
    float total = 0.0f, heaviest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float weight = exp2_of(__fmaf_rn(score[i], factors.steps[h], -largest));
      total += weight;
      score[i] = weight * value_scales[i];
      heaviest = fmaxf(heaviest, score[i]);
    }
    heaviest = fmaxf(row_max(heaviest), 1e-30f);
    sums.total[h] += total * share;
    units[h] = heaviest * share * (1.0f / 255.0f);
    const float inverted = 255.0f * inverse(heaviest);
    weights[h] = bytes(score, inverted), weights[2 + h] = bytes(score + 4, inverted);
  }

  const Values values(head, inside, lane);
  Sums32 starts = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
  if constexpr (LIFT<VALUE_BITS> != 0) {
    constexpr u32 BACK = 0x01010101u * u8(-LIFT<VALUE_BITS>);
    starts = multiply_unsigned(weights, BACK, BACK, starts);
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      u32 low, high;
      Codes<VALUE_BITS>::open(Codes<VALUE_BITS>::nibbles(values.words[c], j), low, high);
      const Sums32 found = multiply_unsigned(weights, low, high, starts);
#pragma unroll
      for (int h = 0; h < HALVES; ++h) {
        float* out = sums.out[h] + 8 * c + j;
        out[0] += (__int_as_float(found.of[2 * h]) - MAGIC) * units[h];
        out[4] += (__int_as_float(found.of[2 * h + 1]) - MAGIC) * units[h];
      }
    }
}

// One head of a few pages, on the way from memory or here, for one warp.
struct Ring {
  u32 pages[STAGES][HEAD];
};

// Packed pages from `page` to `end`, every WARPS-th; tokens from `lowest` on are seen.
__device__ void add_packed(Sums& sums, const Factors& factors, Ring& ring, const u32* pool, const int* table, int page_words,
                           int page, int end, int lowest, Lane lane) {
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
      const int hidden = lowest - (page * PAGE + inside);
      if (hidden < BLOCK) add_block(sums, factors, ring.pages[stage], inside, hidden, lane);
    }
    free = stage, stage = stage + 1 < STAGES ? stage + 1 : 0;
  }
}

// Queries in bfloat16, for all warps. Rows begin in banks of their own.
struct Queries {
  u32 words[ROWS][D / 2 + 4];

  __device__ void fill(const Query* queries) {
    for (int i = threadIdx.x; i < ROWS * D / 2; i += WARPS * WARP) {
      const int row = i / (D / 2), word = i % (D / 2);
      words[row][word] = row < GROUP ? two(queries + row * D + 2 * word) : 0;
    }
  }

 private:
  static __device__ u32 two(const u16* from) { return from[0] | u32(from[1]) << 16; }
  static __device__ u32 two(const float* from) { return to_bf16(from[0], from[1]); }
};

// Adds a block of exact tokens: those from `lowest` to `slot` are seen, `first` is the block's first. Of its values, a lane's sums
// are of columns 64 c + 16 part to that plus 15.
__device__ __forceinline__ void add_exact_block(Sums& sums, const Queries& queries, const u32* keys, const u32* values, float scale,
                                                int first, int lowest, int slot, Lane lane) {
  float scores[2][4] = {};
#pragma unroll 1  // sums and what is on its way take the registers
  for (int c = 0; c < CHUNKS; ++c) {
    const int word = 16 * c + 4 * lane.part;
    u32 low[4], high[4] = {}, own[2][4];
    load<4>(queries.words[lane.row] + word, low);
    if constexpr (HALVES == 2) load<4>(queries.words[lane.row + 8] + word, high);
#pragma unroll
    for (int j = 0; j < 2; ++j) load<4>(keys + (8 * j + lane.row) * (D / 2) + word, own[j]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      multiply_bf16(scores[j], {low[0], high[0], low[1], high[1]}, own[j][0], own[j][1]);
      multiply_bf16(scores[j], {low[2], high[2], low[3], high[3]}, own[j][2], own[j][3]);
    }
  }
  u32 weights[4] = {};
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    float score[4], largest = -infinity();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first + i / 2 * 8 + 2 * lane.part + i % 2;
      score[i] = token >= lowest && token <= slot ? scores[i / 2][2 * h + i % 2] * scale : -infinity();
      largest = fmaxf(largest, score[i]);
    }
    largest = row_max(largest);
    const float share = sums.raise(h, largest);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[i] = largest == -infinity() ? 0.0f : exp2_of(score[i] - largest) * share;
      total += score[i];
    }
    sums.total[h] += total;
    weights[h] = to_bf16(score[0], score[1]), weights[2 + h] = to_bf16(score[2], score[3]);
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
      float* low = sums.out[0] + 16 * c + i;
      float* high = sums.out[HALVES - 1] + 16 * c + i;
      float found[4] = {low[0], low[8], HALVES == 2 ? high[0] : 0.0f, HALVES == 2 ? high[8] : 0.0f};
      multiply_bf16(found, weights, permute(own[0][i / 2], own[1][i / 2], half), permute(own[2][i / 2], own[3][i / 2], half));
      low[0] = found[0], low[8] = found[1];
      if constexpr (HALVES == 2) high[0] = found[2], high[8] = found[3];
    }
  }
}

// The sums of all warps.
struct Warps {
  float out[WARPS][ROWS][D], most[WARPS][ROWS], total[WARPS][ROWS];
};

// Puts the warps' sums together and stores them. A lane's sums are SPAN neighbouring columns at a time.
template <int SPAN>
__device__ void finish(const Sums& sums, Warps& all, float* out, float* logs, int warp, Lane lane) {
#pragma unroll
  for (int h = 0; h < HALVES; ++h) {
    const int row = lane.row + 8 * h;
    const float sum = row_sum(sums.total[h]);
    if (lane.part == 0) all.most[warp][row] = sums.most[h], all.total[warp][row] = sum;
#pragma unroll
    for (int i = 0; i < OWN; ++i) all.out[warp][row][i / SPAN * 4 * SPAN + SPAN * lane.part + i % SPAN] = sums.out[h][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < GROUP * D; i += WARPS * WARP) {
    const int row = i / D, column = i % D;
    float largest = -infinity(), weight = 0.0f, sum = 0.0f;
    for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, all.most[w][row]);
    if (largest > -infinity())
      for (int w = 0; w < WARPS; ++w) {
        const float share = exp2_of(all.most[w][row] - largest);
        weight += share * all.total[w][row], sum += share * all.out[w][row][column];
      }
    out[i64(row) * SPLITS * D + column] = weight > 0.0f ? sum * inverse(weight) : 0.0f;
    if (column == 0) logs[row * SPLITS] = largest + log2_of(weight);
  }
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP, RESIDENT)
    decode(const Query* queries, const u16* factors, const float* steps, const u32* exact_pool, const u32* packed_pool,
           const int* exact_table, const int* packed_table, const int* tiles, const int* sequences, float* sums, float* logs,
           int query_stride, int table_stride, int exact_page, int exact_place, int packed_page, int packed_place, float scale,
           int window) {
  const int tile = blockIdx.x, head = blockIdx.y, split = blockIdx.z, warp = threadIdx.x / WARP;
  const int sequence = tiles[2 * tile], token = tiles[2 * tile + 1];
  if (sequence < 0) return;
  const i64 row = sequences[4 * sequence] + token;
  const int slot = sequences[4 * sequence + 1] + token;
  // Of a sequence that compresses nothing all pages are recent.
  const int recent_pages = CHECKED && sequences[4 * sequence + 3] < 0 ? EVERY_PAGE : RECENT;
  const Lane lane{int(threadIdx.x) % WARP / 4, int(threadIdx.x) % 4, u32(slot) >> 31};
  const int lowest = slot - window + 1, behind = max(lowest, 0) / PAGE, last = slot / PAGE;  // behind: the first page that is seen
  const i64 whose = (row * KV_HEADS + head) * GROUP;
  float* out = sums + (whose * SPLITS + split) * D;
  float* own_logs = logs + whose * SPLITS + split;

  __shared__ union {
    Queries queries;
    Ring rings[WARPS];
    Warps warps;
  } shared;
  Sums own;
  if (split < EXACT_SPLITS) {
    // Sinks and then recent pages, counted along.
    constexpr int PER_PAGE = PAGE / EXACT_BLOCK;
    const int first_sink = min(behind, SINK), sinks = max(min(SINK, last + 1) - first_sink, 0);
    const int recent = max(max(last - recent_pages, SINK), behind);
    const int blocks = (sinks + max(last + 1 - recent, 0)) * PER_PAGE, each = (blocks + EXACT_SPLITS - 1) / EXACT_SPLITS;
    const int end = min((split + 1) * each, blocks);
    shared.queries.fill(queries + row * query_stride + head * GROUP * D);
    __syncthreads();
    for (int block = split * each + warp; block < end; block += WARPS) {
      const int listed = block / PER_PAGE, page = listed < sinks ? first_sink + listed : recent + listed - sinks;
      const int inside = block % PER_PAGE * EXACT_BLOCK;
      const u32* from = exact_pool + i64(exact_table[sequence * table_stride + page]) * exact_page + exact_place +
                        head * (PAGE * D) + inside * (D / 2);
      add_exact_block(own, shared.queries, from, from + PAGE * (D / 2), scale * LOG2E, page * PAGE + inside, lowest, slot, lane);
    }
    __syncthreads();
    finish<16>(own, shared.warps, out, own_logs, warp, lane);
  } else {
    constexpr int SHARES = SPLITS - EXACT_SPLITS;
    const int first = max(behind, SINK), end = last - recent_pages, each = (max(end - first, 0) + SHARES - 1) / SHARES;
    const int begin = first + (split - EXACT_SPLITS) * each;
    const Factors query(factors + whose * D, steps + whose, lane);
    add_packed(own, query, shared.rings[warp], packed_pool + packed_place + head * HEAD, packed_table + sequence * table_stride,
               packed_page, begin + warp, min(begin + each, end), lowest, lane);
    __syncthreads();
    finish<8>(own, shared.warps, out, own_logs, warp, lane);
  }
}
