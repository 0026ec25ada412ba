// How neighbouring pieces of work are shared out among threads.
#pragma once

#include "threads.hpp"

namespace ic {

// Cuts `count` neighbouring pieces of work into tasks: half of it in one task per thread, half of the rest in as many, and so
// on. Long stretches of memory at first, short ones to even out the threads at last.
class Shares {
 public:
  Shares(int count, int threads) : count_(count), threads_(threads) {}

  int tasks() const { return find([](int, int) { return false; }); }

  // Calls body(first, last) with the pieces of a task.
  template <class Body>
  void of(int task, Body&& body) const {
    find([&](int first, int last) {
      if (task-- > 0) return false;
      body(first, last);
      return true;
    });
  }

 private:
  // Calls found(first, last) for all tasks in order until it is true; returns how many it was called for.
  template <class Found>
  int find(Found&& found) const {
    int calls = 0;
    for (int first = 0; first < count_;) {
      const int share = (count_ - first) / (2 * threads_), size = share < 1 ? 1 : share;
      for (int i = 0; i < threads_ && first < count_; ++i, first += size) {
        ++calls;
        if (found(first, first + size)) return calls;
      }
    }
    return calls;
  }

  int count_, threads_;
};

// Calls body(first, last) until all pieces are done.
template <class Body>
void share_out(Threads& threads, int count, Body&& body) {
  const Shares shares(count, threads.count());
  threads.run(shares.tasks(), [&](int task, int) { shares.of(task, body); });
}

}  // namespace ic
