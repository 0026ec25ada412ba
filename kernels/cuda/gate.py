"""``silu(gate) * up``, rounded for the product that reads it."""

import triton
import triton.language as tl

from .operand import store_operand


@triton.jit
def gate(
    input,
    operand,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
):
    """Grid (rows, blocks of a row). A row of ``input`` holds WIDTH gates, then what they are for."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = tl.load(input + row * (2 * WIDTH) + columns, mask=inside, other=0.0)
    up = tl.load(input + row * (2 * WIDTH) + WIDTH + columns, mask=inside, other=0.0)
    values = gates / (1.0 + tl.exp(-gates)) * up
    store_operand(operand, scales, row, first, values, WIDTH, BLOCK, GROUP, E4M3)
