// Products of open tiles and rows of factors, summed exactly, and times a step added to floats:
// out[row][lane] += step[row] * sum over indices of number * factor.
//
// A step of a sum takes 64 bytes of numbers (16 lanes x 4 bytes) and 4 bytes of a row: four indices in bytes, or two in 16 bits.
#pragma once

#include "rounding.hpp"
#include "tile.hpp"

namespace ic {

// Points by factors of queries, points by weights, and wide integers by either, which are numbers of 16 bits.
enum class Product { keys, values, wide };

constexpr int LANE_VECTORS = TILE_LANES / W;  // float vectors that hold one number per lane
constexpr int STEP_NUMBERS = 64, STEP_FACTORS = 4;
constexpr int steps_of(Product product, int tiles) { return (product == Product::wide ? 8 : 4) * tiles; }

// Where the sums of neighbouring steps of a row of a query's factors start, and how many points are lifted: an instruction set may
// multiply only unsigned bytes by signed ones. Weights are unsigned themselves.
#if defined(IC_AVX512)
inline int lift_of(const Segment& segment) { return segment.most(); }
inline int32_t start_of(const Segment& segment, const int8_t* factors, int steps) {
  int32_t sum = 0;
  for (int i = 0; i < STEP_FACTORS * steps; ++i) sum += factors[i];
  return -segment.most() * sum;
}
#elif defined(IC_AVX2)
// Sums of pairs are in 16 bits: lifted points overflow them, but not together with what is taken back.
inline int lift_of(const Segment& segment) { return segment.most(); }
inline int32_t start_of(const Segment& segment, const int8_t* factors, int steps) {
  int sums[2] = {};
  for (int i = 0; i < STEP_FACTORS * steps; ++i) sums[i / 2 % 2] += factors[i];
  const int16_t pairs[2] = {int16_t(-segment.most() * sums[0]), int16_t(-segment.most() * sums[1])};
  int32_t start;
  std::memcpy(&start, pairs, sizeof start);
  return start;
}
#else
inline int lift_of(const Segment&) { return 0; }
inline int32_t start_of(const Segment&, const int8_t*, int) { return 0; }
#endif

// Steps whose sums of pairs fit 16 bits, whole tiles of points; the other products are summed in 32 bits.
inline int steps_together(Product product, const Segment& segment) {
  if (product == Product::wide) return INT16_MAX;
  const int pair = 2 * segment.most() * (product == Product::keys ? MOST_FACTOR : MOST_WEIGHT);
  return INT16_MAX / pair / steps_of(product, 1) * steps_of(product, 1);
}

inline int32_t load_quad(const uint8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, STEP_FACTORS);
  return quad;
}

// Memory to call for meanwhile: `step` bytes further on with every other step.
struct Ahead {
  const uint8_t* place;
  size_t step;

  void call() {
    __builtin_prefetch(place);
    place += step;
  }
};

// Open tiles and what they are multiplied with.
struct Operands {
  const uint8_t* numbers;  // [groups of 16 lanes][steps]
  int groups, steps, together;
  const uint8_t* rows;    // factors
  size_t stride;          // bytes from one row to the next
  const int32_t* starts;  // of each row's sums, for all `together`
  size_t starts_stride;
  const float* step;  // of each row
  size_t out_stride;
};

// The sums of N rows over some steps, an even number.
#if defined(IC_AVX512)

template <Product PRODUCT, int N>
inline void add_steps(const uint8_t* numbers, int steps, const uint8_t* rows, size_t stride, const int32_t* starts, Ahead& ahead,
                      vi sums[N][LANE_VECTORS]) {
  __m512i sum[N];
  for (int r = 0; r < N; ++r) sum[r] = _mm512_set1_epi32(starts[r]);
  for (int i = 0; i < steps; ++i, numbers += STEP_NUMBERS, rows += STEP_FACTORS) {
    if (i % 2 == 0) ahead.call();
    const __m512i number = _mm512_loadu_si512(numbers);
    for (int r = 0; r < N; ++r) {
      const __m512i factor = _mm512_set1_epi32(load_quad(rows + r * stride));
      if constexpr (PRODUCT == Product::keys) sum[r] = _mm512_dpbusd_epi32(sum[r], number, factor);
      if constexpr (PRODUCT == Product::values) sum[r] = _mm512_dpbusd_epi32(sum[r], factor, number);
      if constexpr (PRODUCT == Product::wide) sum[r] = _mm512_add_epi32(sum[r], _mm512_madd_epi16(number, factor));
    }
  }
  for (int r = 0; r < N; ++r) sums[r][0] = sum[r];
}

