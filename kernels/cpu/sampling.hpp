// Drawing one token from a row of logits: adjustments, mask, temperature, top-k, top-p, min-p, inverse transform.
// runtime/engines/sampling.py is the reference.
#pragma once

#include <algorithm>
#include <cmath>
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
  bool operator<(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
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
    if (allowed(token) && logits[token] >= least) pool.push_back({logits[token], token});
  size_t keep = s.top_k > 0 && size_t(s.top_k) < pool.size() ? size_t(s.top_k) : pool.size();
  std::partial_sort(pool.begin(), pool.begin() + ptrdiff_t(keep), pool.end());
  pool.resize(keep);

  double total = 0;
  for (auto& candidate : pool) {
    candidate.logit = std::exp((candidate.logit - most) / s.temperature);  // from here on a weight, at most 1
    total += candidate.logit;
  }
  if (s.top_p < 1) {
    double sum = 0;
    size_t i = 0;
    while (i < keep && sum < double(s.top_p) * total) sum += pool[i++].logit;
    keep = std::max<size_t>(i, 1);
  }
  while (keep > 1 && pool[keep - 1].logit < s.min_p) --keep;
  total = 0;
  for (size_t i = 0; i < keep; ++i) total += pool[i].logit;
  const double target = double(uniform(s.seed, position)) * total;
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    sum += pool[i].logit;
    if (sum > target) return pool[i].token;
  }
  return pool[keep - 1].token;
}

}  // namespace ic
