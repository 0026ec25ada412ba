// AVX-512 on a processor without it, by SIMD Everywhere (Debian: libsimde-dev): included before the engine's source.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// What its version 0.7.4 lacks or rounds wrongly, number by number.
static inline __m512i emulated_cvtepu16_epi32(__m256i x) {
  int32_t wide[16];
  uint16_t narrow[16];
  __builtin_memcpy(narrow, &x, 32);
  for (int i = 0; i < 16; ++i) wide[i] = narrow[i];
  return _mm512_loadu_si512(wide);
}
static inline __m512i emulated_cvtps_epi32(__m512 x) {
  float from[16];
  int32_t to[16];
  _mm512_storeu_ps(from, x);
  for (int i = 0; i < 16; ++i) to[i] = int32_t(__builtin_nearbyintf(from[i]));
  return _mm512_loadu_si512(to);
}
static inline __m512 emulated_cvtepi32_ps(__m512i x) {
  int32_t from[16];
  float to[16];
  __builtin_memcpy(from, &x, 64);
  for (int i = 0; i < 16; ++i) to[i] = float(from[i]);
  return _mm512_loadu_ps(to);
}
static inline __m512 emulated_cvtph_ps(__m256i x) {
  __m256 parts[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
  return _mm512_loadu_ps(parts);
}
static inline __m128i emulated_cvtepi32_epi8(__m512i x) {
  int32_t wide[16];
  int8_t narrow[16];
  __builtin_memcpy(wide, &x, 64);
  for (int i = 0; i < 16; ++i) narrow[i] = int8_t(wide[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(narrow));
}
static inline __m512i emulated_madd_epi16(__m512i x, __m512i y) {
  __m256i a[2], b[2];
  __builtin_memcpy(a, &x, 64);
  __builtin_memcpy(b, &y, 64);
  for (int i = 0; i < 2; ++i) a[i] = _mm256_madd_epi16(a[i], b[i]);
  return _mm512_loadu_si512(a);
}
// To the next lower whole number, the one rounding that is used.
static inline __m512 emulated_roundscale_ps(__m512 x) {
  float parts[16];
  _mm512_storeu_ps(parts, x);
  for (float& part : parts) part = __builtin_floorf(part);
  return _mm512_loadu_ps(parts);
}
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 emulated_madd_epi16
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(x, mode) emulated_roundscale_ps(x)
