// The paged cache: where a page keeps what, and writing new tokens.
//
// A pool page holds the layers in order, and in each the heads in order. Per head, for PAGE tokens of D elements:
//   exact:  keys [D][PAGE] bf16, then values [PAGE][D] bf16
//   packed: keys, then values, each as its plane says: bf16 as in an exact page; fp8 in the same order; codes (tile.hpp), where
//           strip comes after strip: of keys 16 tokens after 16, in each column by column; of values 16 columns after 16, in
//           each token by token;
//           then fp16 scales [PAGE]
// Keys lie across the page, so that one vector holds the same dimension of neighbouring tokens: scores need no sum over lanes.
#pragma once

#include "abi.h"
#include "plane.hpp"
#include "simd.hpp"

namespace ic {

template <int LAYERS_, int KV_HEADS_, int D_, int PAGE_, int SINK_, int RECENT_, bool COMPRESSED_, bool EVICTS_ = false>
struct Cache {
  static constexpr int LAYERS = LAYERS_, KV_HEADS = KV_HEADS_, D = D_, PAGE = PAGE_, SINK = SINK_, RECENT = RECENT_;
  static constexpr bool COMPRESSED = COMPRESSED_;
  static constexpr bool EVICTS = EVICTS_;  // sequences that outgrow the context go on without their oldest pages
  static constexpr int LANES = 16;  // of a tile
  static_assert(PAGE % 32 == 0 && D % 32 == 0, "whole tiles");

  static constexpr size_t EXACT_HEAD = size_t(2) * PAGE * D * 2;
  static constexpr size_t EXACT_PAGE = EXACT_HEAD * KV_HEADS * LAYERS;

  // Whether a query in query_page reads key_page in its exact form; the one rule of visibility.
  static constexpr bool exact(int query_page, int key_page) {
    return !COMPRESSED || key_page < SINK || key_page >= query_page - RECENT;
  }
  static constexpr bool packs(int page) { return COMPRESSED && page >= SINK; }
  // The same of a sequence, which may have no packed pages at all.
  static bool exact(const ic_sequence& s, int query_page, int key_page) {
    return s.packed == nullptr || exact(query_page, key_page);
  }
  static bool packs(const ic_sequence& s, int page) { return s.packed != nullptr && packs(page); }

  // The pools, and the layers' planes and tables.
  struct Store {
    uint8_t* exact_pool;
    uint8_t* packed_pool;
    size_t packed_page;  // bytes
    const LayerCache* layers;
    const uint8_t* weights;  // the file
    const float* signs;

    uint16_t* exact_keys(int page, int layer, int head) const {
      return reinterpret_cast<uint16_t*>(exact_pool + page * EXACT_PAGE + (size_t(layer) * KV_HEADS + head) * EXACT_HEAD);
    }
    uint16_t* exact_values(int page, int layer, int head) const { return exact_keys(page, layer, head) + PAGE * D; }
    uint8_t* packed_keys(int page, int layer, int head) const {
      const LayerCache& own = layers[layer];
      return packed_pool + page * packed_page + own.place + head * PAGE * (own.keys.plane->bytes + own.values.plane->bytes);
    }
    uint8_t* packed_values(int page, int layer, int head) const {
      return packed_keys(page, layer, head) + PAGE * layers[layer].keys.plane->bytes;
    }
    // A head's part of a table of `rows` numbers per head; null where the side has none.
    const float* table(size_t offset, int head, int rows) const {
      return offset == 0 ? nullptr : reinterpret_cast<const float*>(weights + offset) + size_t(head) * rows;
    }
  };
};

// What is stored of x[i] - mean[i]: bf16, with `stride` numbers between neighbours. False if one of them is not finite.
template <int D>
bool append_vector(const float* x, const float* mean, uint16_t* out, size_t stride) {
  uint32_t broken = 0;
  for (int i = 0; i < D; ++i) {
    const uint16_t rounded = to_bf16(mean == nullptr ? x[i] : x[i] - mean[i]);
    broken |= uint32_t((rounded & 0x7f80) == 0x7f80);
    out[i * stride] = rounded;
  }
  return broken == 0;
}

// Writes one token's key and value of one head, less the means that calibrated planes take away.
template <class C>
bool append(const typename C::Store& store, int page, int layer, int head, int slot, const float* key, const float* value) {
  const LayerCache& own = store.layers[layer];
  const float* key_mean = store.table(own.keys.mean, head, C::D);
  const float* value_mean = store.table(own.values.mean, head, C::D);
  uint16_t* keys = store.exact_keys(page, layer, head) + slot;
  uint16_t* values = store.exact_values(page, layer, head) + size_t(slot) * C::D;
  const bool whole = append_vector<C::D>(key, key_mean, keys, C::PAGE);
  return append_vector<C::D>(value, value_mean, values, 1) && whole;
}

}  // namespace ic
