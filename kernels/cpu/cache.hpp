// The paged cache: where a page keeps what, writing new tokens, sealing pages, and reading a page as floats.
//
// A pool page holds the layers in order, and in each the heads in order. Per head, for PAGE tokens of D elements:
//   exact:  keys [D][PAGE] bf16, then values [PAGE][D] bf16
//   packed: key codes [D][PAGE/32] packs, key scales [PAGE] fp16, value codes [PAGE][D/32] packs, value scales [PAGE] fp16
// where a pack is 32 codes of 3 bits in 12 bytes (runtime/kv/codec.py). Keys lie across the page, so that one vector
// holds the same dimension of neighbouring tokens: scores need no sum over lanes.
#pragma once

#include "simd.hpp"

namespace ic {

template <int LAYERS_, int KV_HEADS_, int D_, int PAGE_, int SINK_, int RECENT_, bool COMPRESSED_>
struct Cache {
  static constexpr int LAYERS = LAYERS_, KV_HEADS = KV_HEADS_, D = D_, PAGE = PAGE_, SINK = SINK_, RECENT = RECENT_;
  static constexpr bool COMPRESSED = COMPRESSED_;
  static constexpr int PACK = 32, PACK_BYTES = 12;
  static_assert(PAGE % PACK == 0 && D % PACK == 0, "whole packs");

  static constexpr size_t EXACT_HEAD = size_t(2) * PAGE * D * 2;
  static constexpr size_t CODES = size_t(PAGE) * D / PACK * PACK_BYTES;
  static constexpr size_t PACKED_HEAD = 2 * (CODES + size_t(PAGE) * 2);
  static constexpr size_t EXACT_PAGE = EXACT_HEAD * KV_HEADS * LAYERS;
  static constexpr size_t PACKED_PAGE = COMPRESSED ? PACKED_HEAD * KV_HEADS * LAYERS : 0;

  // Whether a query in query_page reads key_page in its exact form; the one rule of visibility.
  static constexpr bool exact(int query_page, int key_page) {
    return !COMPRESSED || key_page < SINK || key_page >= query_page - RECENT;
  }
  static constexpr bool packs(int page) { return COMPRESSED && page >= SINK; }

  static uint16_t* exact_keys(uint8_t* pool, int page, int layer, int head) {
    return reinterpret_cast<uint16_t*>(pool + page * EXACT_PAGE + (size_t(layer) * KV_HEADS + head) * EXACT_HEAD);
  }
  static uint8_t* packed_head(uint8_t* pool, int page, int layer, int head) {
    return pool + page * PACKED_PAGE + (size_t(layer) * KV_HEADS + head) * PACKED_HEAD;
  }
};

// ---- rotation

template <int D>
void hadamard(float* x) {
  for (int stride = 1; stride < D; stride *= 2) {
    for (int i = 0; i < D; i += 2 * stride) {
      if (stride % W == 0) {
        for (int j = i; j < i + stride; j += W) {
          const vf a = load(x + j), b = load(x + j + stride);
          store(x + j, add(a, b));
          store(x + j + stride, sub(a, b));
        }
      } else {
        for (int j = i; j < i + stride; ++j) {
          const float a = x[j], b = x[j + stride];
          x[j] = a + b;
          x[j + stride] = a - b;
        }
      }
    }
  }
  const vf scale = set1(float(1.0 / std::sqrt(double(D))));
  for (int i = 0; i < D; i += W) store(x + i, mul(load(x + i), scale));
}

template <int D>
void rotate_in(float* x, const float* signs) {
  for (int i = 0; i < D; i += W) store(x + i, mul(load(x + i), load(signs + i)));
  hadamard<D>(x);
}

template <int D>
void rotate_out(float* x, const float* signs) {
  hadamard<D>(x);
  for (int i = 0; i < D; i += W) store(x + i, mul(load(x + i), load(signs + i)));
}

// ---- codes

struct Codebook {
  float centroids[8];
  float boundaries[7];
};

// Nearest centroids of the rotated vector y; returns the fp16 scale that keeps its norm.
template <int D>
uint16_t encode(const float* y, const Codebook& book, uint8_t* codes) {
  vf squares = zero();
  for (int i = 0; i < D; i += W) squares = fma(load(y + i), load(y + i), squares);
  const float norm = std::sqrt(hsum(squares));
  float thresholds[7];
  for (int b = 0; b < 7; ++b) thresholds[b] = norm / float(std::sqrt(double(D))) * book.boundaries[b];
  float points = 0;
  for (int i = 0; i < D; ++i) {
    int code = 0;
    for (int b = 0; b < 7; ++b) code += y[i] > thresholds[b];
    codes[i] = uint8_t(code);
    points += book.centroids[code] * book.centroids[code];
  }
  return to_fp16(norm / std::sqrt(points));
}

// 32 codes, `stride` bytes apart, to 12 bytes.
inline void pack(const uint8_t* codes, size_t stride, uint8_t* out) {
  for (int j = 0; j < 3; ++j) {
    uint32_t word = 0;
    for (int k = 0; k < 8; ++k) {
      const uint32_t low = codes[(8 * j + k) * stride], top = codes[(24 + k) * stride] >> j & 1;
      word |= (low | top << 3) << (4 * k);
    }
    std::memcpy(out + 4 * j, &word, 4);
  }
}

inline void pack_words(const uint8_t* pack, uint32_t words[4]) {
  std::memcpy(words, pack, 12);
  words[3] = (words[0] >> 3 & 0x11111111u) | (words[1] >> 2 & 0x22222222u) | (words[2] >> 1 & 0x44444444u);
}

// 12 bytes to the centroids of 32 codes.
inline void unpack(const uint8_t* packed, const Codebook& book, float* out) {
  uint32_t words[4];
  pack_words(packed, words);
#if defined(IC_AVX512)
  // The table stands twice, so that the fourth bit of a nibble does not matter.
  const __m512 table = _mm512_broadcast_f32x8(_mm256_loadu_ps(book.centroids));
  const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  for (int j = 0; j < 4; j += 2) {
    const __m512i both = _mm512_inserti64x4(_mm512_set1_epi32(int32_t(words[j])), _mm256_set1_epi32(int32_t(words[j + 1])), 1);
    _mm512_storeu_ps(out + 8 * j, _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shifts), table));
  }
