// What attend.py computes, for tiles of up to 8 tokens with 32 rows of query heads and codes of 1 to 8 bits: README.md tells what
// the arguments are. constants.h is written by codegen/cuda_decode.py.
//
// Warps take the pages of a share in turn; copies of the next ones are on their way meanwhile. Codes become bytes that integer
// tensor cores multiply: a byte permute looks four up at once, with nibbles for selectors, and words of a strip lie so that what a
// lane reads is what it holds of a product's operand: nothing is exchanged. Keys and values are right operands. Of tokens, lane t
// of the four that hold a row has scores of 8t to 8t + 7 of a block, and these are the indices that its words of values tell of.
//
// Softmax weights, times the scales of values, are rounded to bytes: the largest of a block becomes 255. Beside codes of more than
// 4 bits weights and factors of queries are numbers of two bytes, whose products are made apart.
#include "exact.cuh"
#include "packed.cuh"

static_assert((D == 64 || D == 128) && PAGE % BLOCK == 0 && TOKENS <= 8 && HALVES <= 4, "codegen/cuda_decode.py asks before");

// The sums of all warps.
struct Warps {
  float out[WARPS][ROWS][D], most[WARPS][ROWS], total[WARPS][ROWS];

  // What lane `lane` of warp `warp` has summed: of a row's columns, sum i is of `column(i)`.
  template <int OWN, typename Column>
  __device__ void put(const Sums<OWN>& sums, int warp, Lane lane, Column column) {
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int row = lane.row + 8 * h;
      const float sum = row_sum(sums.total[h]);
      if (lane.part == 0) most[warp][row] = sums.most[h], total[warp][row] = sum;
#pragma unroll
      for (int i = 0; i < OWN; ++i) out[warp][row][column(i)] = sums.out[h][i];
    }
  }

  // Puts all together, of COLUMNS columns.
  template <int COLUMNS>
  __device__ void store(const Tile& tile, float* sums, float* logs) const {
    __syncthreads();
    for (int i = threadIdx.x; i < tile.tokens * GROUP * COLUMNS; i += WARPS * WARP) {
      const int row = i / COLUMNS, column = i % COLUMNS;
      const i64 place = i64(place_of(row)) * SPLITS;
      float largest = NOTHING, weight = 0.0f, sum = 0.0f;
      for (int w = 0; w < WARPS; ++w) largest = fmaxf(largest, most[w][row]);
      for (int w = 0; w < WARPS; ++w) {
        const float share = exp2_of(most[w][row] - largest);
        weight += share * total[w][row], sum += share * out[w][row][column];
      }
      sums[place * D + column] = weight > 0.0f ? sum * inverse(weight) : 0.0f;
      if (column == 0) logs[place] = largest + log2_of(weight);
    }
  }
};

extern "C" __global__ void __launch_bounds__(WARPS* WARP, RESIDENT)
    decode(const Query* queries, const u16* factors, const float* steps, const u32* exact_pool, const u32* packed_pool,
           const int* exact_table, const int* packed_table, const int* tiles, const int* sequences, const int* positions,
           const int* sees, float* sums, float* logs, int query_stride, int table_stride, int exact_page, int exact_place,
           int packed_page, int packed_place, float scale, int window) {
  const int head = blockIdx.y, split = blockIdx.z, warp = threadIdx.x / WARP;
  const int sequence = tiles[2 * blockIdx.x], token = tiles[2 * blockIdx.x + 1];
  if (sequence < 0) return;
  const int* told = sequences + 4 * sequence;
  // Of a sequence that compresses nothing all pages are recent.
  const int recent_pages = CHECKED && told[3] < 0 ? EVERY_PAGE : RECENT;
  const Tile tile{told[1], told[2], token, min(TOKENS, told[2] - token), told[0], recent_pages, window, positions, sees};
  const Lane lane{int(threadIdx.x) % WARP / 4, int(threadIdx.x) % 4};
  const Sight sight(tile, lane);
  const int behind = sight.behind();
  const i64 row = tile.batch_row + token, whose = (row * KV_HEADS + head) * GROUP;
  float* out = sums + (whose * SPLITS + split) * D;
  float* own_logs = logs + whose * SPLITS + split;

  __shared__ union {
    Queries queries;
    struct {
      Ring rings[WARPS];
      Factors factors[Factors::SHARED ? WARPS : 1];
    } packed;
    Warps warps;
  } shared;
  if (split < EXACT_SPLITS) {
    // Sinks and then recent pages, counted along.
    constexpr int PER_PAGE = PAGE / EXACT_BLOCK;
    const int first_sink = min(behind, SINK), sinks = max(min(SINK, sight.last + 1) - first_sink, 0);
    const int recent = max(max(sight.lowest / PAGE - recent_pages, SINK), behind);
    const int blocks = (sinks + max(sight.last + 1 - recent, 0)) * PER_PAGE, each = (blocks + EXACT_SPLITS - 1) / EXACT_SPLITS;
    const int end = min((split + 1) * each, blocks);
    ExactSums own;
    shared.queries.fill(queries + row * query_stride + head * GROUP * D, query_stride, tile);
    __syncthreads();
    for (int block = split * each + warp; block < end; block += WARPS) {
      const int listed = block / PER_PAGE, page = listed < sinks ? first_sink + listed : recent + listed - sinks;
      const int inside = block % PER_PAGE * EXACT_BLOCK;
      const u32* from = exact_pool + i64(exact_table[sequence * table_stride + page]) * exact_page + exact_place +
                        head * (PAGE * D) + inside * (D / 2);
      add_exact_block(own, shared.queries, tile, sight, from, from + PAGE * (D / 2), scale * LOG2E, page * PAGE + inside, lane);
    }
    __syncthreads();
    shared.warps.put(own, warp, lane, [&](int i) { return i / 16 * 64 + 16 * lane.part + i % 16; });
    shared.warps.store<D>(tile, out, own_logs);
  } else {
    constexpr int SHARES = SPLITS - EXACT_SPLITS;
    const int first = max(behind, SINK), end = sight.highest / PAGE - recent_pages;
    const int each = (max(end - first, 0) + SHARES - 1) / SHARES, begin = first + (split - EXACT_SPLITS) * each;
    Factors local;
    Factors& own_factors = Factors::SHARED ? shared.packed.factors[warp] : local;
    own_factors.fill(factors + whose * D, steps + whose * SEGMENTS, tile, lane);
    PackedSums own;
    add_packed(own, own_factors, tile, sight, shared.packed.rings[warp], packed_pool + packed_place + head * HEAD,
               packed_table + sequence * table_stride, packed_page, begin + warp, min(begin + each, end), lane);
    lower(own);
    __syncthreads();
    shared.warps.put(own, warp, lane, [&](int i) { return column_of(i, lane); });
    shared.warps.store<VALUE_COLUMNS>(tile, out, own_logs);
  }
}
