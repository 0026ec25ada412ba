// Attention of a few queries of one sequence over its pages, exact and packed, by online softmax.
//
// Keys are taken page by page in spans of SPAN pages counted from the start of the sequence; each span is summed on its own and
// spans are merged in order. A query's result therefore has the same bits whether its chunk is long or short, whatever else is
// in the batch and however many threads share the spans.
#pragma once

#include <algorithm>
#include <vector>

#include "abi.h"
#include "cache.hpp"
#include "threads.hpp"

namespace ic {

// Up to TOKENS neighbouring new tokens of one sequence in one page: they see the same form of every key page.
struct QueryTile {
  const ic_sequence* sequence;
  const int32_t* positions;   // of the sequence's new tokens
  const uint64_t* ancestors;  // of each new token, itself included; null for a chain
  int row;                    // of the sequence's first new token in the batch
  int first, count;           // new tokens
};

template <class C, int HEADS>
struct Attention {
  static constexpr int D = C::D, PAGE = C::PAGE, GROUP = HEADS / C::KV_HEADS;
  static constexpr int TOKENS = GROUP >= 8 ? 4 : 8;  // a tile's queries fill the second-level cache at most
  static constexpr int QUERIES = TOKENS * GROUP;
  static constexpr int SPAN = 16;
  static constexpr int TILE = 32;              // keys (or dimensions) per register tile
  static constexpr int VECTORS = TILE / W;
  static constexpr int BLOCK = W == 16 ? 4 : 2;  // queries per register tile

  // Softmax sums so far: output = (exact + unrotated packed) / total, with everything scaled by exp(-most).
  struct Sums {
    float most[QUERIES], total[QUERIES];
    alignas(64) float exact[QUERIES * D], packed[QUERIES * D];

    void clear(int queries) {
      for (int q = 0; q < queries; ++q) most[q] = -1e30f, total[q] = 0;
      std::memset(exact, 0, sizeof(float) * size_t(queries) * D);
      if (C::COMPRESSED) std::memset(packed, 0, sizeof(float) * size_t(queries) * D);
    }

    void merge(const Sums& other, int queries) {
      for (int q = 0; q < queries; ++q) {
        const float top = most[q] > other.most[q] ? most[q] : other.most[q];
        const float mine = std::exp(most[q] - top), theirs = std::exp(other.most[q] - top);
        most[q] = top;
        total[q] = total[q] * mine + other.total[q] * theirs;
        blend(exact + q * D, mine, other.exact + q * D, theirs);
        if (C::COMPRESSED) blend(packed + q * D, mine, other.packed + q * D, theirs);
      }
    }

   private:
    static void blend(float* a, float mine, const float* b, float theirs) {
      for (int i = 0; i < D; i += W) store(a + i, fma(load(b + i), set1(theirs), mul(load(a + i), set1(mine))));
    }
  };

  struct Scratch {
    alignas(64) float queries[QUERIES * D], rotated[QUERIES * D];
    alignas(64) float weights[QUERIES * PAGE];
    PageTile<C> page;
    Sums span, whole;
  };

  uint8_t* exact_pool;
  uint8_t* packed_pool;
  const Codebook& book;
  const float* signs;
  int layer;
  int window;  // 0: none
  float scale;
  const float* input;  // query heads, key heads, value heads of each row
  size_t input_stride;
  float* output;
  size_t output_stride;

  static int first_page(const QueryTile& tile, int window) {
    if (window == 0) return 0;
    const int* from = tile.positions + tile.first;
    const int low = *std::min_element(from, from + tile.count) - window + 1;
    return low > 0 ? low / PAGE : 0;
  }
  static int last_page(const QueryTile& tile) { return (tile.sequence->start + tile.first + tile.count - 1) / PAGE; }

  // Whether slot is visible to new token i.
  bool sees(const QueryTile& tile, int i, int slot) const {
    const int start = tile.sequence->start;
    if (tile.ancestors != nullptr && slot >= start) {
      if (!(tile.ancestors[i] >> (slot - start) & 1)) return false;
      slot = tile.positions[slot - start];
    } else if (slot > start + i) {
      return false;
    }
    return window == 0 || slot > tile.positions[i] - window;
  }

  void load_queries(const QueryTile& tile, int head, Scratch& s) const {
    for (int i = 0; i < tile.count; ++i) {
      for (int g = 0; g < GROUP; ++g) {
        const float* from = input + size_t(tile.row + tile.first + i) * input_stride + (head * GROUP + g) * D;
        float* to = s.queries + (i * GROUP + g) * D;
        for (int j = 0; j < D; j += W) store(to + j, mul(load(from + j), set1(scale)));
        if (C::COMPRESSED) {
          float* rotated = s.rotated + (i * GROUP + g) * D;
          std::memcpy(rotated, to, sizeof(float) * D);
          rotate_in<D>(rotated, signs);
        }
      }
    }
  }

