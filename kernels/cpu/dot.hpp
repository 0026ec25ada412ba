// Integer products of one group: 16 rows of stored weights with T rows of int8 activations, exact in int32.
//
// Layout of a group of G inputs of 16 rows (see codegen/repack.py, which writes it):
//   int8: [G/4][16 rows][4 inputs], each weight plus 128 as an unsigned byte
//   int4: [G/8][16 rows][4 bytes], each weight plus 8; low nibbles are inputs 8j..8j+3, high nibbles 8j+4..8j+7
#pragma once

#include "simd.hpp"

namespace ic {

constexpr int ROWS = 16;              // rows interleaved in a block
constexpr int VECTORS = ROWS / W;     // float vectors that hold one number per row

inline int32_t load4(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

template <int BITS>
constexpr int group_bytes(int group) {
  return ROWS * group * BITS / 8;
}

// out[t][v] = float(sum over the group of weight * activation), for rows v*W.. of the block and activation row t.
template <int BITS, int GROUP, int T>
inline void dot_group(const uint8_t* w, const int8_t* a, size_t stride, const int32_t* sums, size_t sums_stride,
                      vf out[T][VECTORS]);

#if defined(IC_AVX512)

template <int BITS, int GROUP, int T>
inline void dot_group(const uint8_t* w, const int8_t* a, size_t stride, const int32_t* sums, size_t sums_stride,
                      vf out[T][VECTORS]) {
  // Two chains hide the latency of the product where there are few rows of activations.
  __m512i even[T], odd[T];
  for (int t = 0; t < T; ++t) {
    even[t] = _mm512_set1_epi32((BITS == 8 ? -128 : -8) * sums[t * sums_stride]);
    odd[t] = _mm512_setzero_si512();
  }
  for (int k = 0; k < GROUP; k += 8) {
    __m512i low, high;
    if constexpr (BITS == 8) {
      low = _mm512_loadu_si512(w + k * ROWS);
      high = _mm512_loadu_si512(w + (k + 4) * ROWS);
    } else {
      const __m512i both = _mm512_loadu_si512(w + k * ROWS / 2);
      low = _mm512_and_si512(both, _mm512_set1_epi8(15));
      high = _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
    }
    for (int t = 0; t < T; ++t) {
      even[t] = _mm512_dpbusd_epi32(even[t], low, _mm512_set1_epi32(load4(a + t * stride + k)));
      odd[t] = _mm512_dpbusd_epi32(odd[t], high, _mm512_set1_epi32(load4(a + t * stride + k + 4)));
    }
  }
  for (int t = 0; t < T; ++t) out[t][0] = _mm512_cvtepi32_ps(_mm512_add_epi32(even[t], odd[t]));
}

#elif defined(IC_AVX2)

template <int BITS, int GROUP, int T>
inline void dot_group(const uint8_t* w, const int8_t* a, size_t stride, const int32_t* sums, size_t sums_stride,
                      vf out[T][VECTORS]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[T][VECTORS];
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < VECTORS; ++v)
      total[t][v] = BITS == 8 ? _mm256_setzero_si256() : _mm256_set1_epi32(-8 * sums[t * sums_stride]);
  const auto stored = [&](size_t offset) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + offset)); };
  if constexpr (BITS == 8) {
    for (int k = 0; k < GROUP; k += 4) {
      for (int v = 0; v < VECTORS; ++v) {
        const __m256i weight = _mm256_xor_si256(stored(k * ROWS + v * 32), _mm256_set1_epi8(-128));
        const __m256i size = _mm256_abs_epi8(weight);
        for (int t = 0; t < T; ++t) {
          // |w| * (sign(w) a): weights and activations lie within 127, so pairs fit 16 bits.
          const __m256i signed_a = _mm256_sign_epi8(_mm256_set1_epi32(load4(a + t * stride + k)), weight);
          total[t][v] = _mm256_add_epi32(total[t][v], _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_a), ones));
        }
      }
    }
  } else {
    // Eight products of a pair stay within 8 * 2 * 15 * 127 = 30480: 32 inputs are summed in 16 bits.
    for (int k = 0; k < GROUP; k += 32) {
      __m256i sum[T][VECTORS];
      for (int t = 0; t < T; ++t)
        for (int v = 0; v < VECTORS; ++v) sum[t][v] = _mm256_setzero_si256();
      for (int j = k; j < k + 32; j += 8) {
        __m256i low[VECTORS], high[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
          const __m256i both = stored(j * ROWS / 2 + v * 32);
          low[v] = _mm256_and_si256(both, _mm256_set1_epi8(15));
          high[v] = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
        }
        for (int t = 0; t < T; ++t) {
          const __m256i first = _mm256_set1_epi32(load4(a + t * stride + j));
          const __m256i second = _mm256_set1_epi32(load4(a + t * stride + j + 4));
          for (int v = 0; v < VECTORS; ++v) {
            sum[t][v] = _mm256_add_epi16(sum[t][v], _mm256_maddubs_epi16(low[v], first));
            sum[t][v] = _mm256_add_epi16(sum[t][v], _mm256_maddubs_epi16(high[v], second));
          }
        }
      }
      for (int t = 0; t < T; ++t)
        for (int v = 0; v < VECTORS; ++v) total[t][v] = _mm256_add_epi32(total[t][v], _mm256_madd_epi16(sum[t][v], ones));
    }
  }
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < VECTORS; ++v) out[t][v] = _mm256_cvtepi32_ps(total[t][v]);
}

#else

template <int BITS, int GROUP, int T>
inline void dot_group(const uint8_t* w, const int8_t* a, size_t stride, const int32_t*, size_t,
                      vf out[T][VECTORS]) {
  for (int t = 0; t < T; ++t) {
    int32_t total[ROWS] = {};
    const int8_t* row = a + t * stride;
    for (int k = 0; k < GROUP; k += 8) {
      for (int r = 0; r < ROWS; ++r) {
        int32_t sum = 0;
        for (int c = 0; c < 4; ++c) {
          if constexpr (BITS == 8) {
            sum += (int32_t(w[k * ROWS + r * 4 + c]) - 128) * row[k + c];
            sum += (int32_t(w[(k + 4) * ROWS + r * 4 + c]) - 128) * row[k + 4 + c];
          } else {
            const uint8_t both = w[k * ROWS / 2 + r * 4 + c];
            sum += (int32_t(both & 15) - 8) * row[k + c] + (int32_t(both >> 4) - 8) * row[k + 4 + c];
          }
        }
        total[r] += sum;
      }
    }
    for (int v = 0; v < VECTORS; ++v) {
      float lanes[W];
      for (int i = 0; i < W; ++i) lanes[i] = float(total[v * W + i]);
      out[t][v] = load(lanes);
    }
  }
}

#endif

}  // namespace ic
