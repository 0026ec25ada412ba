// Integer products of stored weights with rows of int8 activations: exact in int32, group by group.
//
// A group of G inputs of 16 rows of weights is stored (codegen/repack.py writes it) as
//   int8: [G/4][16 rows][4 inputs], each weight plus 128 as an unsigned byte
//   int4: [G/8][16 rows][4 bytes], each weight plus 8; low nibbles are inputs 8j..8j+3, high nibbles 8j+4..8j+7
// and then 16 bf16 scales. Few rows of activations are multiplied with it as it lies there. For more than FEW it is opened once,
// into a panel in the first-level cache: [G/4][16 rows][4 inputs] of bytes, then 16 float scales.
//
// Rows of activations are interleaved by quads of inputs (quantize.hpp), N at a time, N at most TOKENS: [G/4][N][4].
#pragma once

#include "output.hpp"

namespace ic {

constexpr int QUAD = 4;  // inputs that lie together

template <int BITS>
constexpr int stored_bytes(int group) {
  return ROWS * group * BITS / 8 + 2 * ROWS;
}
constexpr int panel_bytes(int group) { return ROWS * group + 4 * ROWS; }

#if defined(IC_AVX512)

// Unsigned weights: what they are stored with is taken back by the sum of the activations, one per group.
constexpr int TOKENS = 12, FEW = 12;
constexpr int segment(int group) { return group; }

// -8 times the sum of a segment of activations.
template <int SEGMENT>
inline int32_t offset_of(const int8_t* values) {
  int32_t sum = 0;
  for (int i = 0; i < SEGMENT; ++i) sum += values[i];
  return -8 * sum;
}

template <int BITS>
inline __m512i start(int32_t offset) {
  return _mm512_set1_epi32(BITS == 8 ? offset * 16 : offset);
}

inline __m512i quad_of(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, QUAD);
  return _mm512_set1_epi32(quad);
}

template <int BITS>
inline void open_bytes(const uint8_t* stored, int count, uint8_t* panel) {
  if constexpr (BITS == 8) {
    std::memcpy(panel, stored, size_t(count));
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < count; i += 128, stored += 64, panel += 128) {
      const __m512i both = _mm512_loadu_si512(stored);
      _mm512_storeu_si512(panel, _mm512_and_si512(both, low));
      _mm512_storeu_si512(panel + 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
    }
  }
}

template <int BITS, int GROUP, int N>
inline void multiply_panel(const uint8_t* panel, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
  __m512i sums[N];
  for (int n = 0; n < N; ++n) sums[n] = start<BITS>(offsets[n]);
  for (int k = 0; k < GROUP; k += QUAD) {
    const __m512i weights = _mm512_loadu_si512(panel + k * ROWS);
    for (int n = 0; n < N; ++n) sums[n] = _mm512_dpbusd_epi32(sums[n], weights, quad_of(a + (k * N + n * QUAD)));
  }
  for (int n = 0; n < N; ++n) dots[n][0] = _mm512_cvtepi32_ps(sums[n]);
}

template <int BITS, int GROUP, int N>
inline void multiply_stored(const uint8_t* stored, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
  // Two chains hide the latency of the product where there are few rows of activations.
  __m512i even[N], odd[N];
  for (int n = 0; n < N; ++n) even[n] = start<BITS>(offsets[n]), odd[n] = _mm512_setzero_si512();
  for (int k = 0; k < GROUP; k += 2 * QUAD) {
    uint8_t open[2 * QUAD * ROWS];
    open_bytes<BITS>(stored + k * ROWS * BITS / 8, sizeof open, open);
    const __m512i first = _mm512_loadu_si512(open), second = _mm512_loadu_si512(open + sizeof open / 2);
    for (int n = 0; n < N; ++n) {
      even[n] = _mm512_dpbusd_epi32(even[n], first, quad_of(a + (k * N + n * QUAD)));
      odd[n] = _mm512_dpbusd_epi32(odd[n], second, quad_of(a + ((k + QUAD) * N + n * QUAD)));
    }
  }
  for (int n = 0; n < N; ++n) dots[n][0] = _mm512_cvtepi32_ps(_mm512_add_epi32(even[n], odd[n]));
}

#elif defined(IC_AVX2)

// A product of bytes gives sums of pairs in 16 bits. Of 4-bit weights, plus 8 and so unsigned, those of a whole segment are
// summed in 16 bits: they overflow, but not together with what the 8 adds, taken away: 32 * 8 * 127 < 2**15.
constexpr int TOKENS = 4, FEW = 16;
constexpr int segment(int group) { return group < 64 ? group : 64; }

