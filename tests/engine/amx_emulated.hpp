// The matrix tiles of Intel AMX on a processor without them: exactly the intrinsics that kernels/cpu/amx.hpp uses, as the
// manual's operations have them (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD,
// TDPBSSD, TILESTORED, TILEZERO, TILERELEASE; palette 1). What raises #UD or #GP there ends the program here.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define IC_AMX_EMULATED

namespace amx_emulated {

inline bool permitted = true;  // by the system
inline bool faulty = false;    // one product is wrong

struct Thread {
  bool configured = false;
  int rows[8] = {}, bytes[8] = {};
  int8_t tiles[8][16][64] = {};
};
inline thread_local Thread thread;

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "matrix tiles: %s\n", what);
  std::abort();
}

// A tile that exists: sizes of zero are those of a tile that is not configured.
inline void require_tile(int tile) {
  require(thread.configured, "not configured");
  require(thread.rows[tile] > 0 && thread.bytes[tile] > 0, "a tile without a size");
}

inline void zero_rows(int tile, int first) {
  for (int row = first; row < 16; ++row) std::memset(thread.tiles[tile][row], 0, 64);
}

inline void release() { thread = Thread(); }

inline void loadconfig(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, 64);
  require(bytes[0] <= 1, "a palette that does not exist");
  release();
  if (bytes[0] == 0) return;
  for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "a reserved byte");
  for (int tile = 0; tile < 16; ++tile) {
    const int width = bytes[16 + 2 * tile] | bytes[17 + 2 * tile] << 8, rows = bytes[48 + tile];
    if (tile >= 8) {
      require(width == 0 && rows == 0, "a ninth tile");
      continue;
    }
    require(width <= 64 && rows <= 16 && (width == 0) == (rows == 0), "a size that tiles do not have");
    thread.bytes[tile] = width, thread.rows[tile] = rows;
  }
  thread.configured = true;
}

inline void zero(int tile) {
  require_tile(tile);
  zero_rows(tile, 0);
}

inline void loadd(int tile, const void* base, long stride) {
  require_tile(tile);
  zero_rows(tile, 0);
  for (int row = 0; row < thread.rows[tile]; ++row)
    std::memcpy(thread.tiles[tile][row], static_cast<const char*>(base) + row * stride, size_t(thread.bytes[tile]));
}

inline void stored(int tile, void* base, long stride) {
  require_tile(tile);
  for (int row = 0; row < thread.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(base) + row * stride, thread.tiles[tile][row], size_t(thread.bytes[tile]));
}

// sums += a * b: signed bytes four by four, in 32 bits.
inline void dpbssd(int sums, int a, int b) {
  for (int tile : {sums, a, b}) require_tile(tile);
  require(sums != a && sums != b && a != b, "one tile twice");
  require(thread.bytes[sums] % 4 == 0 && thread.bytes[a] % 4 == 0, "parts of quads");
  require(thread.rows[sums] == thread.rows[a] && thread.bytes[sums] == thread.bytes[b], "sizes that do not match");
  require(thread.bytes[a] / 4 == thread.rows[b], "as many quads of one as rows of the other");
  for (int m = 0; m < thread.rows[sums]; ++m) {
    int32_t row[16];
    std::memcpy(row, thread.tiles[sums][m], 64);
    for (int k = 0; k < thread.bytes[a] / 4; ++k)
      for (int n = 0; n < thread.bytes[sums] / 4; ++n)
        for (int i = 0; i < 4; ++i)
          row[n] = int32_t(uint32_t(row[n]) + uint32_t(thread.tiles[a][m][4 * k + i] * thread.tiles[b][k][4 * n + i]));
    row[0] += faulty && m == 0;
    std::memcpy(thread.tiles[sums][m], row, size_t(thread.bytes[sums]));
  }
  zero_rows(sums, thread.rows[sums]);
}

}  // namespace amx_emulated

namespace ic {
inline bool tiles_permitted() { return amx_emulated::permitted; }
}  // namespace ic

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#define _tile_loadconfig amx_emulated::loadconfig
#define _tile_release amx_emulated::release
#define _tile_zero amx_emulated::zero
#define _tile_loadd amx_emulated::loadd
#define _tile_stored amx_emulated::stored
#define _tile_dpbssd amx_emulated::dpbssd
