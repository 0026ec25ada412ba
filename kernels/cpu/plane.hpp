// How a layer's keys and values are stored: runtime/formats/kv.py in the form that kernels loop over.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ic {

enum class Kind { bf16, fp8, codes };
enum class Transform { none, hadamard, dense, diagonal };

// How codes are kept: `bits` of them, (code >> shift) % 2**bits, at most 4.
struct Strip {
  int bits, shift;
};

// Neighbouring columns whose codes have as many bits; `points` are the integers of codes of up to 4 bits, ascending, in a table of
// 16 again and again, so that higher bits of an index do not matter. Wider codes are odd integers from 1 - 2**bits on. `unit`
// times an integer is its value where a column varies by 1.
struct Segment {
  int bits, first, columns;
  float unit;
  int8_t points[16];

  bool wide() const { return bits > 4; }
  // The greatest magnitude among the integers: the first, for they are symmetric.
  int most() const { return wide() ? (1 << bits) - 1 : -points[0]; }
  int strips() const { return wide() ? 2 : 1; }
  // The upper 4 bits come before the others.
  Strip strip(int i) const {
    if (!wide()) return {bits, 0};
    return i == 0 ? Strip{4, bits - 4} : Strip{bits - 4, 0};
  }
};

struct Plane {
  Kind kind;
  Transform transform;
  bool scaled;  // an fp16 scale follows the codes of each vector
  int columns;
  size_t bytes;  // of one vector
  const Segment* segments;
  int segment_count;
};

// One side of a layer: its plane and where its calibrated tables lie in the weights file, in bytes; 0 where there is none.
struct Side {
  const Plane* plane;
  size_t mean, encode, decode;  // the scale of a diagonal transform is `decode`
};

struct LayerCache {
  Side keys, values;
  size_t place;  // of the layer in a packed page
};

}  // namespace ic