// -8 times the sums of a segment of activations, of the first and of the second pairs of all quads, 16 bits each.
template <int SEGMENT>
inline int32_t offset_of(const int8_t* values) {
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < SEGMENT; i += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(8), bytes));
  }
  __m128i half = _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  half = _mm_add_epi16(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi16(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), half));
}

inline __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline __m256i quad_of(const void* p) {
  int32_t quad;
  std::memcpy(&quad, p, QUAD);
  return _mm256_set1_epi32(quad);
}

// 16 sums of pairs to 8 sums of quads.
inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Adds the products of a segment of weights, stored or open, with N rows of activations. Written out, for compilers take
// products and sums apart and run out of registers; of the orders tried on Zen 4 two products and then their two sums keep its
// units busiest, and a loop costs it 5 %. %[x] and %[y] are the weights of a quad, .Lw and .La the bytes that lie behind.
#define IC_ROW(AT, LOW, HIGH)                  \
  "vpbroadcastd .La+" AT "(%[a]), %[d]\n\t"    \
  "vpmaddubsw %[d], %[x], %[c]\n\t"            \
  "vpmaddubsw %[d], %[y], %[d]\n\t"            \
  "vpaddw %[c], %[" LOW "], %[" LOW "]\n\t"    \
  "vpaddw %[d], %[" HIGH "], %[" HIGH "]\n\t"
#define IC_OPEN(AT) "vmovdqu .Lw+" AT "(%[w]), %[x]\n\tvmovdqu .Lw+" AT "+32(%[w]), %[y]\n\t"
#define IC_MASKED "vpand %[p], %[m], %[x]\n\tvpand %[q], %[m], %[y]\n\t"
#define IC_LOW "vmovdqu .Lw(%[w]), %[p]\n\tvmovdqu .Lw+32(%[w]), %[q]\n\t" IC_MASKED
#define IC_HIGH "vpsrlw $4, %[p], %[p]\n\tvpsrlw $4, %[q], %[q]\n\t" IC_MASKED
#define IC_REPEAT(FIRST, SECOND, BYTES, MASK, ...)                                                                 \
  asm(".set .Lw, 0\n\t.set .La, 0\n\t.rept %c[n]\n\t" FIRST SECOND                                                 \
      ".set .Lw, .Lw+" BYTES "\n\t.set .La, .La+%c[step]\n\t.endr"                                               \
      : [x] "=&x"(x), [y] "=&x"(y), [c] "=&x"(c), [d] "=&x"(d), __VA_ARGS__                                        \
      : [w] "r"(w), [a] "r"(a), [n] "i"(SEGMENT / (2 * QUAD)), [step] "i"(2 * QUAD * N) MASK                       \
      : "memory")
#define IC_MASK , [m] "x"(mask)
#define IC_SEGMENT(FIRST, SECOND, ...)                                                                             \
  if constexpr (STORED)                                                                                            \
    IC_REPEAT(IC_LOW FIRST, IC_HIGH SECOND, "64", IC_MASK, [p] "=&x"(p), [q] "=&x"(q), __VA_ARGS__);               \
  else                                                                                                             \
    IC_REPEAT(IC_OPEN("0") FIRST, IC_OPEN("64") SECOND, "128", , __VA_ARGS__)

