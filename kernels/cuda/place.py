"""Columns of one buffer to columns of another."""

import triton
import triton.language as tl


@triton.jit
def place(
    input,
    output,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    OUTPUT_FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of WIDTH): from column FIRST of rows of STRIDE numbers to column OUTPUT_FIRST of
    rows of OUTPUT_STRIDE."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(input + row * STRIDE + FIRST + columns, mask=inside, other=0.0)
    tl.store(output + row * OUTPUT_STRIDE + OUTPUT_FIRST + columns, values, mask=inside)
