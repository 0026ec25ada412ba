// Vectors of floats: the few primitives that every kernel is written in, once per instruction set.
//
// above: 1 where a > b, else 0. store_bytes: numbers rounded to the nearest, ties to even, as bytes. store_exchanged: as 16 bits
// each, the middle two of four exchanged.
// times_exp2: x times 2 to the power that the low bits of n are. swapped: lane i takes what lane i ^ STRIDE has.
// One of IC_AVX512 (F, BW, DQ, VL, VNNI), IC_AVX2 (with FMA and F16C) or neither (portable: compiler vectors, any
// processor) is defined by the build.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(IC_AVX512) || defined(IC_AVX2)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "narrow.hpp"

namespace ic {

// The bits of a float8, moved to their places in an fp16, are the number over this; load_fp8 gives two vectors of those.
constexpr float FP8_SCALE = 256;

#if defined(IC_AVX512)

using vf = __m512;
using vi = __m512i;
constexpr int W = 16;
inline vf zero() { return _mm512_setzero_ps(); }
inline vf set1(float x) { return _mm512_set1_ps(x); }
inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf floor(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf above(vf a, vf b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), set1(1.0f)); }
inline vf load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline vf to_float(vi x) { return _mm512_cvtepi32_ps(x); }
inline float first(vf v) { return _mm_cvtss_f32(_mm512_castps512_ps128(v)); }
inline vf load_fp16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void load_fp8(const uint8_t* p, vf& a, vf& b) {
  const auto half = [](const uint8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xbfff))));
  };
  a = half(p), b = half(p + W);
}
inline void store_bytes(void* p, vf v) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline void store_exchanged(void* p, vf v) {
  const __m512i wide = _mm512_cvtps_epi32(v);
  const __m256i halves = _mm256_packs_epi32(_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64(wide, 1));
  const __m256i narrow = _mm256_permute4x64_epi64(halves, 0xd8);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(narrow, 0xd8), 0xd8));
}
template <int STRIDE>
inline vf swapped(vf v) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_xor_si512(lanes, _mm512_set1_epi32(STRIDE)), v);
}
inline vf times_exp2(vf x, vf n) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

#elif defined(IC_AVX2)

using vf = __m256;
using vi = __m256i;
constexpr int W = 8;
inline vf zero() { return _mm256_setzero_ps(); }
inline vf set1(float x) { return _mm256_set1_ps(x); }
inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf floor(vf x) { return _mm256_floor_ps(x); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf above(vf a, vf b) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), set1(1.0f)); }
inline vf load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline vf to_float(vi x) { return _mm256_cvtepi32_ps(x); }
inline float first(vf v) { return _mm256_cvtss_f32(v); }
inline vf load_fp16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void load_fp8(const uint8_t* p, vf& a, vf& b) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xbfff)));
  a = _mm256_cvtph_ps(_mm256_castsi256_si128(half)), b = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}
inline void store_bytes(void* p, vf v) {
  const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_cvtps_epi32(v), first);
  _mm_storel_epi64(static_cast<__m128i*>(p), _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
inline void store_exchanged(void* p, vf v) {
  const __m256i wide = _mm256_cvtps_epi32(v);
  const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_shufflehi_epi16(_mm_shufflelo_epi16(narrow, 0xd8), 0xd8));
}
template <int STRIDE>
inline vf swapped(vf v) {
  if constexpr (STRIDE == 4) return _mm256_permute2f128_ps(v, v, 1);
  return _mm256_permute_ps(v, STRIDE == 1 ? 0xb1 : 0x4e);
}
inline vf times_exp2(vf x, vf n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}

#else

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
constexpr int W = 4;
inline vf set1(float x) { return vf{x, x, x, x}; }
inline vf zero() { return set1(0.0f); }
inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline vf add(vf a, vf b) { return a + b; }
inline vf sub(vf a, vf b) { return a - b; }
inline vf mul(vf a, vf b) { return a * b; }
inline vf vmax(vf a, vf b) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = a[i] > b[i] ? a[i] : b[i];
  return v;
}
inline vf vmin(vf a, vf b) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = a[i] < b[i] ? a[i] : b[i];
  return v;
}
#if defined(__aarch64__)
inline vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
#else
inline vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
inline vf load_bf16(const uint16_t* p) {
  const vi wide = {int32_t(uint32_t(p[0]) << 16), int32_t(uint32_t(p[1]) << 16), int32_t(uint32_t(p[2]) << 16),
                   int32_t(uint32_t(p[3]) << 16)};
  vf v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
inline vf div(vf a, vf b) { return a / b; }
inline vf floor(vf x) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = std::floor(x[i]);
  return v;
}
inline vf above(vf a, vf b) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = a[i] > b[i] ? 1.0f : 0.0f;
  return v;
}
inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }
inline float first(vf v) { return v[0]; }
inline vf load_fp16(const uint16_t* p) { return vf{from_fp16(p[0]), from_fp16(p[1]), from_fp16(p[2]), from_fp16(p[3])}; }
inline void load_fp8(const uint8_t* p, vf& a, vf& b) {
  a = vf{from_fp8(p[0]), from_fp8(p[1]), from_fp8(p[2]), from_fp8(p[3])} * (1 / FP8_SCALE);
  b = vf{from_fp8(p[4]), from_fp8(p[5]), from_fp8(p[6]), from_fp8(p[7])} * (1 / FP8_SCALE);
}
inline void store_bytes(void* p, vf v) {
  for (int i = 0; i < W; ++i) static_cast<uint8_t*>(p)[i] = uint8_t(int32_t(std::nearbyint(v[i])));
}
inline void store_exchanged(void* p, vf v) {
  const int16_t narrow[W] = {int16_t(std::nearbyint(v[0])), int16_t(std::nearbyint(v[2])), int16_t(std::nearbyint(v[1])),
                             int16_t(std::nearbyint(v[3]))};
  std::memcpy(p, narrow, sizeof narrow);
}
template <int STRIDE>
inline vf swapped(vf v) {
  if constexpr (STRIDE == 1) return vf{v[1], v[0], v[3], v[2]};
  return vf{v[2], v[3], v[0], v[1]};
}
inline vf times_exp2(vf x, vf n) {
  vi a, b;
  std::memcpy(&a, &x, sizeof a);
  std::memcpy(&b, &n, sizeof b);
  a += b << 23;
  std::memcpy(&x, &a, sizeof x);
  return x;
}

#endif

// Sum over the lanes, in lane order, and maximum.
inline float hsum(vf v) {
  alignas(64) float lanes[W];
  store(lanes, v);
  float sum = lanes[0];
  for (int i = 1; i < W; ++i) sum += lanes[i];
  return sum;
}
template <int STRIDE = 1>
inline float hmax(vf v) {
  if constexpr (STRIDE < W) return hmax<2 * STRIDE>(vmax(v, swapped<STRIDE>(v)));
  return first(v);
}

// e**x with x held to [-87, 88]: two-part reduction by ln 2, then a polynomial; relative error below 3e-7.
inline vf exp(vf x) {
  x = vmin(vmax(x, set1(-87.0f)), set1(88.0f));
  const vf whole = fma(x, set1(1.44269504f), set1(1.5f * (1 << 23)));  // rounded: its last bits are the number
  const vf n = sub(whole, set1(1.5f * (1 << 23)));
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return times_exp2(p, whole);
}

}  // namespace ic