#elif defined(IC_AVX2)

// Sums of pairs of N rows, lanes 0..7 and 8..15 apart: of bytes in 16 bits. One by one rather than in an array, and added in this
// very order: there are just enough registers.
template <Product PRODUCT, int N>
struct PairSums {
  __m256i low, high;
  PairSums<PRODUCT, N - 1> others;

  __attribute__((always_inline)) void start(const int32_t* starts) {
    low = high = _mm256_set1_epi32(*starts);
    others.start(starts + 1);
  }
  __attribute__((always_inline)) void add(__m256i a, __m256i b, const uint8_t* row, size_t stride) {
    const __m256i factor = _mm256_set1_epi32(load_quad(row));
    if constexpr (PRODUCT == Product::wide) {
      low = _mm256_add_epi32(low, _mm256_madd_epi16(a, factor));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(b, factor));
    } else {
      constexpr bool KEYS = PRODUCT == Product::keys;
      low = _mm256_add_epi16(low, KEYS ? _mm256_maddubs_epi16(a, factor) : _mm256_maddubs_epi16(factor, a));
      high = _mm256_add_epi16(high, KEYS ? _mm256_maddubs_epi16(b, factor) : _mm256_maddubs_epi16(factor, b));
    }
    asm("" : "+x"(low), "+x"(high));  // a compiler that adds in another order runs out of registers
    others.add(a, b, row + stride, stride);
  }
  __attribute__((always_inline)) void finish(vi (*sums)[LANE_VECTORS]) const {
    const auto widened = [](__m256i pairs) {
      return PRODUCT == Product::wide ? pairs : _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    };
    (*sums)[0] = widened(low), (*sums)[1] = widened(high);
    others.finish(sums + 1);
  }
};
template <Product PRODUCT>
struct PairSums<PRODUCT, 0> {
  __attribute__((always_inline)) void start(const int32_t*) {}
  __attribute__((always_inline)) void add(__m256i, __m256i, const uint8_t*, size_t) {}
  __attribute__((always_inline)) void finish(vi (*)[LANE_VECTORS]) const {}
};

template <Product PRODUCT, int N>
__attribute__((always_inline)) inline void add_steps(const uint8_t* numbers, int steps, const uint8_t* rows, size_t stride,
                                                     const int32_t* starts, Ahead& ahead, vi sums[N][LANE_VECTORS]) {
  PairSums<PRODUCT, N> pairs;
  pairs.start(starts);
  for (int i = 0; i < steps; i += 2, numbers += 2 * STEP_NUMBERS, rows += 2 * STEP_FACTORS) {
    ahead.call();
    pairs.add(load_vector(numbers), load_vector(numbers + 32), rows, stride);
    pairs.add(load_vector(numbers + 64), load_vector(numbers + 96), rows + STEP_FACTORS, stride);
  }
  pairs.finish(sums);
}

#else

