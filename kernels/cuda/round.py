"""A buffer as the operand of a product, where no other kernel could write it so."""

import triton
import triton.language as tl

from .operand import store_operand


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
    """Grid (rows, blocks of a row)."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    values = tl.load(input + row * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    store_operand(operand, scales, row, first, values, WIDTH, BLOCK, GROUP, E4M3)
