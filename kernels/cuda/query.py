"""Factors of queries in the domain of the columns, once per token: the integers that codes are multiplied
by."""

import triton
import triton.language as tl

from .codes import rint
from .transform import forward


@triton.jit
def query(
    queries,
    signs,
    table,
    factors,
    steps,
    query_stride,
    scale,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TRANSFORM: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (rows, kv_heads). ``queries`` [rows, heads, D] times ``scale`` become ``factors`` [rows, heads, D]
    float16 and ``steps`` [rows, heads, SEGMENTS] float32: of each segment of columns the largest magnitude is
    127.

    Factors of codes of up to 4 bits are integers, as in runtime/kv/rounding.py; of wider codes and of float8
    they are what float16 holds, where the slow form keeps 16 bits or all."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member = tl.arange(0, HEIGHT)
    real = member < GROUP
    source = queries + row * query_stride + (head * GROUP + member) * D
    whose = row * (tl.num_programs(1) * GROUP) + head * GROUP + member
    columns = ()
    for i in tl.static_range(len(KEYS)):
        x = forward(source, real, signs, table, head, D, COLUMNS, TRANSFORM, True, KEYS[i])
        columns = columns + (x * scale,)
    for segment in tl.static_range(SEGMENTS):
        largest = tl.zeros((HEIGHT,), tl.float32)
        for i in tl.static_range(len(KEYS)):
            if KEYS[i][5] == segment:
                largest = tl.maximum(largest, tl.max(tl.abs(columns[i]), axis=1))
        step = tl.div_rn(largest, tl.full((HEIGHT,), 127.0, tl.float32))
        # The inverse of a smaller step would overflow.
        counts = largest > 1e-30
        inverse = tl.where(
            counts, tl.div_rn(tl.full((HEIGHT,), 1.0, tl.float32), tl.where(counts, step, 1.0)), 0.0
        )
        for i in tl.static_range(len(KEYS)):
            if KEYS[i][5] == segment:
                _store(factors + whose * D, columns[i] * inverse[:, None], real, KEYS[i])
        tl.store(steps + whose * SEGMENTS + segment, step, mask=real)


@triton.jit
def _store(out, numbers, real, PIECE: tl.constexpr):
    columns: tl.constexpr = PIECE[0]
    if PIECE[2] == "codes" and PIECE[3] <= 4:
        numbers = rint(numbers)
    pointers = out[:, None] + PIECE[1] + tl.arange(0, columns)[None, :]
    tl.store(pointers, numbers.to(tl.float16), mask=real[:, None])
