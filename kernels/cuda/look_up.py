"""Codes of up to 4 bits to the float16 numbers that tensor cores multiply, eight to a word.

On a GPU with a byte permute (codegen/cuda_look_up.py), which the interpreter does not know.
"""

import triton
import triton.language as tl

from .bf16 import INTERPRETED
from .codes import open_nibbles, points


@triton.jit
def look_up(words, BITS: tl.constexpr, EXCESS: tl.constexpr, INSTRUCTIONS: tl.constexpr):
    """Words of nibbles [outer, W] to float16 [outer, 8 W]: the integers of their codes."""
    if INTERPRETED:
        return points(open_nibbles(words), BITS, EXCESS).to(tl.float16)
    else:
        found = tl.inline_asm_elementwise(
            INSTRUCTIONS,
            "=h,=h,=h,=h,=h,=h,=h,=h,r",
            (words,),
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )
        even = tl.join(tl.join(found[0], found[4]), tl.join(found[2], found[6]))
        odd = tl.join(tl.join(found[1], found[5]), tl.join(found[3], found[7]))
        return tl.reshape(tl.join(even, odd), (words.shape[0], 8 * words.shape[1]))
