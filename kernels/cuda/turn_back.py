"""Queries for the sinks of sequences that evicted tokens: turned back over the gap, as if it were closed."""

import triton
import triton.language as tl

SHIFT = tl.constexpr(4)
"""Numbers behind each query, of which the first is used: 16 bytes."""


@triton.jit
def turn_back(
    queries,
    cosine,
    sine,
    means,
    turned,
    query_stride,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTATED: tl.constexpr,
    MEANS: tl.constexpr,
):
    """Grid (rows, heads). ``queries`` [rows, heads, D] become ``turned`` [rows, heads, D + SHIFT] float32, by
    ``cosine`` and ``sine`` [rows, D / 2] of what their sequence evicted.

    Stored keys lack ``means`` [kv_heads, 2, D]: that takes the same from all scores of a query, but other
    from those of the query that is turned. What these lack stands behind it."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    HALF: tl.constexpr = D // 2
    pairs = tl.arange(0, BLOCK)
    inside = pairs < HALF
    source = queries + row * query_stride + head * D + pairs
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    target = turned + (row * tl.num_programs(1) + head) * (D + SHIFT)
    shift = 0.0
    if ROTATED:
        cosines = tl.load(cosine + row * HALF + pairs, mask=inside, other=0.0)
        sines = tl.load(sine + row * HALF + pairs, mask=inside, other=0.0)
        # By the angle the other way.
        back = first * cosines + second * sines
        after = second * cosines - first * sines
        if MEANS:
            mean = means + head // GROUP * (2 * D) + pairs
            lacks = (back - first) * tl.load(mean, mask=inside, other=0.0)
            lacks += (after - second) * tl.load(mean + HALF, mask=inside, other=0.0)
            shift = tl.sum(lacks, axis=0)
        first = back
        second = after
    tl.store(target + pairs, first, mask=inside)
    tl.store(target + HALF + pairs, second, mask=inside)
    tl.store(target + D, shift)
