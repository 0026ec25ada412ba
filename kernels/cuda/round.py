"""A buffer as the operand of a product, where no other kernel could write it so."""

import triton
import triton.language as tl

from .operand import store_e4m3, store_operand, store_scale


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
    """Grid (rows, blocks of a row); with E4M3 a program goes over all blocks of a row, once for its scale."""
    row = tl.program_id(0).to(tl.int64)
    if E4M3:
        largest = tl.zeros([BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            largest = tl.maximum(largest, tl.abs(part(input, row, first, WIDTH, BLOCK)))
        inverse = store_scale(scales, row, tl.max(largest, axis=0))
        for first in range(0, WIDTH, BLOCK):
            store_e4m3(operand, row, first, part(input, row, first, WIDTH, BLOCK), inverse, WIDTH, BLOCK)
    else:
        first = tl.program_id(1) * BLOCK
        values = part(input, row, first, WIDTH, BLOCK)
        store_operand(operand, scales, row, first, values, WIDTH, BLOCK, GROUP, E4M3)


@triton.jit
def part(input, row, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns ``[first, first + BLOCK)``, zero beyond WIDTH."""
    columns = first + tl.arange(0, BLOCK)
    return tl.load(input + row * WIDTH + columns, mask=columns < WIDTH, other=0.0)
