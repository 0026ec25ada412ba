// Tiles: codes of 16 lanes x 16 neighbouring indices of a sum, 32 bytes for each of their bits.
//
// Of keys, lanes are tokens and sums run over columns; of values, lanes are columns and sums run over tokens. Open, a tile is
// [4 quads][16 lanes][4 bytes], where a quad is 4 indices of the sum: what products of bytes take (product.hpp); of codes of more
// than 4 bits, which are closed in two parts, [4 quads][2][16 lanes][2 numbers of 16 bits], first those of a quad's even indices,
// then of its odd ones. Closed, with
// code(q, B) the 32 bytes of quad q and lanes 8B..8B+7:
//   4 bits: 4 vectors, the q-th code(q, 0) | code(q, 1) << 4
//   3 bits: 3 vectors, the j-th the same of quad j; its fourth and eighth bits are bit j of quad 3's codes
//   2 bits: 2 vectors, the v-th code(2v, 0) | code(2v, 1) << 2 | code(2v + 1, 0) << 4 | code(2v + 1, 1) << 6
//   1 bit:  1 vector, bit 2q + B is code(q, B)
#pragma once

#include "plane.hpp"
#include "simd.hpp"

namespace ic {

constexpr int TILE_LANES = 16, TILE_BYTES = 256, TILE_VECTOR = 32;

constexpr size_t tile_bytes(int bits) { return size_t(TILE_VECTOR) * bits; }

// Closes a tile of codes.
template <int BITS>
void close_tile(const uint8_t* codes, uint8_t* out) {
  const auto code = [&](int q, int b, int p) { return codes[(2 * q + b) * TILE_VECTOR + p]; };
  for (int p = 0; p < TILE_VECTOR; ++p) {
    if constexpr (BITS == 1) {
      uint8_t all = 0;
      for (int i = 0; i < 8; ++i) all = uint8_t(all | code(i / 2, i % 2, p) << i);
      out[p] = all;
    } else if constexpr (BITS == 2) {
      for (int v = 0; v < 2; ++v)
        out[v * TILE_VECTOR + p] =
            uint8_t(code(2 * v, 0, p) | code(2 * v, 1, p) << 2 | code(2 * v + 1, 0, p) << 4 | code(2 * v + 1, 1, p) << 6);
    } else {
      for (int q = 0; q < BITS; ++q) {
        uint8_t both = uint8_t(code(q, 0, p) | code(q, 1, p) << 4);
        if constexpr (BITS == 3) both = uint8_t(both | (code(3, 0, p) >> q & 1) << 3 | (code(3, 1, p) >> q & 1) << 7);
        out[q * TILE_VECTOR + p] = both;
      }
    }
  }
}

inline void close_tile(int bits, const uint8_t* codes, uint8_t* out) {
  switch (bits) {
    case 1: return close_tile<1>(codes, out);
    case 2: return close_tile<2>(codes, out);
    case 3: return close_tile<3>(codes, out);
    default: return close_tile<4>(codes, out);
  }
}

#if defined(IC_AVX512) || defined(IC_AVX2)

struct Lookup {
  __m256i table;

  Lookup() = default;
  explicit Lookup(const int8_t (&numbers)[16])
      : table(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers)))) {}
};

inline __m256i load_vector(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// Both halves of a quad: codes from bits LOW and HIGH of each byte on. Further bits, and what a shift brings in from the
// neighbouring byte, lie above a code's own.
template <int LOW, int HIGH>
inline void open_quad(__m256i codes, const Lookup& lookup, uint8_t* out) {
#if defined(IC_AVX512)
  const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi16(LOW), _mm256_set1_epi16(HIGH), 1);
  const __m512i both = _mm512_and_si512(_mm512_srlv_epi16(_mm512_broadcast_i64x4(codes), shifts), _mm512_set1_epi8(15));
  _mm512_storeu_si512(out, _mm512_shuffle_epi8(_mm512_broadcast_i64x4(lookup.table), both));
#else
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(lookup.table, _mm256_and_si256(_mm256_srli_epi16(codes, LOW), mask));
  const __m256i high = _mm256_shuffle_epi8(lookup.table, _mm256_and_si256(_mm256_srli_epi16(codes, HIGH), mask));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + TILE_VECTOR), high);
#endif
}

template <int BITS>
inline void open_tile(const uint8_t* codes, const Lookup& lookup, uint8_t* out) {
  constexpr int QUAD = 2 * TILE_VECTOR;
  const __m256i first = load_vector(codes);
  if constexpr (BITS == 1) {
    open_quad<0, 1>(first, lookup, out);
    open_quad<2, 3>(first, lookup, out + QUAD);
    open_quad<4, 5>(first, lookup, out + 2 * QUAD);
    open_quad<6, 7>(first, lookup, out + 3 * QUAD);
  } else if constexpr (BITS == 2) {
    const __m256i second = load_vector(codes + TILE_VECTOR);
    open_quad<0, 2>(first, lookup, out);
    open_quad<4, 6>(first, lookup, out + QUAD);
    open_quad<0, 2>(second, lookup, out + 2 * QUAD);
    open_quad<4, 6>(second, lookup, out + 3 * QUAD);
  } else {
    const __m256i second = load_vector(codes + TILE_VECTOR), third = load_vector(codes + 2 * TILE_VECTOR);
    open_quad<0, 4>(first, lookup, out);
    open_quad<0, 4>(second, lookup, out + QUAD);
    open_quad<0, 4>(third, lookup, out + 2 * QUAD);
    if constexpr (BITS == 4) {
      open_quad<0, 4>(load_vector(codes + 3 * TILE_VECTOR), lookup, out + 3 * QUAD);
    } else {
      const __m256i bit0 = _mm256_and_si256(_mm256_srli_epi16(first, 3), _mm256_set1_epi8(0x11));
      const __m256i bit1 = _mm256_and_si256(_mm256_srli_epi16(second, 2), _mm256_set1_epi8(0x22));
      const __m256i bit2 = _mm256_and_si256(_mm256_srli_epi16(third, 1), _mm256_set1_epi8(0x44));
      open_quad<0, 4>(_mm256_or_si256(_mm256_or_si256(bit0, bit1), bit2), lookup, out + 3 * QUAD);
    }
  }
}

