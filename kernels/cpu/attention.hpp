// Attention of a few queries of one sequence over its pages, exact and packed, by online softmax.
//
// Keys are taken page by page in spans of SPAN pages counted from the start of the sequence; each span is summed on its own and
// spans are merged in order. A query's result therefore has the same bits whether its chunk is long or short, whatever else is
// in the batch and however many threads share the spans, and a branch of a tree those that it would have as a chain.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "elementwise.hpp"
#include "query_tile.hpp"
#include "seal.hpp"
#include "softmax.hpp"
#include "threads.hpp"

namespace ic {

template <class C, int HEADS>
struct Attention {
  static constexpr int D = C::D, PAGE = C::PAGE, GROUP = HEADS / C::KV_HEADS;
  static constexpr int TOKENS = GROUP >= 8 ? 4 : 8;  // a tile's queries fill the second-level cache at most
  static constexpr int QUERIES = TOKENS * GROUP;
  static constexpr int SPAN = 16;
  using Total = Sums<QUERIES, D, C::COMPRESSED>;

  struct Scratch {
    int task = -1;  // whose queries are loaded
    alignas(64) float queries[QUERIES * D], columns[C::COMPRESSED ? QUERIES * D : 1];
    alignas(64) float sink_queries[C::EVICTS ? QUERIES * D : 1];
    float sink_shifts[C::EVICTS ? QUERIES : 1];  // what sink scores lack
    alignas(64) float weights[QUERIES * PAGE];
    alignas(64) float scales[PAGE];
    alignas(64) uint16_t branch_keys[D * PAGE], branch_values[PAGE * D];
    Coded<C, QUERIES> coded;
    Total span, whole;
    Sealer<C> sealer;
  };

  // What threads share: sums of pieces, and how many pieces of each task are left.
  struct Shared {
    explicit Shared(int threads) : left(size_t(4 * threads)) {}
    std::vector<Total> partial;
    std::vector<std::atomic<int>> left;
  };

  const typename C::Store& store;
  int layer;
  int window;  // 0: none
  float scale;
  const float* input;  // query heads, key heads, value heads of each row
  size_t input_stride;
  float* output;
  size_t output_stride;
  // Of each sequence: the turn back over what it evicted, D / 2 each; null where queries are not turned.
  const float* gap_cosines = nullptr;
  const float* gap_sines = nullptr;
  size_t gap_stride = 0;

  int first_page(const QueryTile& tile) const { return tile.first_seen(window) / PAGE; }
  static int last_page(const QueryTile& tile) { return tile.last_place() / PAGE; }

  void load_queries(const QueryTile& tile, int head, Scratch& s) const {
    const int queries = tile.count * GROUP;
    const LayerCache& own = store.layers[layer];
    const HeadTransform<C> transform(store, own.keys, head);
    for (int q = 0; q < queries; ++q) {
      const float* from = input + size_t(tile.row + tile.first + q / GROUP) * input_stride + (head * GROUP + q % GROUP) * D;
      for (int j = 0; j < D; j += W) ic::store(s.queries + q * D + j, mul(load(from + j), set1(scale)));
      if (C::COMPRESSED) transform.query(s.queries + q * D, s.columns + q * D);
      if constexpr (C::EVICTS)
        if (tile.gap > 0) turn_query(tile, head, q, s);
    }
    if (C::COMPRESSED) s.coded.set_queries(*own.keys.plane, *own.values.plane, s.columns, queries);
  }

  // Sinks are seen as if the gap were closed: by a query that is turned back over it. Their keys lack the mean, which takes the
  // same from all scores of a query, but not what it takes from those of the query that is turned.
  void turn_query(const QueryTile& tile, int head, int q, Scratch& s) const {
    float* to = s.sink_queries + q * D;
    std::memcpy(to, s.queries + q * D, sizeof(float) * D);
    s.sink_shifts[q] = 0;
    if (gap_cosines == nullptr) return;
    rotate<D>(to, gap_cosines + tile.index * gap_stride, gap_sines + tile.index * gap_stride);
    const float* mean = store.table(store.layers[layer].keys.mean, head, D);
    if (mean == nullptr) return;
    vf sum = zero();
    for (int d = 0; d < D; d += W) sum = fma(sub(load(to + d), load(s.queries + q * D + d)), load(mean + d), sum);
    s.sink_shifts[q] = hsum(sum);
  }

