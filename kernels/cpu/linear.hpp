// Matrix products: T rows of activations with a stored matrix, 16 output rows interleaved in a block.
//
// A result depends on its own row and activation alone, in a fixed order of inputs: the same bits come out whatever else is
// in the batch and however many threads run.
#pragma once

#include "dot.hpp"
#include "quantize.hpp"
#include "threads.hpp"

namespace ic {

// What a product does with its sums.
struct Output {
  float* rows;
  size_t stride;
  const uint16_t* bias;  // bf16, or null
  bool add;              // to what is there
};

template <int OUT>
inline void finish(const Output& output, int t, int block, const vf sums[VECTORS]) {
  float* to = output.rows + t * output.stride + block * ROWS;
  for (int v = 0; v < VECTORS; ++v) {
    vf sum = sums[v];
    if (output.bias != nullptr) sum = ic::add(sum, load_bf16(output.bias + block * ROWS + v * W));
    if (output.add) sum = ic::add(sum, load(to + v * W));
    store(to + v * W, sum);
  }
}

// Blocks per task: enough tasks to even out the threads, few enough to keep each one's stretch of memory long.
inline int blocks_per_task(int blocks, int threads) {
  const int share = blocks / (threads * 4);
  return share < 1 ? 1 : share;
}

// Calls body(block, t, integral_constant T) over all blocks and, inside a block, over rows of activations T at a time.
template <int T, class Body>
void over_blocks(Threads& threads, int blocks, int rows, Body&& body) {
  const int share = blocks_per_task(blocks, threads.count());
  threads.run((blocks + share - 1) / share, [&](int task, int) {
    const int last = (task + 1) * share < blocks ? (task + 1) * share : blocks;
    for (int block = task * share; block < last; ++block) {
      int t = 0;
      for (; t + T <= rows; t += T) body(block, t, std::integral_constant<int, T>{});
      for (; t + 2 <= rows; t += 2) body(block, t, std::integral_constant<int, 2>{});
      for (; t < rows; ++t) body(block, t, std::integral_constant<int, 1>{});
    }
  });
}

// bf16 weights [OUT/16][IN][16], float activations.
template <int OUT, int IN>
void linear_bf16(Threads& threads, const uint8_t* weights, const float* input, size_t stride, int rows, Output output) {
  const auto* matrix = reinterpret_cast<const uint16_t*>(weights);
  constexpr int BLOCKS = (OUT + ROWS - 1) / ROWS;
  constexpr int T = 4;
  over_blocks<T>(threads, BLOCKS, rows, [&](int block, int t, auto count) {
    constexpr int N = decltype(count)::value;
    const uint16_t* w = matrix + size_t(block) * IN * ROWS;
    const float* x = input + t * stride;
    // Even and odd inputs are summed apart, so that one row of activations keeps the multipliers busy.
    vf even[N][VECTORS], odd[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) even[n][v] = odd[n][v] = zero();
    static_assert(IN % 2 == 0, "an even number of inputs");
    for (int k = 0; k < IN; k += 2, w += 2 * ROWS) {
      for (int v = 0; v < VECTORS; ++v) {
        const vf first = load_bf16(w + v * W), second = load_bf16(w + ROWS + v * W);
        for (int n = 0; n < N; ++n) {
          even[n][v] = fma(first, set1(x[n * stride + k]), even[n][v]);
          odd[n][v] = fma(second, set1(x[n * stride + k + 1]), odd[n][v]);
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      for (int v = 0; v < VECTORS; ++v) even[n][v] = ic::add(even[n][v], odd[n][v]);
      finish<OUT>(output, t + n, block, even[n]);
    }
  });
}

// int8 or int4 weights, int8 activations: [OUT/16][IN/GROUP] of the group's products (dot.hpp), then 16 bf16 scales.
template <int BITS, int OUT, int IN, int GROUP>
void linear_int(Threads& threads, const uint8_t* weights, const Quantized& input, int rows, Output output) {
  constexpr int BLOCKS = (OUT + ROWS - 1) / ROWS;
  constexpr int GROUPS = IN / GROUP;
  constexpr size_t GROUP_BYTES = group_bytes<BITS>(GROUP) + 2 * ROWS;
  constexpr int T = W == 16 ? 8 : 4;
  over_blocks<T>(threads, BLOCKS, rows, [&](int block, int t, auto count) {
    constexpr int N = decltype(count)::value;
    const uint8_t* w = weights + size_t(block) * GROUPS * GROUP_BYTES;
    vf sums[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) sums[n][v] = zero();
    for (int g = 0; g < GROUPS; ++g, w += GROUP_BYTES) {
      vf dots[N][VECTORS];
      dot_group<BITS, GROUP, N>(w, input.values + size_t(t) * IN + g * GROUP, IN,
                                input.sums + size_t(t) * GROUPS + g, GROUPS, dots);
      const auto* scales = reinterpret_cast<const uint16_t*>(w + group_bytes<BITS>(GROUP));
      for (int v = 0; v < VECTORS; ++v) {
        const vf scale = load_bf16(scales + v * W);
        for (int n = 0; n < N; ++n) {
          const vf both = mul(scale, set1(input.scales[size_t(t + n) * GROUPS + g]));
          sums[n][v] = fma(dots[n][v], both, sums[n][v]);
        }
      }
    }
    for (int n = 0; n < N; ++n) finish<OUT>(output, t + n, block, sums[n]);
  });
}

}  // namespace ic
