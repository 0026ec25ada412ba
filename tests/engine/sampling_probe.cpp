// The sampler of the CPU engine alone (sampling.hpp).
#include "sampling.hpp"

extern "C" __attribute__((visibility("default"))) int32_t probe_sample(const ic_sequence* sequence, float* logits,
                                                                       int32_t vocabulary, int32_t position) {
  static std::vector<ic::Candidate> pool;
  return ic::sample(*sequence, logits, vocabulary, position, pool);
}
