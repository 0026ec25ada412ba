// Integer products by the processor's matrix tiles (Intel AMX), for more than FEW rows of activations: exact in int32 as those of
// dot.hpp are, and so the same.
//
// A tile holds up to 16 rows of 64 bytes. An instruction adds, to a tile of int32 sums, all products of a tile of activations (64
// signed bytes of each row) and a tile of weights (64 inputs of 16 rows, interleaved by quads: a panel as it is, but signed).
// Up to FEW rows the weights are multiplied as they lie, at the speed at which memory gives them; beyond, they are opened in any
// case, and tiles take the place of vectors.
//
// Rows of activations lie in tiles of one height, at most 16 and as low as their number allows, the last one padded: so a thread's
// tiles are configured once for all its work on a matrix, and 17 rows are two tiles of 9.
#pragma once

#include "dot.hpp"

#if defined(IC_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ic {

constexpr int TILE_ROWS = 16, TILE_INPUTS = 64;

constexpr int tiles_of(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
constexpr int tile_height(int rows) { return (rows + tiles_of(rows) - 1) / tiles_of(rows); }

#if defined(IC_AMX)

template <int GROUP>
constexpr bool by_tiles(int rows) {
  return GROUP % TILE_INPUTS == 0 && rows > FEW;
}

// Asks the system for the tiles' registers, which it does not keep for a process unasked
// (https://docs.kernel.org/arch/x86/xstate.html).
#if !defined(IC_AMX_EMULATED)
inline bool tiles_permitted() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  return ::syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

// What tile instructions will read has been written: GCC's intrinsics do not tell it that they read memory.
inline void written(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// The tiles of this thread: 0 to 3 sums, of two tiles of activations with two panels; 4 and 5 activations; 6 and 7 weights. Set
// again for every stretch of work, for other code may use them between; and given back, so that the system need not keep them.
class Tiles {
 public:
  explicit Tiles(int height) {
    Shapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.bytes[tile] = TILE_INPUTS;
      shapes.rows[tile] = uint8_t(tile < 6 ? height : TILE_ROWS);
    }
    written(&shapes);
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
  };
  static_assert(sizeof(Shapes) == 64, "as the instruction reads it");
};

// Opens one group, with signed weights.
template <int BITS, int GROUP>
inline void open_signed(const uint8_t* stored, uint8_t* panel) {
  const __m512i less = _mm512_set1_epi8(BITS == 8 ? -128 : 8), low = _mm512_set1_epi8(15);
  for (int i = 0; i < ROWS * GROUP * BITS / 8; i += 64) {
    const __m512i bytes = _mm512_loadu_si512(stored + i);
    if constexpr (BITS == 8) {
      _mm512_storeu_si512(panel + i, _mm512_sub_epi8(bytes, less));
    } else {
      _mm512_storeu_si512(panel + 2 * i, _mm512_sub_epi8(_mm512_and_si512(bytes, low), less));
      _mm512_storeu_si512(panel + 2 * i + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(bytes, 4), low), less));
    }
  }
  open_scales<BITS, GROUP>(stored, panel);
}

// The products of a group of A tiles of activations, `next` bytes apart, with P panels, `beside` bytes apart; they stay in the
// tiles.
template <int GROUP, int A, int P>
inline void multiply_tiles(const int8_t* a, size_t next, int height, const uint8_t* panel, size_t beside) {
  _tile_zero(0);
  if constexpr (P == 2) _tile_zero(1);
  if constexpr (A == 2) _tile_zero(2);
  if constexpr (A == 2 && P == 2) _tile_zero(3);
  for (int k = 0; k < GROUP; k += TILE_INPUTS, a += height * TILE_INPUTS, panel += ROWS * TILE_INPUTS) {
    _tile_loadd(6, panel, ROWS * QUAD);
    _tile_loadd(4, a, TILE_INPUTS);
    _tile_dpbssd(0, 4, 6);
    if constexpr (P == 2) {
      _tile_loadd(7, panel + beside, ROWS * QUAD);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (A == 2) {
      _tile_loadd(5, a + next, TILE_INPUTS);
      _tile_dpbssd(2, 5, 6);
    }
    if constexpr (A == 2 && P == 2) _tile_dpbssd(3, 5, 7);
  }
}

// Sums of one tile of activations and one panel: [height][16 rows of weights].
struct alignas(64) TileSums {
  int32_t sums[TILE_ROWS * ROWS];

  vf of(int row) const { return _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + row * ROWS)); }
};

// sums[A][P].
template <int A, int P>
inline void store_tiles(TileSums* sums) {
  constexpr int STRIDE = ROWS * sizeof(int32_t);
  _tile_stored(0, sums[0].sums, STRIDE);
  if constexpr (P == 2) _tile_stored(1, sums[1].sums, STRIDE);
  if constexpr (A == 2) _tile_stored(2, sums[P].sums, STRIDE);
  if constexpr (A == 2 && P == 2) _tile_stored(3, sums[3].sums, STRIDE);
}

#else

template <int GROUP>
constexpr bool by_tiles(int) {
  return false;
}

#endif

}  // namespace ic
