// What the rows of a tile see (seen.py): which pages in which form, and of these which tokens.
#pragma once
#include "rows.cuh"

constexpr int EVERY_PAGE = 1 << 24;

// Of a tile: its sequence has `count` new tokens from slot `start` on, whose rows in the batch begin at `batch_row`; `tokens` of
// them from `token` on are its own. In a tree `positions` and `sees` tell where new ones stand and whom they see.
struct Tile {
  int start, count, token, tokens, batch_row, recent_pages, window;
  const int *positions, *sees;

  // The tile's token of a row; rows that are none are like the last.
  __device__ int token_of(int row) const { return TOKENS == 1 ? 0 : min(row / GROUP, tokens - 1); }

  // Where a row's token stands.
  __device__ int position_of(int row) const {
    const int own = token + token_of(row);
    return TREE ? positions[batch_row + own] : start + own;
  }

  // Whether a row sees a token of a packed page.
  __device__ bool sees_packed(int row, int seen) const {
    const int position = position_of(row);
    return seen >= first_seen(position) && (TOKENS == 1 || seen < first_exact(position));
  }

  // Of a token at `position`: the first position that it sees, and the first token behind the sinks that it sees exactly.
  __device__ int first_seen(int position) const { return position - window + 1; }
  __device__ int first_exact(int position) const { return max(position / PAGE - recent_pages, SINK) * PAGE; }
};

// Of this lane's rows: where each one's token lies and stands; in a tree whom of the new tokens it sees, or nobody if they are a
// chain.
struct Sight {
  int slot[HALVES], position[HALVES];
  u64 sees[HALVES];
  int lowest, highest, last;  // of all rows: positions, and the page of the last token that they may see
  int some_from, all_from, all_until;  // from where on some and all see packed tokens, and until where all do

  __device__ Sight(const Tile& tile, Lane lane) {
    lowest = 1 << 30, highest = 0;
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
      const int token = tile.token + tile.token_of(lane.row + 8 * h), row = tile.batch_row + token;
      slot[h] = tile.start + token;
      position[h] = tile.position_of(lane.row + 8 * h);
      if constexpr (TREE) sees[h] = u32(tile.sees[2 * row]) | u64(u32(tile.sees[2 * row + 1])) << 32;
      lowest = min(lowest, position[h]), highest = max(highest, position[h]);
    }
    if constexpr (TOKENS > 1) lowest = __reduce_min_sync(EVERY, lowest), highest = __reduce_max_sync(EVERY, highest);
    some_from = tile.first_seen(lowest), all_from = tile.first_seen(highest), all_until = tile.first_exact(lowest);
    last = (TREE ? tile.start + tile.count - 1 : highest) / PAGE;
  }

  // The first page that some row sees.
  __device__ int behind() const { return max(some_from, 0) / PAGE; }

  // Whether some row does not see all of so many packed tokens.
  __device__ __forceinline__ bool hides(int token, int count) const {
    return token < all_from || (TOKENS > 1 && token + count > all_until);
  }

  // Whether row half `h` sees a token of an exact page.
  __device__ __forceinline__ bool sees_exact(const Tile& tile, int h, int token) const {
    bool seen = token <= slot[h];
    int stands = token;
    if constexpr (TREE) {
      const int own = token - tile.start;
      if (own >= 0 && own < tile.count) {
        stands = tile.positions[tile.batch_row + own];
        if (sees[h] != 0) seen = sees[h] >> own & 1;
      }
    }
    // What is recent for one token of a tile may not be for the next.
    if constexpr (TOKENS > 1) seen &= token < SINK * PAGE || token >= tile.first_exact(position[h]);
    return seen && stands >= tile.first_seen(position[h]);
  }
};