template <bool STORED, int SEGMENT, int N>
inline void add_segment(const uint8_t* w, const int8_t* a, __m256i (&sums)[N][2]) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i x, y, c, d, p, q;
  if constexpr (N == 4) {
    IC_SEGMENT(IC_ROW("0", "s0", "t0") IC_ROW("4", "s1", "t1") IC_ROW("8", "s2", "t2") IC_ROW("12", "s3", "t3"),
               IC_ROW("16", "s0", "t0") IC_ROW("20", "s1", "t1") IC_ROW("24", "s2", "t2") IC_ROW("28", "s3", "t3"),
               [s0] "+x"(sums[0][0]), [t0] "+x"(sums[0][1]), [s1] "+x"(sums[1][0]), [t1] "+x"(sums[1][1]),
               [s2] "+x"(sums[2][0]), [t2] "+x"(sums[2][1]), [s3] "+x"(sums[3][0]), [t3] "+x"(sums[3][1]));
  } else if constexpr (N == 3) {
    IC_SEGMENT(IC_ROW("0", "s0", "t0") IC_ROW("4", "s1", "t1") IC_ROW("8", "s2", "t2"),
               IC_ROW("12", "s0", "t0") IC_ROW("16", "s1", "t1") IC_ROW("20", "s2", "t2"),
               [s0] "+x"(sums[0][0]), [t0] "+x"(sums[0][1]), [s1] "+x"(sums[1][0]), [t1] "+x"(sums[1][1]),
               [s2] "+x"(sums[2][0]), [t2] "+x"(sums[2][1]));
  } else if constexpr (N == 2) {
    IC_SEGMENT(IC_ROW("0", "s0", "t0") IC_ROW("4", "s1", "t1"), IC_ROW("8", "s0", "t0") IC_ROW("12", "s1", "t1"),
               [s0] "+x"(sums[0][0]), [t0] "+x"(sums[0][1]), [s1] "+x"(sums[1][0]), [t1] "+x"(sums[1][1]));
  } else {
    static_assert(N == 1, "rows of a tile");
    IC_SEGMENT(IC_ROW("0", "s0", "t0"), IC_ROW("4", "s0", "t0"), [s0] "+x"(sums[0][0]), [t0] "+x"(sums[0][1]));
  }
}
#undef IC_ROW
#undef IC_OPEN
#undef IC_MASKED
#undef IC_LOW
#undef IC_HIGH
#undef IC_REPEAT
#undef IC_MASK
#undef IC_SEGMENT

// |w| * (sign(w) a): both lie within 127, so pairs fit 16 bits.
inline __m256i signed_product(__m256i weights, __m256i size, __m256i quad) {
  return widen(_mm256_maddubs_epi16(size, _mm256_sign_epi8(quad, weights)));
}

template <int BITS>
inline void open_bytes(const uint8_t* stored, int count, uint8_t* panel) {
  auto* out = reinterpret_cast<__m256i*>(panel);
  if constexpr (BITS == 8) {
    const __m256i sign = _mm256_set1_epi8(-128);
    for (int i = 0; i < count; i += 32) _mm256_storeu_si256(out++, _mm256_xor_si256(load_bytes(stored + i), sign));
  } else {
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < count; i += 128, stored += 64, out += 4) {
      for (int v = 0; v < VECTORS; ++v) {
        const __m256i both = load_bytes(stored + 32 * v);
        _mm256_storeu_si256(out + v, _mm256_and_si256(both, low));
        _mm256_storeu_si256(out + VECTORS + v, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
      }
    }
  }
}

// The sums of all segments of a group of 4-bit weights; add(first, sums) adds the products of the segment from input `first` on.
template <int GROUP, int N, class Add>
inline void over_segments(const int32_t* offsets, vf dots[N][VECTORS], Add&& add) {
  constexpr int SEGMENT = segment(GROUP);
  __m256i total[N][VECTORS];
  for (int first = 0; first < GROUP; first += SEGMENT, offsets += N) {
    __m256i sums[N][VECTORS];
    for (int n = 0; n < N; ++n) sums[n][0] = sums[n][1] = quad_of(offsets + n);
    add(first, sums);
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v)
        total[n][v] = first == 0 ? widen(sums[n][v]) : _mm256_add_epi32(total[n][v], widen(sums[n][v]));
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) dots[n][v] = _mm256_cvtepi32_ps(total[n][v]);
}

// The same of 8-bit weights: weights(k, v) are the signed weights of vector v's rows and the quad from input k on.
template <int GROUP, int N, class Weights>
inline void over_quads(const int8_t* a, vf dots[N][VECTORS], Weights&& weights) {
  __m256i total[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) total[n][v] = _mm256_setzero_si256();
  for (int k = 0; k < GROUP; k += QUAD) {
    for (int v = 0; v < VECTORS; ++v) {
      const __m256i weight = weights(k, v), size = _mm256_abs_epi8(weight);
      for (int n = 0; n < N; ++n)
        total[n][v] = _mm256_add_epi32(total[n][v], signed_product(weight, size, quad_of(a + k * N + n * QUAD)));
    }
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) dots[n][v] = _mm256_cvtepi32_ps(total[n][v]);
}

template <int BITS, int GROUP, int N>
inline void multiply_panel(const uint8_t* panel, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
  if constexpr (BITS == 8) {
    over_quads<GROUP, N>(a, dots, [&](int k, int v) { return load_bytes(panel + k * ROWS + 32 * v); });
  } else {
    over_segments<GROUP, N>(offsets, dots, [&](int first, __m256i (&sums)[N][VECTORS]) {
      add_segment<false, segment(GROUP), N>(panel + first * ROWS, a + first * N, sums);
    });
  }
}