#elif defined(IC_AVX2)
  const __m256 table = _mm256_loadu_ps(book.centroids);
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  for (int j = 0; j < 4; ++j) {
    const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(int32_t(words[j])), shifts);
    _mm256_storeu_ps(out + 8 * j, _mm256_permutevar8x32_ps(table, codes));  // reads three bits of each code
  }
#else
  for (int j = 0; j < 4; ++j)
    for (int k = 0; k < 8; ++k) out[8 * j + k] = book.centroids[words[j] >> (4 * k) & 7];
#endif
}

// ---- pages

// Writes one token's key and value of one head.
template <class C>
void append(uint8_t* pool, int page, int layer, int head, int slot, const float* key, const float* value) {
  uint16_t* keys = C::exact_keys(pool, page, layer, head);
  uint16_t* values = keys + size_t(C::PAGE) * C::D + size_t(slot) * C::D;
  for (int i = 0; i < C::D; ++i) keys[size_t(i) * C::PAGE + slot] = to_bf16(key[i]);
  for (int i = 0; i < C::D; ++i) values[i] = to_bf16(value[i]);
}

// Compresses a full exact page of one head.
template <class C>
void seal(uint8_t* exact_pool, int exact_page, uint8_t* packed_pool, int packed_page, int layer, int head,
          const Codebook& book, const float* signs) {
  const uint16_t* keys = C::exact_keys(exact_pool, exact_page, layer, head);
  const uint16_t* values = keys + size_t(C::PAGE) * C::D;
  uint8_t* out = C::packed_head(packed_pool, packed_page, layer, head);
  alignas(64) float row[C::D];
  uint8_t codes[C::PAGE * C::D];
  uint16_t scales[C::PAGE];
  for (int t = 0; t < C::PAGE; ++t) {
    for (int i = 0; i < C::D; ++i) row[i] = from_bf16(keys[size_t(i) * C::PAGE + t]);
    rotate_in<C::D>(row, signs);
    scales[t] = encode<C::D>(row, book, codes + t * C::D);
  }
  for (int i = 0; i < C::D; ++i)
    for (int t = 0; t < C::PAGE; t += C::PACK, out += C::PACK_BYTES) pack(codes + t * C::D + i, C::D, out);
  std::memcpy(out, scales, sizeof scales);
  out += sizeof scales;
  for (int t = 0; t < C::PAGE; ++t) {
    for (int i = 0; i < C::D; ++i) row[i] = from_bf16(values[size_t(t) * C::D + i]);
    rotate_in<C::D>(row, signs);
    scales[t] = encode<C::D>(row, book, codes);
    for (int i = 0; i < C::D; i += C::PACK, out += C::PACK_BYTES) pack(codes + i, 1, out);
  }
  std::memcpy(out, scales, sizeof scales);
}

// A page of one head as floats: keys [D][PAGE], values [PAGE][D]; a packed page stays rotated, its scales apart.
template <class C>
struct PageTile {
  alignas(64) float keys[C::D * C::PAGE];
  alignas(64) float values[C::PAGE * C::D];
  alignas(64) float key_scales[C::PAGE];
  alignas(64) float value_scales[C::PAGE];

  void read_exact(const uint16_t* keys_in) {
    const uint16_t* values_in = keys_in + C::D * C::PAGE;
    for (int i = 0; i < C::D * C::PAGE; i += W) store(keys + i, load_bf16(keys_in + i));
    for (int i = 0; i < C::D * C::PAGE; i += W) store(values + i, load_bf16(values_in + i));
  }

  void read_packed(const uint8_t* in, const Codebook& book) {
    for (int i = 0; i < C::D * C::PAGE; i += C::PACK, in += C::PACK_BYTES) unpack(in, book, keys + i);
    in = read_scales(in, key_scales);
    for (int i = 0; i < C::D * C::PAGE; i += C::PACK, in += C::PACK_BYTES) unpack(in, book, values + i);
    read_scales(in, value_scales);
  }

 private:
  static const uint8_t* read_scales(const uint8_t* in, float* out) {
    for (int t = 0; t < C::PAGE; ++t, in += 2) {
      uint16_t half;
      std::memcpy(&half, in, 2);
      out[t] = from_fp16(half);
    }
    return in;
  }
};

}  // namespace ic
