"""``silu(gate) * up``, times what counts of it, rounded for the product that reads it."""

import triton
import triton.language as tl

from .operand import store_e4m3, store_operand, store_scale


@triton.jit
def gate(
    input,
    portion,
    operand,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
    PORTION: tl.constexpr,
):
    """Grid (rows, blocks of a row); with E4M3 a program goes over all blocks of a row, once for its scale. A
    row of ``input`` holds WIDTH gates, then what they are for; with PORTION all of it is times the sigmoid of
    the row's number in ``portion``."""
    row = tl.program_id(0).to(tl.int64)
    if E4M3:
        largest = tl.zeros([BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            largest = tl.maximum(largest, tl.abs(gated(input, portion, row, first, WIDTH, BLOCK, PORTION)))
        inverse = store_scale(scales, row, tl.max(largest, axis=0))
        for first in range(0, WIDTH, BLOCK):
            values = gated(input, portion, row, first, WIDTH, BLOCK, PORTION)
            store_e4m3(operand, row, first, values, inverse, WIDTH, BLOCK)
    else:
        first = tl.program_id(1) * BLOCK
        values = gated(input, portion, row, first, WIDTH, BLOCK, PORTION)
        store_operand(operand, scales, row, first, values, WIDTH, BLOCK, GROUP, E4M3)


@triton.jit
def gated(input, portion, row, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PORTION: tl.constexpr):
    """Columns ``[first, first + BLOCK)``, zero beyond WIDTH."""
    columns = first + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = tl.load(input + row * (2 * WIDTH) + columns, mask=inside, other=0.0)
    up = tl.load(input + row * (2 * WIDTH) + WIDTH + columns, mask=inside, other=0.0)
    values = gates / (1.0 + tl.exp(-gates)) * up
    if PORTION:
        values = values / (1.0 + tl.exp(-tl.load(portion + row)))
    return values
