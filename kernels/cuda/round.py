"""A buffer as the operand of a product, where no other kernel could write it so."""

import triton
import triton.language as tl

from .operand import store_row


@triton.jit
def round(
    input,
    operand,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
):
    """Grid (rows, blocks of a row); with E4M3 (rows,)."""
    store_row(operand, scales, tl.program_id(0).to(tl.int64), part, input, WIDTH, BLOCK, GROUP, E4M3)


@triton.jit
def part(input, row, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns ``[first, first + BLOCK)``, zero beyond WIDTH."""
    columns = first + tl.arange(0, BLOCK)
    return tl.load(input + row * WIDTH + columns, mask=columns < WIDTH, other=0.0)