  // Where a page lies in the sequence's page table.
  static int held(const QueryTile& tile, int page) { return page < C::SINK ? page : page + tile.gap / PAGE; }

  // Hides what each query does not see of a page, and softens the rest.
  void soften(const QueryTile& tile, int page, Scratch& s, Total& sums) const {
    const int queries = tile.count * GROUP, begin = page * PAGE;
    const bool whole = tile.sees_all(begin, begin + PAGE, window);
    if (!whole)
      for (int q = 0; q < queries; ++q)
        for (int t = 0; t < PAGE; ++t)
          if (!tile.sees(tile.first + q / GROUP, begin + t, window)) s.weights[q * PAGE + t] = HIDDEN;
    soften(0, queries, whole, s, sums);
  }

  // Turns the scores of queries [from, to) into exp(score - most), zero where they are hidden; older sums fade as the maximum
  // rises. One thing after the other for all queries, so that none waits for another's.
  void soften(int from, int to, bool whole, Scratch& s, Total& sums) const {
    float top[QUERIES];
    for (int q = from; q < to; ++q) {
      vf most = load(s.weights + q * PAGE);
      for (int t = W; t < PAGE; t += W) most = vmax(most, load(s.weights + q * PAGE + t));
      top[q] = hmax(most);
    }
    for (int q = from; q < to; ++q) sums.raise(q, top[q]);
    for (int q = from; q < to; ++q) {
      const vf most = set1(sums.most[q]);
      vf total = load(sums.total + q * W);
      for (float* x = s.weights + q * PAGE; x < s.weights + (q + 1) * PAGE; x += W) {
        vf weight = exp(sub(load(x), most));
        if (!whole) weight = mul(weight, above(load(x), set1(0.5f * HIDDEN)));
        ic::store(x, weight);
        total = add(total, weight);
      }
      ic::store(sums.total + q * W, total);
    }
  }

  // One form of one page: where its keys and values lie, and how far away the next page's are.
  struct Form {
    const Plane *keys_plane, *values_plane;  // null: exact
    const uint8_t *keys, *values;
    ptrdiff_t ahead;

    Kind keys_kind() const { return keys_plane == nullptr ? Kind::bf16 : keys_plane->kind; }
    Kind values_kind() const { return values_plane == nullptr ? Kind::bf16 : values_plane->kind; }
  };

  Form form(const QueryTile& tile, int head, int page, int query_page) const {
    const ic_sequence& sequence = *tile.sequence;
    const auto* exact = sequence.exact;
    const auto* packed = sequence.packed;
    const bool seen_exact = C::exact(sequence, query_page, page);
    const bool follows = page < last_page(tile) && seen_exact == C::exact(sequence, query_page, page + 1);
    const int place = held(tile, page), next = follows ? held(tile, page + 1) : place;
    if (seen_exact) {
      const ptrdiff_t ahead = (ptrdiff_t(exact[next]) - exact[place]) * ptrdiff_t(C::EXACT_PAGE);
      return {nullptr, nullptr, reinterpret_cast<const uint8_t*>(store.exact_keys(exact[place], layer, head)),
              reinterpret_cast<const uint8_t*>(store.exact_values(exact[place], layer, head)), ahead};
    }
    const LayerCache& own = store.layers[layer];
    const ptrdiff_t ahead = (ptrdiff_t(packed[next]) - packed[place]) * ptrdiff_t(store.packed_page);
    return {own.keys.plane, own.values.plane, store.packed_keys(packed[place], layer, head),
            store.packed_values(packed[place], layer, head), ahead};
  }

  // The scales behind a page's codes; null where the plane has none.
  static const float* read_scales(const Plane& plane, const uint8_t* in, float* scales) {
    if (!plane.scaled) return nullptr;
    const auto* halves = reinterpret_cast<const uint16_t*>(in + PAGE * (plane.bytes - 2));
    for (int t = 0; t < PAGE; t += W) ic::store(scales + t, load_fp16(halves + t));
    return scales;
  }

