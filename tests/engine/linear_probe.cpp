// Products of the CPU kernels alone, for the shapes of probe_shapes.hpp: INTEGER(bits, outputs, inputs, group) and
// FLOATS(outputs, inputs), numbered in that order.
#include "linear.hpp"
#include "linear_bf16.hpp"

using namespace ic;

namespace {

struct Call {
  Threads& threads;
  const uint8_t* weights;
  const float* input;
  int rows;
  Output output;
};

template <int BITS, int OUT, int IN, int GROUP>
void integer(const Call& call) {
  QuantizedRows rounded(size_t(call.rows), IN, GROUP);
  call.threads.run(call.rows, [&](int row, int) {
    quantize_row<IN, GROUP>(call.input + size_t(row) * IN, rounded, row, call.rows);
  });
  linear_int<BITS, OUT, IN, GROUP>(call.threads, call.weights, rounded, call.rows, call.output);
}

template <int OUT, int IN>
void floats(const Call& call) {
  linear_bf16<OUT, IN>(call.threads, call.weights, call.input, IN, call.rows, call.output);
}

using Product = void (*)(const Call&);
constexpr Product products[] = {
#define INTEGER(bits, outputs, inputs, group) integer<bits, outputs, inputs, group>,
#define FLOATS(outputs, inputs) floats<outputs, inputs>,
#include "probe_shapes.hpp"
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void probe_linear(int32_t shape, int32_t threads, const uint8_t* weights,
                                                                    const float* input, int32_t rows, float* output,
                                                                    int32_t stride, const uint16_t* bias, int32_t add) {
  Threads pool(threads);
  products[shape](Call{pool, weights, input, rows, {output, size_t(stride), bias, add != 0}});
}
