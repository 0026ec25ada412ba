// A checked batch: the rows of a step, who they belong to, and what each sequence's pages must hold.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention.hpp"

namespace ic {

struct SealTask {
  int exact, packed;
};

template <class C, int HEADS>
struct Batch {
  static constexpr int TOKENS = Attention<C, HEADS>::TOKENS;
  static constexpr int TREE = 64;  // new tokens of a tree: their ancestors fit one word

  std::vector<int> tokens, positions, exact_slots;  // per row: exact_slots = pool page * PAGE + slot in the page
  std::vector<int> outputs;                         // rows whose logits are wanted
  std::vector<int> owners;                          // sequence of each output
  std::vector<int> firsts;                          // first row of each sequence
  std::vector<uint64_t> ancestors;                  // per row, 0 where the sequence is a chain
  std::vector<QueryTile> tiles;
  std::vector<SealTask> seals;

  // The sequence that a row belongs to.
  int sequence_of(int row) const { return int(std::upper_bound(firsts.begin(), firsts.end(), row) - firsts.begin()) - 1; }

  // Throws a std::string that names the sequence and what is wrong with it. Nothing else has happened by then. `window` is the
  // longest of all layers, 0 if one has none: pages before it are never read.
  void fill(const ic_sequence* sequences, int count, int max_sequences, int max_tokens, int max_context, int vocabulary,
            int exact_pages, int packed_pages, int window) {
    for (auto* list : {&tokens, &positions, &exact_slots, &outputs, &owners, &firsts}) list->clear();
    ancestors.clear();
    tiles.clear();
    seals.clear();
    if (count < 0 || count > max_sequences)
      throw "a step takes at most " + std::to_string(max_sequences) + " sequences, got " + std::to_string(count);
    size_t total = 0;
    for (int i = 0; i < count; ++i) total += size_t(sequences[i].count > 0 ? sequences[i].count : 0);
    if (total > size_t(max_tokens))
      throw "a step takes at most " + std::to_string(max_tokens) + " tokens, got " + std::to_string(total);
    // Tiles point into positions and ancestors, which must not move.
    positions.reserve(total);
    ancestors.reserve(total);
    for (int i = 0; i < count; ++i) {
      const std::string who = "sequence " + std::to_string(i) + ": ";
      const ic_sequence& s = sequences[i];
      const int end = s.start + s.count;
      if (s.count < 1 || s.start < 0 || s.evicted < 0 || end - s.evicted > max_context)
        throw who + "its new tokens lie outside the context";
      if (s.evicted > 0 && !C::EVICTS) throw who + "tokens are evicted, and the program ends sequences instead";
      if (s.evicted % C::PAGE != 0 || (s.evicted > 0 && C::SINK + s.evicted / C::PAGE > s.start / C::PAGE))
        throw who + "what is evicted is not whole pages between its sinks and its new tokens";
      if (s.accepted < 0 || s.accepted > s.count) throw who + "more tokens are accepted than there are";
      if (s.outputs < 0 || s.outputs > s.count) throw who + "more outputs are asked for than there are tokens";
      if (C::LAYERS > 0 && s.pages < (end + C::PAGE - 1) / C::PAGE) throw who + "its page table is too short";
      if (s.parents != nullptr && s.count > TREE) throw who + "a tree has at most 64 tokens";
      for (int j = 0; j < s.adjust_count; ++j)
        if (s.adjust_ids[j] < 0 || s.adjust_ids[j] >= vocabulary) throw who + "an adjusted token is not in the vocabulary";
      if (s.mask != nullptr && !allows(s.mask, vocabulary)) throw who + "its mask allows no token";
      firsts.push_back(int(tokens.size()));
      add_rows(s, i, vocabulary, who);
      check_pages(s, exact_pages, packed_pages, window, who);
      add_tiles(s, i);
    }
  }

 private:
  static bool allows(const uint32_t* mask, int vocabulary) {
    for (int token = 0; token < vocabulary; ++token)
      if (mask[token / 32] >> (token % 32) & 1) return true;
    return false;
  }

