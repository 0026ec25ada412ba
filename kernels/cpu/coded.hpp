// Scores and weighted sums of a page of codes: products of integers, segment by segment, and a step for each query.
#pragma once

#include <algorithm>

#include "product.hpp"
#include "transform.hpp"

namespace ic {

// Room for QUERIES queries with the codes of one page. A segment of the page is opened for all of them.
template <class C, int QUERIES>
class Coded {
 public:
  // Takes up `queries` queries of a layer: rounds their factors, `columns` [queries][D].
  void set_queries(const Plane& keys, const Plane& values, const float* columns, int queries) {
    queries_ = queries;
    if (keys.kind == Kind::codes) set_keys(keys, columns);
    if (values.kind == Kind::codes) set_values(values);
  }

  // scores[q][t] = query q times key t, for all keys of the page; times the keys' `scales` unless that is null. `ahead` bytes
  // further on lies the next page.
  void score(const uint8_t* codes, const float* scales, ptrdiff_t ahead, float* scores) {
    std::fill_n(scores, queries_ * PAGE, 0.0f);
    multiply(keys_, codes, ahead, scores);
    for (int q = 0; scales != nullptr && q < queries_; ++q)
      for (int t = 0; t < PAGE; t += W) store(scores + q * PAGE + t, mul(load(scores + q * PAGE + t), load(scales + t)));
  }

  // columns[q] += the sum of q's weights times the page's values; the weights are `softened` [queries][PAGE], times the values'
  // `scales` unless that is null.
  void gather(const uint8_t* codes, const float* scales, ptrdiff_t ahead, const float* softened, float* columns) {
    alignas(64) float scaled[QUERIES * PAGE];
    if (scales != nullptr) {
      for (int q = 0; q < queries_; ++q)
        for (int t = 0; t < PAGE; t += W) store(scaled + q * PAGE + t, mul(load(softened + q * PAGE + t), load(scales + t)));
      softened = scaled;
    }
    float largest[QUERIES];
    for (int q = 0; q < queries_; ++q) largest[q] = largest_of(softened + q * PAGE, PAGE);
    for (int q = 0; q < queries_ && values_.narrow; ++q)
      weight_steps_[q] = round_bytes(softened + q * PAGE, PAGE, largest[q], MOST_WEIGHT, weights_ + q * PAGE);
    for (int q = 0; q < queries_ && values_.wide; ++q)
      wide_steps_[q] = round_wide(softened + q * PAGE, PAGE, largest[q], wide_weights_ + 2 * q * PAGE);
    multiply(values_, codes, ahead, columns);
  }

 private:
  static constexpr int D = C::D, PAGE = C::PAGE, TILES = PAGE / TILE_LANES, GROUPS = D / TILE_LANES;
  static_assert(PAGE <= 256 && D <= 256, "sums of products of 16 bits fit 32");

  // What is multiplied of one segment; `out` counts from the page's scores, or columns.
  struct Part {
    Opener opener;
    Product product;
    Operands operands;
    size_t out;
  };
  struct Parts {
    Part of[GROUPS];
    int count;
    bool narrow, wide;  // whether there are such segments
    size_t ahead;       // bytes to call for with every other step

    void clear() { count = 0, narrow = wide = false; }
    void add(const Plane& plane, const Segment& segment, const Part& part) {
      of[count++] = part;
      (segment.wide() ? wide : narrow) = true;
      size_t steps = 0;
      for (int i = 0; i < count; ++i) steps += size_t(of[i].operands.groups * of[i].operands.steps);
      ahead = 2 * PAGE * plane.bytes / steps + 1;
    }
  };

  void set_keys(const Plane& plane, const float* columns) {
    uint8_t* rows = factors_;
    int32_t* starts = starts_;
    keys_.clear();
    for (int i = 0; i < plane.segment_count; ++i) {
      const Segment& segment = plane.segments[i];
      const int tiles = segment.columns / TILE_LANES;
      const Product product = segment.wide() ? Product::wide : Product::keys;
      const int steps = steps_of(product, tiles), together = steps_together(product, segment);
      const size_t stride = size_t(STEP_FACTORS * steps);
      for (int q = 0; q < queries_; ++q) {
        const float* own = columns + q * D + segment.first;
        uint8_t* row = rows + size_t(q) * stride;
        const float largest = largest_of(own, segment.columns);
        steps_[i][q] = segment.wide() ? round_wide(own, segment.columns, largest, row)
                                      : round_bytes(own, segment.columns, largest, MOST_FACTOR, row);
        for (int first = 0; first < steps && !segment.wide(); first += together)
          starts[first / together * QUERIES + q] =
              start_of(segment, reinterpret_cast<int8_t*>(row) + STEP_FACTORS * first, std::min(together, steps - first));
      }
      Operands x{numbers_, TILES, steps, together, rows, stride, segment.wide() ? zeros_ : starts,
                 segment.wide() ? 0 : size_t(QUERIES), steps_[i], PAGE};
      keys_.add(plane, segment, {Opener(segment, lift_of(segment), tiles * TILES), product, x, 0});
      rows += size_t(queries_) * stride;
      if (!segment.wide()) starts += (steps + together - 1) / together * QUERIES;
    }
  }

  void set_values(const Plane& plane) {
    values_.clear();
    for (int i = 0; i < plane.segment_count; ++i) {
      const Segment& segment = plane.segments[i];
      const int tiles = segment.columns / TILE_LANES;
      const Product product = segment.wide() ? Product::wide : Product::values;
      const int steps = steps_of(product, TILES);
      Operands x{numbers_, tiles, steps, steps_together(product, segment), segment.wide() ? wide_weights_ : weights_,
                 size_t(STEP_FACTORS * steps), zeros_, 0, segment.wide() ? wide_steps_ : weight_steps_, D};
      values_.add(plane, segment, {Opener(segment, 0, tiles * TILES), product, x, size_t(segment.first)});
    }
  }

  // Adds the products of a page's codes to `out`.
  void multiply(const Parts& parts, const uint8_t* codes, ptrdiff_t ahead, float* out) {
    Ahead called{codes + ahead, parts.ahead};
    for (int i = 0; i < parts.count; ++i) {
      const Part& part = parts.of[i];
      codes = part.opener.open(codes, numbers_);
      switch (part.product) {
        case Product::keys: multiply_rows<Product::keys>(part.operands, queries_, out + part.out, called); break;
        case Product::values: multiply_rows<Product::values>(part.operands, queries_, out + part.out, called); break;
        case Product::wide: multiply_rows<Product::wide>(part.operands, queries_, out + part.out, called); break;
      }
    }
  }

  int queries_;
  Parts keys_, values_;
  // Of keys: the queries' factors, segment after segment; what their sums start at, and steps.
  alignas(64) uint8_t factors_[2 * QUERIES * D];
  int32_t starts_[GROUPS * QUERIES];
  float steps_[GROUPS][QUERIES];
  // Of values: the page's softmax weights in bytes and in 16 bits.
  alignas(64) uint8_t weights_[QUERIES * PAGE], wide_weights_[2 * QUERIES * PAGE];
  float weight_steps_[QUERIES], wide_steps_[QUERIES];
  const int32_t zeros_[QUERIES] = {};
  alignas(64) uint8_t numbers_[2 * D * PAGE];
};

}  // namespace ic
