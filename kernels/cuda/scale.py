"""What a product of e4m3 numbers lacks: the scales of its rows and columns, and its bias."""

import triton
import triton.language as tl


@triton.jit
def scale(
    products,
    scales,
    weight_scales,
    bias,
    output,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of a row). ``products`` [rows, ROWS] are sums of unscaled numbers; ``scales`` has
    one for each of its rows, ``weight_scales`` one for each column."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < ROWS
    place = row * ROWS + columns
    factors = tl.load(scales + row) * tl.load(weight_scales + columns, mask=inside, other=0.0)
    values = tl.load(products + place, mask=inside, other=0.0) * factors
    if BIAS:
        values += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(output + place, mask=inside, other=0.0)
    tl.store(output + place, values, mask=inside)
