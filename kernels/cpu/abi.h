/* The engine's C interface. runtime/engines/cpu.py mirrors these structures; IC_ABI changes with them. */
#ifndef IC_ABI_H
#define IC_ABI_H

#include <stdint.h>

#define IC_ABI 3

#ifdef __cplusplus
extern "C" {
#endif

/* One sequence's share of a step: see SequenceStep and Sampling in runtime/step.py. */
typedef struct {
  const int32_t* tokens;
  const int32_t* parents; /* null: a chain */
  const int32_t* exact;   /* page table, `pages` entries, -1 for none */
  const int32_t* packed; /* null: nothing is compressed, and every page is seen exact */
  const uint32_t* mask; /* null: every token is allowed */
  const int32_t* adjust_ids;
  const float* adjust_bias;
  const float* adjust_penalty;
  const float* features; /* [count][width], of a program that is fed some, else null */
  uint64_t seed;
  int32_t count; /* new tokens */
  int32_t start;
  int32_t accepted;
  int32_t sealed;
  int32_t pages;
  int32_t outputs;
  int32_t adjust_count;
  int32_t top_k;
  float temperature;
  float top_p;
  float min_p;
  int32_t evicted;
} ic_sequence;

typedef struct ic_engine ic_engine;

int32_t ic_abi(void);
const char* ic_program(void); /* sha256 of the Program, hexadecimal */

/* Tries the processor, reads the weights and allocates pools and buffers. Returns 0, or one of these, and no engine:
   IC_REFUSED, with the reason in `error`; IC_NOT_PERMITTED, the system does not let this process use the processor's matrix
   tiles; IC_WRONG_PRODUCTS, they do not give the products that its vectors give. */
#define IC_REFUSED 1
#define IC_NOT_PERMITTED 3
#define IC_WRONG_PRODUCTS 4
int32_t ic_open(const char* weights, int32_t threads, ic_engine** engine, char* error, int32_t error_size);
void ic_close(ic_engine* engine);

/* which: 0 exact, 1 packed. */
uint8_t* ic_pool(ic_engine* engine, int32_t which, uint64_t* bytes);

/* Runs the batch. `sampled` takes one token per output row; `logits` [rows][logits] and `hidden` [rows][width], which the
   Program has of each output or of each new token, may be null.
   Returns 0, or one of these with the reason in `error`: IC_REFUSED, then nothing was computed; IC_NOT_FINITE, a key or a value
   that is not a finite number: the pages of the step's new tokens may hold anything. */
#define IC_NOT_FINITE 2
int32_t ic_step(ic_engine* engine, const ic_sequence* sequences, int32_t count, int32_t* sampled, float* logits,
                float* hidden, char* error, int32_t error_size);

#ifdef __cplusplus
}
#endif
#endif
