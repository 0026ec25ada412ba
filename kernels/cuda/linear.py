"""Products with int4 and int8 weights: ``output = input @ weight.T``, 16 rows of weights interleaved.

A weight matrix ``[rows, cols]`` is stored in tiles of 16 rows and one group of inputs, tiles along the inputs
first. Of int8 a tile holds ``[16, group]`` bytes. Of int4 it holds two neighbouring groups: a byte has the
same place of the first one in its lower half and of the second one in its upper half, two's complement, so
that a shift and a mask give sixteen times the numbers of either, each a whole operand of the tensor cores.
Scales are bf16, ``[rows / 16, groups, 16]``. An odd last group has zeros beside it; so has a last tile.

Products of one group are exact: of bytes in int32, of bf16 inputs with bytes in float32.
"""

import triton
import triton.language as tl

from .bf16 import INTERPRETED, product, to_bf16

LOWER = tl.constexpr("{ shl.b32 $0, $1, 4; and.b32 $0, $0, 0xF0F0F0F0; }")
"""Sixteen times the numbers in the lower halves of four bytes."""


@triton.jit
def lower(bytes):
    """Sixteen times the numbers in the lower halves, in two instructions for four."""
    if INTERPRETED:
        return bytes << 4
    else:
        return tl.inline_asm_elementwise(LOWER, "=r,r", [bytes], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def add_group(
    total,
    input,
    scales,
    tile,
    weight_scale,
    m,
    group,
    rows,
    COLS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDED: tl.constexpr,
):
    """``total`` [M, N] with the products of ``tile`` [N, GROUP] and the inputs of ``group`` added."""
    GROUPS: tl.constexpr = COLS // GROUP
    inside = m < tl.where(group < GROUPS, rows, 0)
    columns = group * GROUP + tl.arange(0, GROUP)
    inputs = tl.load(input + m[:, None] * COLS + columns[None, :], mask=inside[:, None], other=0)
    if ROUNDED:
        sums = tl.dot(inputs, tl.trans(tile), out_dtype=tl.int32).to(tl.float32)
        sums = sums * tl.load(scales + m * GROUPS + group, mask=inside, other=0.0)[:, None]
    else:
        sums = product(inputs, tl.trans(to_bf16(tile.to(tl.float32))))
    return total + sums * weight_scale[None, :]


@triton.jit
def sum_products(
    input,
    scales,
    weight,
    weight_scales,
    m,
    n,
    first,
    rows,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N]: products of the inputs ``m``, zero from ``rows`` on, with the weight rows
    ``first + n``. A matrix of ROWS begins at ``first``, a multiple of 16."""
    HELD: tl.constexpr = 8 // BITS
    TILES: tl.constexpr = (COLS // GROUP + HELD - 1) // HELD
    PADDED: tl.constexpr = (ROWS + 15) // 16 * 16
    block = ((first + n) // 16).to(tl.int64)
    place = weight + block[:, None] * (TILES * 16 * GROUP)
    place += (n % 16)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    scale_place = weight_scales + block * (TILES * HELD * 16) + n % 16
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    held = n < PADDED
    for tile in range(TILES):
        bytes = tl.load(place + tile * (16 * GROUP), mask=held[:, None], other=0)
        factor = tl.load(scale_place + tile * (HELD * 16), mask=held, other=0.0).to(tl.float32)
        if BITS == 8:
            total = add_group(total, input, scales, bytes, factor, m, tile, rows, COLS, GROUP, ROUNDED)
        else:
            upper = tl.load(scale_place + tile * 32 + 16, mask=held, other=0.0).to(tl.float32)
            low, high = lower(bytes), bytes & -16
            factor, upper = factor * 0.0625, upper * 0.0625
            group = 2 * tile
            total = add_group(total, input, scales, low, factor, m, group, rows, COLS, GROUP, ROUNDED)
            total = add_group(total, input, scales, high, upper, m, group + 1, rows, COLS, GROUP, ROUNDED)
    return total


# A count is no reason to compile anew.
@triton.jit(do_not_specialize=["rows"])
def linear(
    input,
    scales,
    weight,
    weight_scales,
    bias,
    output,
    rows,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDED: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (blocks of weight rows, blocks of input ``rows``). With ROUNDED inputs are int8 with ``scales``,
    else bf16. skinny.cu does the same for few rows."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    total = sum_products(
        input,
        scales,
        weight,
        weight_scales,
        m,
        n,
        0,
        rows,
        ROWS,
        COLS,
        BITS,
        GROUP,
        ROUNDED,
        BLOCK_M,
        BLOCK_N,
    )
    inside = (m < rows)[:, None] & (n < ROWS)[None, :]
    target = m[:, None] * ROWS + n[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < ROWS, other=0.0).to(tl.float32)[None, :]
    if ADD:
        total += tl.load(output + target, mask=inside, other=0.0)
    tl.store(output + target, total, mask=inside)
