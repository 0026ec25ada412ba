"""``silu(gate) * up``, times what counts of it, rounded for the product that reads it."""

import triton
import triton.language as tl

from .operand import store_row


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
    """Grid (rows, blocks of a row); with E4M3 (rows,). A row of ``input`` holds WIDTH gates, then what they
    are for; with PORTION all of it is times the sigmoid of the row's number in ``portion``."""
    row = tl.program_id(0).to(tl.int64)
    if PORTION:
        store_row(operand, scales, row, portioned, (input, portion), WIDTH, BLOCK, GROUP, E4M3)
    else:
        store_row(operand, scales, row, gated, input, WIDTH, BLOCK, GROUP, E4M3)


@triton.jit
def portioned(source, row, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """``gated`` times the sigmoid."""
    return gated(source[0], row, first, WIDTH, BLOCK) / (1.0 + tl.exp(-tl.load(source[1] + row)))


@triton.jit
def gated(input, row, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns ``[first, first + BLOCK)``, zero beyond WIDTH."""
    columns = first + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = tl.load(input + row * (2 * WIDTH) + columns, mask=inside, other=0.0)
    up = tl.load(input + row * (2 * WIDTH) + WIDTH + columns, mask=inside, other=0.0)
    return gates / (1.0 + tl.exp(-gates)) * up