#if defined(__aarch64__)
using Lanes = int32x4_t;
// sum[lane] += the products of 4 lanes.
template <Product PRODUCT>
inline Lanes add_products(Lanes sum, const uint8_t* numbers, const uint8_t* factors) {
  const int8x16_t number = vreinterpretq_s8_u8(vld1q_u8(numbers)), factor = vreinterpretq_s8_s32(vdupq_n_s32(load_quad(factors)));
  if constexpr (PRODUCT == Product::wide) {
    const int16x8_t a = vreinterpretq_s16_s8(number), b = vreinterpretq_s16_s8(factor);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_s16(vget_high_s16(a), vget_high_s16(b))));
  } else if constexpr (PRODUCT == Product::values) {
    const uint8x16_t weight = vreinterpretq_u8_s8(factor);
    const int16x8_t low = vmulq_s16(vmovl_s8(vget_low_s8(number)), vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(weight))));
    const int16x8_t high = vmulq_s16(vmovl_s8(vget_high_s8(number)), vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(weight))));
    return vpadalq_s16(sum, vpaddq_s16(low, high));
  } else {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, number, factor);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(number), vget_low_s8(factor));
    const int16x8_t high = vmull_s8(vget_high_s8(number), vget_high_s8(factor));
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
  }
}
#else
using Lanes = vi;
template <Product PRODUCT>
inline Lanes add_products(Lanes sum, const uint8_t* numbers, const uint8_t* factors) {
  for (int i = 0; i < 4; ++i, numbers += 4) {
    if constexpr (PRODUCT == Product::wide) {
      int16_t number[2], factor[2];
      std::memcpy(number, numbers, sizeof number);
      std::memcpy(factor, factors, sizeof factor);
      sum[i] += number[0] * factor[0] + number[1] * factor[1];
    } else {
      for (int j = 0; j < 4; ++j)
        sum[i] += int8_t(numbers[j]) * (PRODUCT == Product::keys ? int(int8_t(factors[j])) : int(factors[j]));
    }
  }
  return sum;
}
#endif

template <Product PRODUCT, int N>
inline void add_steps(const uint8_t* numbers, int steps, const uint8_t* rows, size_t stride, const int32_t* starts, Ahead& ahead,
                      vi sums[N][LANE_VECTORS]) {
  for (int i = 0; i < steps; i += 2) ahead.call();
  for (int v = 0; v < LANE_VECTORS; ++v) {
    Lanes sum[N];
    for (int r = 0; r < N; ++r) sum[r] = vi{starts[r], starts[r], starts[r], starts[r]};
    for (int i = 0; i < steps; ++i)
      for (int r = 0; r < N; ++r)
        sum[r] = add_products<PRODUCT>(sum[r], numbers + i * STEP_NUMBERS + v * 16, rows + r * stride + i * STEP_FACTORS);
    for (int r = 0; r < N; ++r) sums[r][v] = sum[r];
  }
}

#endif

// N rows from `row` on.
template <Product PRODUCT, int N>
__attribute__((noinline)) void multiply(const Operands& x, int row, float* out, Ahead& ahead) {
  const uint8_t *numbers = x.numbers, *rows = x.rows + row * x.stride;
  const size_t stride = x.stride, out_stride = x.out_stride;
  vf step[N];
  for (int r = 0; r < N; ++r) step[r] = set1(x.step[row + r]);
  Ahead called = ahead;
  out += row * out_stride;
  for (int group = 0; group < x.groups; ++group, out += TILE_LANES) {
    const int32_t* starts = x.starts + row;
    for (int done = 0, now; done < x.steps; done += now, numbers += now * STEP_NUMBERS, starts += x.starts_stride) {
      now = x.steps - done < x.together ? x.steps - done : x.together;
      vi sums[N][LANE_VECTORS];
      add_steps<PRODUCT, N>(numbers, now, rows + done * STEP_FACTORS, stride, starts, called, sums);
      for (int r = 0; r < N; ++r)
        for (int v = 0; v < LANE_VECTORS; ++v) {
          float* to = out + r * out_stride + v * W;
          store(to, fma(to_float(sums[r][v]), step[r], load(to)));
        }
    }
  }
  ahead = called;
}

// All rows, four at a time; memory is called for along with the first ones.
template <Product PRODUCT>
inline void multiply_rows(const Operands& x, int rows, float* out, Ahead& ahead) {
  int row = 0;
  Ahead none{ahead.place, 0};
  const auto own = [&]() -> Ahead& { return row == 0 ? ahead : none; };
  for (; row + 4 <= rows; row += 4) multiply<PRODUCT, 4>(x, row, out, own());
  for (; row + 2 <= rows; row += 2) multiply<PRODUCT, 2>(x, row, out, own());
  for (; row < rows; ++row) multiply<PRODUCT, 1>(x, row, out, own());
}

}  // namespace ic
