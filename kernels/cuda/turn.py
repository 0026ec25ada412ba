"""Norms of heads and the rotary embedding, of queries and keys, in place."""

import triton
import triton.language as tl


@triton.jit
def turn(
    buffer,
    cosine,
    sine,
    query_weight,
    key_weight,
    EPSILON: tl.constexpr,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
    ROTATED: tl.constexpr,
):
    """Grid (rows, heads), of rows of STRIDE numbers, from head FIRST on. Heads before QUERIES are queries,
    whose norm has a weight of its own."""
    row, head = tl.program_id(0).to(tl.int64), FIRST + tl.program_id(1)
    HALF: tl.constexpr = HEAD_DIM // 2
    pairs = tl.arange(0, BLOCK)
    inside = pairs < HALF
    place = buffer + row * STRIDE + head * HEAD_DIM + pairs
    first = tl.load(place, mask=inside, other=0.0)
    second = tl.load(place + HALF, mask=inside, other=0.0)
    if NORMED:
        mean = (tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)) / HEAD_DIM
        inverse = tl.rsqrt(mean + EPSILON)
        weight = query_weight
        if head >= QUERIES:
            weight = key_weight
        first = first * inverse * tl.load(weight + pairs, mask=inside, other=0.0).to(tl.float32)
        second = second * inverse * tl.load(weight + HALF + pairs, mask=inside, other=0.0).to(tl.float32)
    if ROTATED:
        cosines = tl.load(cosine + row * HALF + pairs, mask=inside, other=0.0)
        sines = tl.load(sine + row * HALF + pairs, mask=inside, other=0.0)
        turned = first * cosines - second * sines
        second = second * cosines + first * sines
        first = turned
    tl.store(place, first, mask=inside)
    tl.store(place + HALF, second, mask=inside)
