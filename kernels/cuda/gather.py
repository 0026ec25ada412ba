"""Rows of a table by their numbers: of the embedding's table, bf16, or of a buffer; float32 comes out."""

import triton
import triton.language as tl


@triton.jit
def gather(chosen, table, output, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of a row)."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    source = tl.load(chosen + row).to(tl.int64)
    values = tl.load(table + source * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    tl.store(output + row * WIDTH + columns, values.to(tl.float32), mask=columns < WIDTH)
