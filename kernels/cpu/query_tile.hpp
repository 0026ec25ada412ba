// The queries that are attended together, and what they see.
#pragma once

#include <algorithm>

#include "abi.h"

namespace ic {

// Up to TOKENS neighbouring new tokens of one sequence in one page: they see the same form of every key page. Either all stand in
// the slots of their positions, as a chain does, or none: the branches of a tree.
//
// Slots and positions are counted here as if what the sequence evicted had never been: less `gap`, which is whole pages.
struct QueryTile {
  const ic_sequence* sequence;
  const int32_t* positions;   // of the sequence's new tokens, the gap included
  const uint64_t* ancestors;  // of each new token, itself included; null where they stand in their places
  int row;                    // of the sequence's first new token in the batch
  int first, count;           // new tokens
  int gap = 0;                // tokens evicted behind the sinks
  int index = 0;              // of the sequence in the batch

  int start() const { return sequence->start - gap; }
  int position(int i) const { return positions[i] - gap; }
  int last_slot() const { return start() + first + count - 1; }
  // Where the last of the queries stands, or a branch would.
  int last_place() const { return ancestors == nullptr ? last_slot() : position(first + count - 1); }
  // Tokens from here on are guesses: branches see others than the slots hold.
  int certain() const { return start() + sequence->accepted; }

  // Whether slot is visible to new token i.
  bool sees(int i, int slot, int window) const {
    if (ancestors != nullptr && slot >= start()) {
      if (slot > start() + i || !(ancestors[i] >> (slot - start()) & 1)) return false;
      slot = position(slot - start());
    } else if (slot > start() + i) {
      return false;
    }
    return window == 0 || slot > position(i) - window;
  }

  // The first token that one of the queries may see.
  int first_seen(int window) const {
    if (window == 0) return 0;
    return std::max(0, *std::min_element(positions + first, positions + first + count) - gap - window + 1);
  }

  // Whether every token before `end` from `begin` on is seen by every query.
  bool sees_all(int begin, int end, int window) const {
    if (ancestors != nullptr || end > start()) return false;
    return window == 0 || begin > position(first + count - 1) - window;
  }
};

}  // namespace ic
