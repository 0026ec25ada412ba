// Compressing a full exact page of one head (runtime/kv/codec.py). Lanes are tokens throughout.
#pragma once

#include "coded.hpp"
#include "plain.hpp"

namespace ic {

template <class C>
class Sealer {
 public:
  void seal(const typename C::Store& store, int exact_page, int packed_page, int layer, int head) {
    const LayerCache& own = store.layers[layer];
    const uint16_t* keys = store.exact_keys(exact_page, layer, head);
    const uint16_t* values = store.exact_values(exact_page, layer, head);
    uint8_t* packed_keys = store.packed_keys(packed_page, layer, head);
    uint8_t* packed_values = store.packed_values(packed_page, layer, head);
    if (!copy(own.keys.plane->kind, keys, packed_keys)) {
      for (int i = 0; i < PAGE * D; i += W) ic::store(vectors_ + i, load_bf16(keys + i));
      encode(HeadTransform<C>(store, own.keys, head));
      over_strips(*own.keys.plane, [&](const Segment& segment, const Strip& strip) {
        for (int t = 0; t < PAGE; t += TILE_LANES)
          for (int c = 0; c < segment.columns; c += TILE_LANES)
            packed_keys = close_keys(strip, segment.first + c, t, packed_keys);
      });
      write_scales(*own.keys.plane, packed_keys);
    }
    if (!copy(own.values.plane->kind, values, packed_values)) {
      for (int t = 0; t < PAGE; ++t)
        for (int i = 0; i < D; ++i) vectors_[i * PAGE + t] = from_bf16(values[t * D + i]);
      encode(HeadTransform<C>(store, own.values, head));
      over_strips(*own.values.plane, [&](const Segment& segment, const Strip& strip) {
        for (int c = 0; c < segment.columns; c += TILE_LANES)
          for (int t = 0; t < PAGE; t += TILE_LANES)
            packed_values = close_values(strip, segment.first + c, t, packed_values);
      });
      write_scales(*own.values.plane, packed_values);
    }
  }

 private:
  static constexpr int D = C::D, PAGE = C::PAGE;

  // Planes of plain numbers keep the order of the exact page.
  static bool copy(Kind kind, const uint16_t* from, uint8_t* to) {
    if (kind == Kind::bf16) std::memcpy(to, from, sizeof(uint16_t) * PAGE * D);
    if (kind == Kind::fp8)
      for (int i = 0; i < PAGE * D; ++i) to[i] = to_fp8(from_bf16(from[i]));
    return kind != Kind::codes;
  }

  template <class Body>
  static void over_strips(const Plane& plane, Body&& body) {
    for (int i = 0; i < plane.segment_count; ++i)
      for (int part = 0; part < plane.segments[i].strips(); ++part) body(plane.segments[i], plane.segments[i].strip(part));
  }

  // codes_[column][token] and scales_[token] of vectors_[D][PAGE].
  void encode(const HeadTransform<C>& transform) {
    const Plane& plane = transform.plane;
    const float* columns = vectors_;
    for (int t = 0; t < PAGE; ++t) inverses_[t] = scales_[t] = 1.0f;
    switch (plane.transform) {
      case Transform::hadamard:
        rotate_page<D, PAGE>(vectors_, transform.signs);
        if (plane.scaled) set_scales(plane.segments[0]);
        break;
      case Transform::diagonal:
        for (int c = 0; c < plane.columns; ++c)
          for (int t = c * PAGE; t < (c + 1) * PAGE; t += W)
            ic::store(vectors_ + t, div(load(vectors_ + t), set1(transform.decode[c])));
        break;
      case Transform::dense:
        Plain<Float, D, PAGE>::score(vectors_, 0, transform.encode, plane.columns, columns_);
        columns = columns_;
        break;
      case Transform::none: break;
    }
    for (int i = 0; i < plane.segment_count; ++i) {
      const Segment& segment = plane.segments[i];
      if (segment.wide())
        quantize_evenly(segment, columns);
      else
        quantize(segment, plane.scaled, columns);
    }
  }

