"""What a product reads: bf16 numbers, int8 ones with a float32 scale for every group of inputs, or e4m3 ones
with a scale for the row.

Whoever computes the numbers writes them in this form, so that no kernel does nothing but round.
"""

import triton
import triton.language as tl

from .bf16 import to_bf16
from .codes import close_fp8, rint


@triton.jit
def store_row(
    operand,
    scales,
    row,
    values: tl.constexpr,
    source,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
):
    """What the function ``values`` makes of ``source``, ``row`` and a first column: BLOCK columns, zero
    beyond WIDTH. With E4M3 all of the row, once for its scale and once more; else the program's own block."""
    if E4M3:
        largest = tl.zeros([BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            largest = tl.maximum(largest, tl.abs(values(source, row, first, WIDTH, BLOCK)))
        inverse = store_scale(scales, row, tl.max(largest, axis=0))
        for first in range(0, WIDTH, BLOCK):
            store_e4m3(operand, row, first, values(source, row, first, WIDTH, BLOCK), inverse, WIDTH, BLOCK)
    else:
        first = tl.program_id(1) * BLOCK
        own = values(source, row, first, WIDTH, BLOCK)
        store_operand(operand, scales, row, first, own, WIDTH, BLOCK, GROUP, E4M3)


@triton.jit
def store_operand(
    operand,
    scales,
    row,
    first,
    values,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    E4M3: tl.constexpr,
):
    """Columns ``[first, first + BLOCK)`` of ``row``, zero beyond WIDTH. ``GROUP == 0`` means bf16; a group's
    scale is a 127th of its largest magnitude. With E4M3 the columns are all of the row."""
    columns = first + tl.arange(0, BLOCK)
    place = row * WIDTH + columns
    if GROUP == 0:
        tl.store(operand + place, to_bf16(values), mask=columns < WIDTH)
    elif E4M3:
        inverse = store_scale(scales, row, tl.max(tl.abs(values), axis=0))
        store_e4m3(operand, row, first, values, inverse, WIDTH, BLOCK)
    else:
        GROUPS: tl.constexpr = BLOCK // GROUP
        grouped = tl.reshape(values, [GROUPS, GROUP])
        scale, inverse = step_of(tl.max(tl.abs(grouped), axis=1), 127.0)
        rounded = tl.reshape(rint(grouped * inverse[:, None]), [BLOCK])
        tl.store(operand + place, rounded.to(tl.int8), mask=columns < WIDTH)
        group = first // GROUP + tl.arange(0, GROUPS)
        tl.store(scales + row * (WIDTH // GROUP) + group, scale, mask=group < WIDTH // GROUP)


@triton.jit
def store_scale(scales, row, largest):
    """The scale of a whole row of e4m3 numbers, a 448th of its largest magnitude; its inverse comes back."""
    scale, inverse = step_of(largest, 448.0)
    tl.store(scales + row, scale)
    return inverse


@triton.jit
def store_e4m3(operand, row, first, values, inverse, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns ``[first, first + BLOCK)`` of ``row``, over the scale."""
    columns = first + tl.arange(0, BLOCK)
    rounded = close_fp8(values * inverse, 448.0).to(tl.int8, bitcast=True)
    tl.store(operand + row * WIDTH + columns, rounded, mask=columns < WIDTH)


@triton.jit
def step_of(largest, MOST: tl.constexpr):
    """What makes MOST of ``largest``, and its inverse; 0 where that is 0."""
    scale = tl.div_rn(largest, MOST)
    return scale, tl.where(scale > 0, tl.div_rn(1.0, tl.where(scale > 0, scale, 1.0)), 0.0)
