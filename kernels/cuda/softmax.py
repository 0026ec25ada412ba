"""Softmax over what a row has seen so far, in powers of two."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def weigh(scores, most, total):
    """Weights of ``scores`` [rows, tokens] relative to each row's largest so far, by how much earlier weights
    and their ``total`` fade, the new largest, and the new total. At first ``most`` is minus infinity."""
    higher = tl.maximum(most, tl.max(scores, axis=1))
    # A row that has seen nothing yet has no maximum to take away.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    fade = tl.exp2(most - safe)
    weights = tl.exp2(scores - safe[:, None])
    return weights, fade, higher, total * fade + tl.sum(weights, axis=1)