template <int BITS, int GROUP, int N>
inline void multiply_stored(const uint8_t* stored, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
  if constexpr (BITS == 8) {
    over_quads<GROUP, N>(a, dots, [&](int k, int v) {
      return _mm256_xor_si256(load_bytes(stored + k * ROWS + 32 * v), _mm256_set1_epi8(-128));
    });
  } else {
    over_segments<GROUP, N>(offsets, dots, [&](int first, __m256i (&sums)[N][VECTORS]) {
      add_segment<true, segment(GROUP), N>(stored + first * ROWS / 2, a + first * N, sums);
    });
  }
}

#else

// Signed weights, 4 rows to a vector.
constexpr int TOKENS = 4, FEW = 4;
constexpr int segment(int group) { return group; }

template <int SEGMENT>
inline int32_t offset_of(const int8_t*) {
  return 0;
}

template <int BITS>
inline void open_bytes(const uint8_t* stored, int count, uint8_t* panel) {
  if constexpr (BITS == 8) {
    for (int i = 0; i < count; ++i) panel[i] = uint8_t(stored[i] - 128);
  } else {
    for (int i = 0; i < count; i += 2 * QUAD * ROWS, stored += QUAD * ROWS, panel += 2 * QUAD * ROWS)
      for (int j = 0; j < QUAD * ROWS; ++j) {
        panel[j] = uint8_t((stored[j] & 15) - 8);
        panel[QUAD * ROWS + j] = uint8_t((stored[j] >> 4) - 8);
      }
  }
}

#if defined(__aarch64__)

using QuadSums = int32x4_t;
inline QuadSums no_sums() { return vdupq_n_s32(0); }
inline vf to_floats(QuadSums sums) { return vcvtq_f32_s32(sums); }

// Four rows' products with one quad.
inline QuadSums add_products(QuadSums sums, const uint8_t* weights, const int8_t* quad) {
  int32_t factors;
  std::memcpy(&factors, quad, QUAD);
  const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(weights)), a = vreinterpretq_s8_s32(vdupq_n_s32(factors));
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, w, a);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_s8(vget_high_s8(w), vget_high_s8(a));
  return vpadalq_s16(sums, vpaddq_s16(low, high));
#endif
}

#else

using QuadSums = vi;
inline QuadSums no_sums() { return QuadSums{0, 0, 0, 0}; }
inline vf to_floats(QuadSums sums) { return __builtin_convertvector(sums, vf); }

inline QuadSums add_products(QuadSums sums, const uint8_t* weights, const int8_t* quad) {
  for (int r = 0; r < W; ++r)
    for (int i = 0; i < QUAD; ++i) sums[r] += int32_t(int8_t(weights[r * QUAD + i])) * quad[i];
  return sums;
}

#endif

template <int BITS, int GROUP, int N>
inline void multiply_panel(const uint8_t* panel, const int8_t* a, const int32_t*, vf dots[N][VECTORS]) {
  QuadSums sums[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) sums[n][v] = no_sums();
  for (int k = 0; k < GROUP; k += QUAD)
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v)
        sums[n][v] = add_products(sums[n][v], panel + k * ROWS + v * W * QUAD, a + k * N + n * QUAD);
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) dots[n][v] = to_floats(sums[n][v]);
}

template <int BITS, int GROUP, int N>
inline void multiply_stored(const uint8_t* stored, const int8_t* a, const int32_t* offsets, vf dots[N][VECTORS]) {
  uint8_t panel[ROWS * GROUP];
  open_bytes<BITS>(stored, sizeof panel, panel);
  multiply_panel<BITS, GROUP, N>(panel, a, offsets, dots);
}

#endif

// The scales of one group, opened.
template <int BITS, int GROUP>
inline void open_scales(const uint8_t* stored, uint8_t* panel) {
  const auto* scales = reinterpret_cast<const uint16_t*>(stored + ROWS * GROUP * BITS / 8);
  for (int v = 0; v < VECTORS; ++v) store(reinterpret_cast<float*>(panel + ROWS * GROUP) + v * W, load_bf16(scales + v * W));
}

// Opens one group.
template <int BITS, int GROUP>
inline void open_group(const uint8_t* stored, uint8_t* panel) {
  open_bytes<BITS>(stored, ROWS * GROUP, panel);
  open_scales<BITS, GROUP>(stored, panel);
}

}  // namespace ic