  static std::string page_error(const std::string& who, int page, const char* what) {
    return who + "page " + std::to_string(page) + " " + what;
  }

  // Positions of the sequence that was added last.
  const int* last_positions(const ic_sequence& s) const { return positions.data() + positions.size() - size_t(s.count); }

  void check_pages(const ic_sequence& s, int exact_pages, int packed_pages, int window, const std::string& who) const {
    if (C::LAYERS == 0) return;
    const int* from = last_positions(s);
    const int first_query = s.start / C::PAGE, last_query = *std::max_element(from, from + s.count) / C::PAGE;
    const int last_page = (s.start + s.count - 1) / C::PAGE, certain = (s.start + s.accepted) / C::PAGE;
    const int first_seen = window == 0 ? 0 : std::max(0, s.start - s.evicted - window + 1) / C::PAGE, gap = s.evicted / C::PAGE;
    for (int seen = first_seen; seen <= last_page - gap; ++seen) {
      const int page = seen < C::SINK ? seen : seen + gap;
      const bool exact = page >= first_query || C::exact(s, first_query, page);
      const bool packed = !C::exact(s, last_query, page);
      if (exact && (s.exact[page] < 0 || s.exact[page] >= exact_pages))
        throw page_error(who, page, "is seen exact but has no exact page in the pool");
      if (packed && (s.packed[page] < 0 || s.packed[page] >= packed_pages))
        throw page_error(who, page, "is seen compressed but has no packed page in the pool");
      if (packed && page >= certain) throw page_error(who, page, "is seen compressed before its tokens are accepted");
    }
    for (int page = s.sealed; page < certain; ++page) {
      if (!C::packs(s, page)) continue;
      if (s.exact[page] < 0 || s.exact[page] >= exact_pages || s.packed[page] < 0 || s.packed[page] >= packed_pages)
        throw page_error(who, page, "is to be sealed but lacks its exact or its packed page");
    }
  }

  void add_rows(const ic_sequence& s, int index, int vocabulary, const std::string& who) {
    const int row = int(tokens.size());
    for (int i = 0; i < s.count; ++i) {
      if (s.tokens[i] < 0 || s.tokens[i] >= vocabulary)
        throw who + "token " + std::to_string(s.tokens[i]) + " is not in the vocabulary";
      const int parent = s.parents == nullptr ? i - 1 : s.parents[i];
      if (parent < -1 || parent >= i) throw who + "a token's parent does not precede it";
      const int slot = s.start + i;
      tokens.push_back(s.tokens[i]);
      positions.push_back(parent < 0 ? s.start : positions[row + parent] + 1);
      ancestors.push_back(s.parents == nullptr ? 0 : (parent < 0 ? 0 : ancestors[row + parent]) | uint64_t(1) << i);
      // Checked below, before it is used.
      exact_slots.push_back(C::LAYERS == 0 ? 0 : s.exact[slot / C::PAGE] * C::PAGE + slot % C::PAGE);
      if (i >= s.count - s.outputs) {
        outputs.push_back(row + i);
        owners.push_back(index);
      }
    }
  }

  // Runs of new tokens whose queries lie in one page, those that stand in their places apart from branches; then the pages that
  // are certain now.
  void add_tiles(const ic_sequence& s, int index) {
    const int row = int(tokens.size()) - s.count;
    const int* from = last_positions(s);
    const auto placed = [&](int i) { return from[i] == s.start + i; };
    for (int i = 0, size; i < s.count; i += size) {
      const auto alike = [&](int j) { return from[j] / C::PAGE == from[i] / C::PAGE && placed(j) == placed(i); };
      size = 1;
      while (size < TOKENS && i + size < s.count && alike(i + size)) ++size;
      tiles.push_back({&s, from, placed(i) ? nullptr : ancestors.data() + row, row, i, size, s.evicted, index});
    }
    for (int page = s.sealed; page < (s.start + s.accepted) / C::PAGE; ++page)
      if (C::packs(s, page)) seals.push_back({s.exact[page], s.packed[page]});
  }
};

}  // namespace ic
