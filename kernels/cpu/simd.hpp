// Vectors of floats: the few primitives that every kernel is written in, once per instruction set.
//
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

namespace ic {

#if defined(IC_AVX512)

using vf = __m512;
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
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
// 2**n for integral n in [-126, 127].
inline vf exp2i(vf n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline vf round_even(vf x) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(x)); }

#elif defined(IC_AVX2)

using vf = __m256;
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
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline vf exp2i(vf n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline vf round_even(vf x) { return _mm256_cvtepi32_ps(_mm256_cvtps_epi32(x)); }

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
inline vf round_even(vf x) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = std::nearbyint(x[i]);
  return v;
}
inline vf exp2i(vf n) {
  const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  vf v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

#endif

// Sum and maximum over the lanes, in lane order.
inline float hsum(vf v) {
  alignas(64) float lanes[W];
  store(lanes, v);
  float sum = lanes[0];
  for (int i = 1; i < W; ++i) sum += lanes[i];
  return sum;
}
inline float hmax(vf v) {
  alignas(64) float lanes[W];
  store(lanes, v);
  float most = lanes[0];
  for (int i = 1; i < W; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

// e**x with x held to [-87, 88]: two-part reduction by ln 2, then a polynomial; relative error below 3e-7.
inline vf exp(vf x) {
  x = vmin(vmax(x, set1(-87.0f)), set1(88.0f));
  const vf n = round_even(mul(x, set1(1.44269504f)));
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return mul(p, exp2i(n));
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);  // stays a NaN
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

// fp16, round to nearest even, for the few scales of a page: no instruction set is assumed.
inline uint16_t to_fp16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {                                 // subnormal: adding 0.5 aligns the last bit
    float value;
    std::memcpy(&value, &magnitude, 4);
    value += 0.5f;
    uint32_t aligned;
    std::memcpy(&aligned, &value, 4);
    return uint16_t(sign | (aligned - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
inline float from_fp16(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16;
  const uint32_t exponent = x >> 10 & 31;
  uint32_t bits = exponent == 31 ? 0x7f800000 | uint32_t(x & 0x3ff) << 13 : (uint32_t(x & 0x7fff) << 13) + 0x38000000;
  float v;
  if (exponent == 0) {
    v = float(x & 0x3ff) * 5.9604644775390625e-8f;  // 2**-24
    std::memcpy(&bits, &v, 4);
  }
  bits |= sign;
  std::memcpy(&v, &bits, 4);
  return v;
}

}  // namespace ic
