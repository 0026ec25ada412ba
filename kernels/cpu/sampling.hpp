// Drawing one token from a row of logits: adjustments, mask, temperature, top-k, top-p, min-p, inverse transform.
// runtime/engines/sampling.py is the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "abi.h"

namespace ic {

// A number in [0, 1) that depends on the seed and the position of the drawn token alone (splitmix64's finaliser).
inline float uniform(uint64_t seed, int position) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull * (uint64_t(position) + 1);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return float(z >> 40) / 16777216.0f;
}

struct Candidate {
  float logit;
  int token;
  float weight;  // of the likeliest: 1
  static bool before(const Candidate& one, const Candidate& other) {
    return one.logit > other.logit || (one.logit == other.logit && one.token < other.token);
  }
};

// Candidates in their order, the likeliest first, sorted as far as they are asked for: a draw mostly wants a few of all
// tokens. A heap whose top is the next one; those that were taken stand behind it, the last one first.
class Order {
 public:
  explicit Order(std::vector<Candidate>& pool) : pool_(pool) { std::make_heap(pool.begin(), pool.end(), after); }

  // The candidate `index`, below the pool's size.
  const Candidate& operator[](size_t index) {
    for (; taken_ <= index; ++taken_) std::pop_heap(pool_.begin(), pool_.end() - std::ptrdiff_t(taken_), after);
    return pool_[pool_.size() - 1 - index];
  }

 private:
  static bool after(const Candidate& one, const Candidate& other) {
    return Candidate::before(other, one);
  }

  std::vector<Candidate>& pool_;
  size_t taken_ = 0;
};

inline void adjust(const ic_sequence& s, float* logits) {
  for (int i = 0; i < s.adjust_count; ++i) {
    float& logit = logits[s.adjust_ids[i]];
    logit = (logit > 0 ? logit / s.adjust_penalty[i] : logit * s.adjust_penalty[i]) + s.adjust_bias[i];
  }
}

// `position` is that of the drawn token; `logits` are changed in place by the adjustments. The mask, if any, allows a token.
inline int sample(const ic_sequence& s, float* logits, int vocabulary, int position, std::vector<Candidate>& pool) {
  adjust(s, logits);
  const auto allowed = [&](int token) { return s.mask == nullptr || s.mask[token / 32] >> (token % 32) & 1; };
  if (s.temperature <= 0) {
    int best = -1;
    for (int token = 0; token < vocabulary; ++token)
      if (allowed(token) && (best < 0 || logits[token] > logits[best])) best = token;
    return best;
  }
  float most = -INFINITY;
  for (int token = 0; token < vocabulary; ++token)
    if (allowed(token) && logits[token] > most) most = logits[token];
  // All that is left out here weighs less than exp(-25) together, below what the random number resolves.
  const float least = most - s.temperature * (25.0f + std::log(float(vocabulary)));
  pool.clear();
  for (int token = 0; token < vocabulary; ++token)
    if (allowed(token) && logits[token] >= least) pool.push_back({logits[token], token, 0});
  size_t keep = pool.size();
  if (s.top_k > 0 && size_t(s.top_k) < keep) {
    keep = size_t(s.top_k);
    std::partial_sort(pool.begin(), pool.begin() + std::ptrdiff_t(keep), pool.end(), Candidate::before);
    pool.resize(keep);
  }
  double total = 0;  // of the weights of those that are kept
  for (Candidate& candidate : pool) {
    candidate.weight = std::exp((candidate.logit - most) / s.temperature);
    total += candidate.weight;
  }
  Order order(pool);
  if (s.top_p < 1) {
    const double wanted = double(s.top_p) * total;
    total = 0;
    for (keep = 0; keep < pool.size() && (keep == 0 || total < wanted); ++keep) total += order[keep].weight;
  }
  if (s.min_p > 0) {
    const size_t end = keep;
    total = order[0].weight;
    for (keep = 1; keep < end && order[keep].weight >= s.min_p; ++keep) total += order[keep].weight;
  }
  const double target = double(uniform(s.seed, position)) * total;
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    sum += order[i].weight;
    if (sum > target) return order[i].token;
  }
  return order[keep - 1].token;
}

}  // namespace ic
