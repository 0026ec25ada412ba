"""``input / rms(input) * weight``, one program per row, rounded for the product that reads it."""

import triton
import triton.language as tl

from .operand import store_operand


@triton.jit
def norm(
    input,
    weight,
    output,
    operand,
    scales,
    EPSILON: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
    KEEP: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Grid (rows,). With KEEP the float32 values are written to ``output`` as well, or, where ROUND is not,
    alone."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(input + row * WIDTH + columns, mask=inside, other=0.0)
    mean = tl.sum(values * values, axis=0) / WIDTH
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    values = values * tl.rsqrt(mean + EPSILON) * factors
    if KEEP:
        tl.store(output + row * WIDTH + columns, values, mask=inside)
    if ROUND:
        store_operand(operand, scales, row, 0, values, WIDTH, BLOCK, GROUP, E4M3)
