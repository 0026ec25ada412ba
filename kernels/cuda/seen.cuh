// What the rows of a tile see (seen.py): which pages in which form, and of these which tokens.
#pragma once
#include "rows.cuh"

constexpr int EVERY_PAGE = 1 << 24;

// Of a tile: its sequence's new tokens from `start` on, in the batch from `batch_row` on, and `tokens` of them, the tile's own, from
// `token` on. In a tree `positions` and `sees` tell where the new ones stand and whom they see.
struct Tile {
  int start, count, token, tokens, batch_row, recent_pages, window;
  const int *positions, *sees;

  // The tile's token of a row; rows that are none are like the last.
  __device__ int token_of(int row) const { return TOKENS == 1 ? 0 : min(row / GROUP, tokens - 1); }
};

// Of this lane's rows: the first position that each sees, the first token behind the sinks that it sees exactly, its token's slot; in
// a tree whom of the new tokens it sees, or nobody if they are a chain.
struct Sight {
  int first[HALVES], exact[HALVES], slot[HALVES];
  unsigned long long sees[HALVES];
  int lowest, highest, last;  // of all rows: positions, and the page of the last token that they may see
  int some_from, all_from, all_until;  // from where on some and all see packed tokens, and until where all do

  __device__ Sight(const Tile& tile, Lane lane) {
    lowest = 1 << 30, highest = 0;
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int token = tile.token + tile.token_of(lane.row + 8 * h), row = tile.batch_row + token;
      slot[h] = tile.start + token;
      const int position = TREE ? tile.positions[row] : slot[h];
      if constexpr (TREE) sees[h] = u32(tile.sees[2 * row]) | u64(u32(tile.sees[2 * row + 1])) << 32;
      first[h] = position - tile.window + 1;
      exact[h] = max(position / PAGE - tile.recent_pages, SINK) * PAGE;
      lowest = min(lowest, position), highest = max(highest, position);
    }
    if constexpr (TOKENS > 1) lowest = __reduce_min_sync(EVERY, lowest), highest = __reduce_max_sync(EVERY, highest);
    some_from = lowest - tile.window + 1, all_from = highest - tile.window + 1;
    all_until = max(lowest / PAGE - tile.recent_pages, SINK) * PAGE;
    last = (TREE ? tile.start + tile.count - 1 : highest) / PAGE;
  }

  // The first page that some row sees.
  __device__ int behind() const { return max(some_from, 0) / PAGE; }

  // Whether some row does not see all of so many packed tokens.
  __device__ __forceinline__ bool hides(int token, int count) const {
    return token < all_from || (TOKENS > 1 && token + count > all_until);
  }

  // Whether row half `h` sees a token of a packed page.
  __device__ __forceinline__ bool sees_packed(int h, int token) const {
    return token >= first[h] && (TOKENS == 1 || token < exact[h]);
  }

  // Whether it sees one of an exact page.
  __device__ __forceinline__ bool sees_exact(const Tile& tile, int h, int token) const {
    bool seen = token <= slot[h];
    int position = token;
    if constexpr (TREE) {
      const int own = token - tile.start;
      if (own >= 0 && own < tile.count) {
        position = tile.positions[tile.batch_row + own];
        if (sees[h] != 0) seen = sees[h] >> own & 1;
      }
    }
    // What is recent for one token of a tile may not be for the next.
    if constexpr (TOKENS > 1) seen &= token < SINK * PAGE || token >= exact[h];
    return seen && position >= first[h];
  }
};