// The odd integers of a tile of wide codes, given both parts of the codes.
inline void join_tile(const uint8_t* high, const uint8_t* low, int most, uint8_t* out) {
  auto* to = reinterpret_cast<__m256i*>(out);
  const __m256i even = _mm256_set1_epi16(2), odd = _mm256_set1_epi16(2 << 8), middle = _mm256_set1_epi16(int16_t(most));
  for (int i = 0; i < TILE_BYTES; i += 2 * TILE_VECTOR, to += 4)
    for (int half = 0; half < 2; ++half) {
      const __m256i codes = _mm256_or_si256(load_vector(high + i + half * TILE_VECTOR), load_vector(low + i + half * TILE_VECTOR));
      _mm256_storeu_si256(to + half, _mm256_sub_epi16(_mm256_maddubs_epi16(codes, even), middle));
      _mm256_storeu_si256(to + 2 + half, _mm256_sub_epi16(_mm256_maddubs_epi16(codes, odd), middle));
    }
}

#else

struct Lookup {
  int8_t table[16];

  Lookup() = default;
  explicit Lookup(const int8_t (&numbers)[16]) { std::memcpy(table, numbers, sizeof table); }
};

template <int BITS>
inline void open_tile(const uint8_t* codes, const Lookup& lookup, uint8_t* out) {
  const auto put = [&](int q, int b, int p, int code) {
    out[(2 * q + b) * TILE_VECTOR + p] = uint8_t(lookup.table[code & ((1 << BITS) - 1)]);
  };
  for (int p = 0; p < TILE_VECTOR; ++p) {
    if constexpr (BITS == 1) {
      for (int i = 0; i < 8; ++i) put(i / 2, i % 2, p, codes[p] >> i);
    } else if constexpr (BITS == 2) {
      for (int i = 0; i < 8; ++i) put(i / 2, i % 2, p, codes[i / 4 * TILE_VECTOR + p] >> (i % 4 * 2));
    } else {
      int last = 0;
      for (int q = 0; q < BITS; ++q) {
        const int both = codes[q * TILE_VECTOR + p];
        put(q, 0, p, both);
        put(q, 1, p, both >> 4);
        last |= (both >> 3 & 0x11) << q;
      }
      if constexpr (BITS == 3) put(3, 0, p, last), put(3, 1, p, last >> 4);
    }
  }
}

inline void join_tile(const uint8_t* high, const uint8_t* low, int most, uint8_t* out) {
  for (int i = 0; i < TILE_BYTES; ++i) {
    const int quad = i / (2 * TILE_VECTOR), lane = i / 4 % TILE_LANES, index = i % 4;
    const int16_t number = int16_t(2 * (high[i] | low[i]) - most);
    std::memcpy(out + (2 * quad + index % 2) * 2 * TILE_VECTOR + lane * 4 + index / 2 * 2, &number, 2);
  }
}

#endif

// Opens the tiles of a segment: points, each with `lift` more, or wide integers.
class Opener {
 public:
  Opener() = default;
  Opener(const Segment& segment, int lift, int tiles) : bits_(segment.bits), tiles_(tiles), most_(segment.most()) {
    int8_t first[16], second[16];
    const int low = segment.strip(1).bits;
    for (int i = 0; i < 16; ++i) {
      first[i] = segment.wide() ? int8_t(uint8_t(i << low)) : int8_t(segment.points[i] + lift);
      second[i] = int8_t(i & ((1 << low) - 1));
    }
    first_ = Lookup(first), second_ = Lookup(second);
  }

  // Returns where the codes end.
  const uint8_t* open(const uint8_t* codes, uint8_t* out) const {
    switch (bits_) {
      case 1: points<1>(codes, out); break;
      case 2: points<2>(codes, out); break;
      case 3: points<3>(codes, out); break;
      case 4: points<4>(codes, out); break;
      case 5: wide<1>(codes, out); break;
      case 6: wide<2>(codes, out); break;
      case 7: wide<3>(codes, out); break;
      default: wide<4>(codes, out);
    }
    return codes + size_t(tiles_) * tile_bytes(bits_);
  }

 private:
  template <int BITS>
  void points(const uint8_t* codes, uint8_t* out) const {
    const Lookup lookup = first_;
    for (int i = 0; i < tiles_; ++i) open_tile<BITS>(codes + size_t(i) * tile_bytes(BITS), lookup, out + i * TILE_BYTES);
  }
  template <int LOW>
  void wide(const uint8_t* codes, uint8_t* out) const {
    const Lookup first = first_, second = second_;
    const uint8_t* others = codes + size_t(tiles_) * tile_bytes(4);
    alignas(64) uint8_t high[TILE_BYTES], low[TILE_BYTES];
    for (int i = 0; i < tiles_; ++i) {
      open_tile<4>(codes + size_t(i) * tile_bytes(4), first, high);
      open_tile<LOW>(others + size_t(i) * tile_bytes(LOW), second, low);
      join_tile(high, low, most_, out + i * 2 * TILE_BYTES);
    }
  }

  int bits_, tiles_, most_;
  Lookup first_, second_;  // of points, or of a code's upper bits; of its others
};

}  // namespace ic
