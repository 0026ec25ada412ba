"""What a product reads: bf16 numbers, or int8 ones with a float32 scale for every group of inputs.

Whoever computes the numbers writes them in this form, so that no kernel does nothing but round.
"""

import triton
import triton.language as tl

from .bf16 import to_bf16
from .codes import rint


@triton.jit
def store_operand(
    operand, scales, row, first, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr
):
    """Columns ``[first, first + BLOCK)`` of ``row``, zero beyond WIDTH. ``GROUP == 0`` means bf16; a group's
    scale is a 127th of its largest magnitude."""
    columns = first + tl.arange(0, BLOCK)
    place = row * WIDTH + columns
    if GROUP == 0:
        tl.store(operand + place, to_bf16(values), mask=columns < WIDTH)
    else:
        GROUPS: tl.constexpr = BLOCK // GROUP
        grouped = tl.reshape(values, [GROUPS, GROUP])
        largest = tl.max(tl.abs(grouped), axis=1)
        scale = tl.div_rn(largest, tl.full([GROUPS], 127.0, tl.float32))
        one = tl.full([GROUPS], 1.0, tl.float32)
        inverse = tl.where(scale > 0, tl.div_rn(one, tl.where(scale > 0, scale, one)), 0.0)
        rounded = tl.reshape(rint(grouped * inverse[:, None]), [BLOCK])
        tl.store(operand + place, rounded.to(tl.int8), mask=columns < WIDTH)
        group = first // GROUP + tl.arange(0, GROUPS)
        tl.store(scales + row * (WIDTH // GROUP) + group, scale, mask=group < WIDTH // GROUP)