  void score(const Form& form, int queries, Scratch& s) const {
    switch (form.keys_kind()) {
      case Kind::bf16: {
        const auto* keys = reinterpret_cast<const uint16_t*>(form.keys);
        return Plain<Bf16, D, PAGE>::score(keys, form.ahead, s.queries, queries, s.weights);
      }
      case Kind::fp8: return Plain<Fp8, D, PAGE>::score(form.keys, form.ahead, s.queries, queries, s.weights);
      case Kind::codes: break;
    }
    if constexpr (C::COMPRESSED) score_codes(form, s);
  }

  void score_sinks(const Form& form, int queries, Scratch& s) const {
    const auto* keys = reinterpret_cast<const uint16_t*>(form.keys);
    Plain<Bf16, D, PAGE>::score(keys, form.ahead, s.sink_queries, queries, s.weights);
    for (int q = 0; q < queries; ++q)
      for (int t = 0; t < PAGE; t += W)
        ic::store(s.weights + q * PAGE + t, add(load(s.weights + q * PAGE + t), set1(s.sink_shifts[q])));
  }

  void score_codes(const Form& form, Scratch& s) const {
    const float* scales = read_scales(*form.keys_plane, form.keys, s.scales);
    s.coded.score(form.keys, scales, form.ahead, s.weights);
  }

  void gather(const Form& form, int queries, int slots, Scratch& s, Total& sums) const {
    if (form.values_kind() != Kind::codes) {
      if (form.values_kind() == Kind::bf16) {
        const auto* values = reinterpret_cast<const uint16_t*>(form.values);
        Plain<Bf16, D, PAGE>::gather(values, form.ahead, s.weights, queries, slots, sums.plain);
      } else {
        Plain<Fp8, D, PAGE>::gather(form.values, form.ahead, s.weights, queries, slots, sums.plain);
      }
    } else if constexpr (C::COMPRESSED) {
      gather_codes(form, s, sums);
    }
  }

  void gather_codes(const Form& form, Scratch& s, Total& sums) const {
    const float* scales = read_scales(*form.values_plane, form.values, s.scales);
    s.coded.gather(form.values, scales, form.ahead, s.weights, sums.coded);
  }

  // A page as new token i of a tree sees it: its ancestors in their places, wherever they lie.
  void gather_branch(const QueryTile& tile, int i, int head, int page, Scratch& s) const {
    const auto exact = [&](int of) { return tile.sequence->exact[held(tile, of)]; };
    std::memcpy(s.branch_keys, store.exact_keys(exact(page), layer, head), sizeof(s.branch_keys));
    std::memcpy(s.branch_values, store.exact_values(exact(page), layer, head), sizeof(s.branch_values));
    for (int other = 0; other <= i; ++other) {
      const int slot = tile.start() + other, place = tile.position(other), to = place % PAGE;
      if (!(tile.ancestors[i] >> other & 1) || place / PAGE != page || place == slot) continue;
      const uint16_t* keys = store.exact_keys(exact(slot / PAGE), layer, head) + slot % PAGE;
      const uint16_t* values = store.exact_values(exact(slot / PAGE), layer, head) + slot % PAGE * D;
      for (int d = 0; d < D; ++d) s.branch_keys[d * PAGE + to] = keys[d * PAGE];
      std::memcpy(s.branch_values + to * D, values, sizeof(uint16_t) * D);
    }
  }

  // A page of guesses, for the branches of a tree: as it would be for each if it were a chain.
  void attend_branches(const QueryTile& tile, int head, int page, Scratch& s, Total& sums) const {
    for (int q = 0; q < tile.count * GROUP; q += GROUP) {
      const int i = tile.first + q / GROUP, position = tile.position(i), begin = page * PAGE;
      const int slots = std::min(position + 1 - begin, PAGE);
      float* weights = s.weights + q * PAGE;
      gather_branch(tile, i, head, page, s);
      Plain<Bf16, D, PAGE>::score(s.branch_keys, 0, s.queries + q * D, GROUP, weights);
      for (int t = 0; t < PAGE; ++t)
        if (begin + t > position || (window != 0 && begin + t <= position - window))
          for (int g = 0; g < GROUP; ++g) weights[g * PAGE + t] = HIDDEN;
      soften(q, q + GROUP, false, s, sums);
      Plain<Bf16, D, PAGE>::gather(s.branch_values, 0, weights, GROUP, slots, sums.plain + q * D);
    }
  }