  // weights[q][t] = query q times key t, for all keys of the page.
  template <int N>
  static void scores(const float* queries, const float* keys, float* weights) {
    for (int t = 0; t < PAGE; t += TILE) {
      vf sums[N][VECTORS];
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) sums[n][v] = zero();
      for (int d = 0; d < D; ++d) {
        for (int v = 0; v < VECTORS; ++v) {
          const vf key = load(keys + d * PAGE + t + v * W);
          for (int n = 0; n < N; ++n) sums[n][v] = fma(key, set1(queries[n * D + d]), sums[n][v]);
        }
      }
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) store(weights + n * PAGE + t + v * W, sums[n][v]);
    }
  }

  // sums[q] = sums[q] * decay[q] + weights[q] @ values, over the slots [low, high) of the page.
  template <int N>
  static void gather(const float* weights, const float* values, int low, int high, const float* decay, float* sums) {
    for (int d = 0; d < D; d += TILE) {
      vf out[N][VECTORS];
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) out[n][v] = mul(load(sums + n * D + d + v * W), set1(decay[n]));
      for (int t = low; t < high; ++t) {
        for (int v = 0; v < VECTORS; ++v) {
          const vf value = load(values + t * D + d + v * W);
          for (int n = 0; n < N; ++n) out[n][v] = fma(value, set1(weights[n * PAGE + t]), out[n][v]);
        }
      }
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) store(sums + n * D + d + v * W, out[n][v]);
    }
  }

  // Turns query q's scores into exp(score - most), zero where the key is not visible; returns the factor for older sums.
  float soften(const QueryTile& tile, int q, int page, bool whole, const float* key_scales, float* weights, Sums& sums) const {
    if (key_scales != nullptr)
      for (int t = 0; t < PAGE; t += W) store(weights + t, mul(load(weights + t), load(key_scales + t)));
    bool visible[PAGE];
    bool any = whole;
    float top = -1e30f;
    if (whole) {
      vf most = load(weights);
      for (int t = W; t < PAGE; t += W) most = vmax(most, load(weights + t));
      top = hmax(most);
    } else {
      for (int t = 0; t < PAGE; ++t) {
        visible[t] = sees(tile, tile.first + q / GROUP, page * PAGE + t);
        if (!visible[t]) continue;
        any = true;
        top = weights[t] > top ? weights[t] : top;
      }
    }
    if (!any) {
      std::memset(weights, 0, sizeof(float) * PAGE);
      return 1.0f;
    }
    const float most = top > sums.most[q] ? top : sums.most[q];
    const float decay = std::exp(sums.most[q] - most);
    sums.most[q] = most;
    for (int t = 0; t < PAGE; t += W) store(weights + t, exp(sub(load(weights + t), set1(most))));
    if (!whole)
      for (int t = 0; t < PAGE; ++t) weights[t] = visible[t] ? weights[t] : 0.0f;
    vf total = load(weights);
    for (int t = W; t < PAGE; t += W) total = add(total, load(weights + t));
    sums.total[q] = sums.total[q] * decay + hsum(total);
    return decay;
  }

  void attend_page(const QueryTile& tile, int head, int page, Scratch& s, Sums& sums) const {
    const ic_sequence& sequence = *tile.sequence;
    const int last_slot = sequence.start + tile.first + tile.count - 1;
    const bool exact = C::exact(tile.positions[tile.first] / PAGE, page);
    if (exact)
      s.page.read_exact(C::exact_keys(exact_pool, sequence.exact[page], layer, head));
    else
      s.page.read_packed(C::packed_head(packed_pool, sequence.packed[page], layer, head), book);

    const int queries = tile.count * GROUP;
    const float* from = exact ? s.queries : s.rotated;
    over_queries(queries, [&](int q, auto n) { scores<decltype(n)::value>(from + q * D, s.page.keys, s.weights + q * PAGE); });

    // Every key of the page is visible to every query of the tile if it precedes the new tokens and lies in the window.
    const int end = (page + 1) * PAGE;
    const bool whole = tile.ancestors == nullptr && end <= sequence.start &&
                       (window == 0 || page * PAGE > tile.positions[tile.first + tile.count - 1] - window);
    float decay[QUERIES];
    for (int q = 0; q < queries; ++q) {
      float* weights = s.weights + q * PAGE;
      decay[q] = soften(tile, q, page, whole, exact ? nullptr : s.page.key_scales, weights, sums);
      if (!exact)
        for (int t = 0; t < PAGE; t += W) store(weights + t, mul(load(weights + t), load(s.page.value_scales + t)));
    }
    // Slots after the last new token were never written.
    const int high = last_slot + 1 < end ? last_slot + 1 - page * PAGE : PAGE;
    over_queries(queries, [&](int q, auto n) {
      constexpr int N = decltype(n)::value;
      gather<N>(s.weights + q * PAGE, s.page.values, 0, high, decay + q, (exact ? sums.exact : sums.packed) + q * D);
      // The other sum only fades.
      if (C::COMPRESSED) fade<N>(decay + q, (exact ? sums.packed : sums.exact) + q * D);
    });
  }

  template <int N>
  static void fade(const float* decay, float* sums) {
    for (int n = 0; n < N; ++n) {
      if (decay[n] == 1.0f) continue;
      for (int d = 0; d < D; d += W) store(sums + n * D + d, mul(load(sums + n * D + d), set1(decay[n])));
    }
  }

  template <class Body>
  static void over_queries(int queries, Body&& body) {
    int q = 0;
    for (; q + BLOCK <= queries; q += BLOCK) body(q, std::integral_constant<int, BLOCK>{});
    for (; q < queries; ++q) body(q, std::integral_constant<int, 1>{});
  }

  void attend_span(const QueryTile& tile, int head, int span, Scratch& s, Sums& sums) const {
    const int queries = tile.count * GROUP;
    sums.clear(queries);
    const int low = first_page(tile, window), high = last_page(tile);
    for (int page = span * SPAN > low ? span * SPAN : low; page < (span + 1) * SPAN && page <= high; ++page)
      attend_page(tile, head, page, s, sums);
  }

  void finish(const QueryTile& tile, int head, Sums& sums) const {
    for (int i = 0; i < tile.count; ++i) {
      for (int g = 0; g < GROUP; ++g) {
        const int q = i * GROUP + g;
        float* to = output + size_t(tile.row + tile.first + i) * output_stride + (head * GROUP + g) * D;
        if (C::COMPRESSED) rotate_out<D>(sums.packed + q * D, signs);
        const vf inverse = set1(1.0f / sums.total[q]);
        for (int d = 0; d < D; d += W) {
          vf sum = load(sums.exact + q * D + d);
          if (C::COMPRESSED) sum = add(sum, load(sums.packed + q * D + d));
          store(to + d, mul(sum, inverse));
        }
      }
    }
  }

  // All tiles and heads. Where these are too few to occupy the threads, spans are shared out as well.
  void run(Threads& threads, const std::vector<QueryTile>& tiles, std::vector<Scratch>& scratch, std::vector<Sums>& partial) const {
    const int tasks = int(tiles.size()) * C::KV_HEADS;
    if (tasks >= 4 * threads.count()) {
      threads.run(tasks, [&](int task, int thread) {
        const QueryTile& tile = tiles[task / C::KV_HEADS];
        const int head = task % C::KV_HEADS;
        Scratch& s = scratch[thread];
        load_queries(tile, head, s);
        const int low = first_page(tile, window) / SPAN, high = last_page(tile) / SPAN;
        attend_span(tile, head, low, s, s.whole);
        for (int span = low + 1; span <= high; ++span) {
          attend_span(tile, head, span, s, s.span);
          s.whole.merge(s.span, tile.count * GROUP);
        }
        finish(tile, head, s.whole);
      });
      return;
    }
    struct Piece {
      int tile, head, span;
    };
    std::vector<Piece> pieces;
    for (int task = 0; task < tasks; ++task) {
      const QueryTile& tile = tiles[task / C::KV_HEADS];
      for (int span = first_page(tile, window) / SPAN; span <= last_page(tile) / SPAN; ++span)
        pieces.push_back({task / C::KV_HEADS, task % C::KV_HEADS, span});
    }
    if (partial.size() < pieces.size()) partial.resize(pieces.size());
    threads.run(int(pieces.size()), [&](int i, int thread) {
      load_queries(tiles[pieces[i].tile], pieces[i].head, scratch[thread]);
      attend_span(tiles[pieces[i].tile], pieces[i].head, pieces[i].span, scratch[thread], partial[i]);
    });
    for (size_t i = 0; i < pieces.size();) {
      const QueryTile& tile = tiles[pieces[i].tile];
      Sums& whole = partial[i];
      size_t j = i + 1;
      for (; j < pieces.size() && pieces[j].tile == pieces[i].tile && pieces[j].head == pieces[i].head; ++j)
        whole.merge(partial[j], tile.count * GROUP);
      finish(tile, pieces[i].head, whole);
      i = j;
    }
  }
};

}  // namespace ic