  // What vectors are multiplied by before they are rounded. A scale is what they are kept with; of up to 4 bits first their norm.
  void set_scales(const Segment& segment) {
    for (int t = 0; t < PAGE; t += W) {
      vf squares = zero(), most = zero();
      for (int i = 0; i < D; ++i) {
        const vf x = load(vectors_ + i * PAGE + t);
        squares = fma(x, x, squares);
        most = vmax(most, vmax(x, sub(zero(), x)));
      }
      ic::store(scales_ + t, segment.wide() ? most : squares);
    }
    for (int t = 0; t < PAGE; ++t) {
      float step;
      if (segment.wide()) {
        scales_[t] = step = from_fp16(to_fp16(scales_[t] / float((1 << segment.bits) - 1)));
      } else {
        scales_[t] = std::sqrt(scales_[t]);
        step = scales_[t] * (segment.unit / std::sqrt(float(D)));
      }
      inverses_[t] = step > 0 ? 1.0f / step : 0.0f;
    }
  }

  // The number of midpoints between points that lie below. Where vectors are scaled, so that each keeps its norm: the sum of the
  // squares of the points found.
  void quantize(const Segment& segment, bool scaled, const float* columns) {
    const int midpoints = (1 << segment.bits) - 1;
    vf bounds[15], steps[15];
    for (int i = 0; i < midpoints; ++i) {
      const float low = segment.points[i], high = segment.points[i + 1];
      bounds[i] = set1(0.5f * (low + high)), steps[i] = set1(high * high - low * low);
    }
    const vf least = set1(float(segment.points[0] * segment.points[0]));
    alignas(64) float squares[PAGE] = {};
    for (int c = segment.first; c < segment.first + segment.columns; ++c) {
      for (int t = 0; t < PAGE; t += W) {
        const vf x = mul(load(columns + c * PAGE + t), load(inverses_ + t));
        vf code = zero(), square = add(load(squares + t), least);
        for (int i = 0; i < midpoints; ++i) {
          const vf found = above(x, bounds[i]);
          code = add(code, found);
          if (scaled) square = fma(found, steps[i], square);
        }
        store_bytes(codes_ + c * PAGE + t, code);
        ic::store(squares + t, square);
      }
    }
    for (int t = 0; scaled && t < PAGE; ++t) scales_[t] /= std::sqrt(squares[t]);
  }

  // The same where the integers are odd: midpoints are 2 apart from 2 - 2**bits on.
  void quantize_evenly(const Segment& segment, const float* columns) {
    const float count = float(1 << segment.bits);
    for (int c = segment.first; c < segment.first + segment.columns; ++c) {
      for (int t = 0; t < PAGE; t += W) {
        const vf x = mul(load(columns + c * PAGE + t), load(inverses_ + t));
        const vf below = sub(zero(), floor(mul(add(x, set1(count - 2)), set1(-0.5f))));
        store_bytes(codes_ + c * PAGE + t, vmin(vmax(below, zero()), set1(count - 1)));
      }
    }
  }

  // The tile of 16 tokens and 16 columns.
  uint8_t* close_keys(const Strip& strip, int column, int token, uint8_t* out) const {
    uint8_t tile[TILE_BYTES];
    for (int index = 0; index < TILE_LANES; ++index) {
      const uint8_t* codes = codes_ + (column + index) * PAGE + token;
      uint8_t* to = tile + index / 4 * 4 * TILE_LANES + index % 4;
      for (int lane = 0; lane < TILE_LANES; ++lane) to[4 * lane] = codes[lane];
    }
    return close(strip, tile, out);
  }
  uint8_t* close_values(const Strip& strip, int column, int token, uint8_t* out) const {
    uint8_t tile[TILE_BYTES];
    for (int lane = 0; lane < TILE_LANES; ++lane) {
      const uint8_t* codes = codes_ + (column + lane) * PAGE + token;
      for (int quad = 0; quad < 4; ++quad) std::memcpy(tile + (quad * TILE_LANES + lane) * 4, codes + 4 * quad, 4);
    }
    return close(strip, tile, out);
  }
  static uint8_t* close(const Strip& strip, uint8_t* tile, uint8_t* out) {
    for (int i = 0; i < TILE_BYTES; ++i) tile[i] = uint8_t(tile[i] >> strip.shift & ((1 << strip.bits) - 1));
    close_tile(strip.bits, tile, out);
    return out + tile_bytes(strip.bits);
  }

  void write_scales(const Plane& plane, uint8_t* out) const {
    for (int t = 0; plane.scaled && t < PAGE; ++t) {
      const uint16_t scale = to_fp16(scales_[t]);
      std::memcpy(out + 2 * t, &scale, 2);
    }
  }

  alignas(64) float vectors_[D * PAGE], columns_[D * PAGE];
  alignas(64) uint8_t codes_[D * PAGE];
  alignas(64) float scales_[PAGE], inverses_[PAGE];
};

}  // namespace ic