  void attend_page(const QueryTile& tile, int head, int page, Scratch& s, Total& sums) const {
    if (tile.ancestors != nullptr && page >= tile.certain() / PAGE) return attend_branches(tile, head, page, s, sums);
    const int queries = tile.count * GROUP;
    const Form page_form = form(tile, head, page, tile.position(tile.first) / PAGE);
    if (C::EVICTS && tile.gap > 0 && page < C::SINK)
      score_sinks(page_form, queries, s);
    else
      score(page_form, queries, s);
    soften(tile, page, s, sums);
    // Slots after the last new token were never written.
    gather(page_form, queries, std::min(tile.last_slot() + 1 - page * PAGE, PAGE), s, sums);
  }

  void attend_span(const QueryTile& tile, int head, int span, Scratch& s, Total& sums) const {
    sums.clear(tile.count * GROUP);
    const int low = first_page(tile), high = last_page(tile);
    for (int page = std::max(span * SPAN, low); page < (span + 1) * SPAN && page <= high; ++page)
      attend_page(tile, head, page, s, sums);
  }

  void finish(const QueryTile& tile, int head, Total& sums) const {
    const Side& side = store.layers[layer].values;
    const HeadTransform<C> transform(store, side, head);
    const float* mean = store.table(side.mean, head, D);
    for (int q = 0; q < tile.count * GROUP; ++q) {
      float* to = output + size_t(tile.row + tile.first + q / GROUP) * output_stride + (head * GROUP + q % GROUP) * D;
      if (C::COMPRESSED) transform.restore(sums.coded + q * D, sums.plain + q * D);
      const vf inverse = set1(1.0f / hsum(load(sums.total + q * W)));
      for (int d = 0; d < D; d += W) {
        const vf sum = mul(load(sums.plain + q * D + d), inverse);
        ic::store(to + d, mean == nullptr ? sum : add(sum, load(mean + d)));
      }
    }
  }

  // All tiles, head after head, for neighbouring tiles read the same pages. Where these are too few to occupy the threads, spans
  // are shared out as well.
  void run(Threads& threads, const std::vector<QueryTile>& tiles, std::vector<Scratch>& scratch, Shared& shared) const {
    for (Scratch& s : scratch) s.task = -1;
    const int tasks = int(tiles.size()) * C::KV_HEADS;
    if (tasks >= 4 * threads.count()) {
      threads.run(tasks, [&](int task, int thread) {
        const QueryTile& tile = tiles[task % tiles.size()];
        const int head = task / int(tiles.size());
        Scratch& s = scratch[thread];
        load_queries(tile, head, s);
        const int low = first_page(tile) / SPAN, high = last_page(tile) / SPAN;
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
      int task, span, first, count;  // of the task's pieces
    };
    std::vector<Piece> pieces;
    for (int task = 0; task < tasks; ++task) {
      const QueryTile& tile = tiles[task % tiles.size()];
      const int low = first_page(tile) / SPAN, high = last_page(tile) / SPAN, first = int(pieces.size());
      for (int span = low; span <= high; ++span) pieces.push_back({task, span, first, high - low + 1});
      shared.left[task].store(high - low + 1, std::memory_order_relaxed);
    }
    if (shared.partial.size() < pieces.size()) shared.partial.resize(pieces.size());
    threads.run(int(pieces.size()), [&](int i, int thread) {
      const Piece& piece = pieces[i];
      const QueryTile& tile = tiles[piece.task % tiles.size()];
      const int head = piece.task / int(tiles.size());
      Scratch& s = scratch[thread];
      if (s.task != piece.task) load_queries(tile, head, s);
      s.task = piece.task;
      attend_span(tile, head, piece.span, s, shared.partial[i]);
      if (shared.left[piece.task].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
      // Whoever is last joins the task's pieces, in order.
      Total& whole = shared.partial[piece.first];
      for (int other = 1; other < piece.count; ++other) whole.merge(shared.partial[piece.first + other], tile.count * GROUP);
      finish(tile, head, whole);
    });
  }
};

}  // namespace ic
