"""Products with the experts that tokens chose, as one launch for all of them.

A choice is a token and one of its experts: number ``token * CHOICES + place``. Choices are dealt to tiles of
TILE, each of one expert, in their order; what is left of an expert's last tile is -1. ``owners`` tells the
expert of each tile, -1 where there is none. All of it is made on the device, and no number of it is needed to
launch: a grid has programs for the most tiles that there can be, and those without an owner end at once.
"""

import triton
import triton.language as tl

from .bf16 import product
from .codes import product_e4m3
from .linear import sum_products


@triton.jit(do_not_specialize=["rows"])
def count(chosen, counts, rows, CHOICES: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (experts,): how many choices fell on each."""
    expert = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, rows * CHOICES, BLOCK):
        index = first + tl.arange(0, BLOCK)
        total += (tl.load(chosen + index, mask=index < rows * CHOICES, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["rows"])
def deal(
    chosen,
    counts,
    choices,
    owners,
    rows,
    CHOICES: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (experts,): each deals its choices to its tiles, behind those of the experts before it. The last
    one tells of the tiles that nobody owns."""
    expert = tl.program_id(0)
    experts = tl.arange(0, WIDE)
    tiles = (tl.load(counts + experts, mask=experts < EXPERTS, other=0) + TILE - 1) // TILE
    before = tl.sum(tl.where(experts < expert, tiles, 0), axis=0)
    own = tl.sum(tl.where(experts == expert, tiles, 0), axis=0)
    lanes = tl.arange(0, BLOCK)
    done = before * 0
    for first in range(0, rows * CHOICES, BLOCK):
        index = first + lanes
        mine = tl.load(chosen + index, mask=index < rows * CHOICES, other=-1) == expert
        ahead = tl.cumsum(mine.to(tl.int32), axis=0) - 1
        tl.store(choices + before * TILE + done + ahead, index, mask=mine)
        done += tl.sum(mine.to(tl.int32), axis=0)
    rest = done + tl.arange(0, TILE)
    tl.store(choices + before * TILE + rest, rest * 0 - 1, mask=rest < own * TILE)
    for first in range(0, own, BLOCK):
        tl.store(owners + before + first + lanes, lanes * 0 + expert, mask=first + lanes < own)
    if expert == EXPERTS - 1:
        most = tl.minimum(rows * CHOICES, (rows * CHOICES + TILE - 1) // TILE + EXPERTS)
        for first in range(before + own, most, BLOCK):
            tl.store(owners + first + lanes, lanes * 0 - 1, mask=first + lanes < most)


@triton.jit
def multiply(
    input,
    weight,
    choices,
    owners,
    output,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (blocks of an expert's ROWS, tiles): ``output`` [choices, ROWS] from bf16 numbers. ``input`` has a
    row for every SHARED choices."""
    tile = tl.program_id(1)
    expert = tl.load(owners + tile)
    if expert >= 0:
        choice = tl.load(choices + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        m = tl.maximum(choice, 0) // SHARED
        places = weight + (expert.to(tl.int64) * ROWS + n)[:, None] * COLS
        total = tl.zeros([TILE, BLOCK_N], tl.float32)
        for first in range(0, COLS, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            left = (choice >= 0)[:, None] & (k < COLS)[None, :]
            right = (n < ROWS)[:, None] & (k < COLS)[None, :]
            values = tl.load(input + m[:, None] * COLS + k[None, :], mask=left, other=0.0)
            factors = tl.load(places + k[None, :], mask=right, other=0.0)
            total += product(values, tl.trans(factors))
        inside = (choice >= 0)[:, None] & (n < ROWS)[None, :]
        tl.store(output + choice[:, None] * ROWS + n[None, :], total, mask=inside)


@triton.jit
def multiply_e4m3(
    input,
    scales,
    weight,
    weight_scales,
    choices,
    owners,
    output,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The same from bytes of e4m3 numbers: ``scales`` has one for each row of ``input``, ``weight_scales``
    one for each row of the experts."""
    tile = tl.program_id(1)
    expert = tl.load(owners + tile)
    if expert >= 0:
        choice = tl.load(choices + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        m = tl.maximum(choice, 0) // SHARED
        row = expert.to(tl.int64) * ROWS + n
        total = tl.zeros([TILE, BLOCK_N], tl.float32)
        for first in range(0, COLS, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            left = (choice >= 0)[:, None] & (k < COLS)[None, :]
            right = (n < ROWS)[:, None] & (k < COLS)[None, :]
            values = tl.load(input + m[:, None] * COLS + k[None, :], mask=left, other=0)
            factors = tl.load(weight + row[:, None] * COLS + k[None, :], mask=right, other=0)
            total += product_e4m3(values, tl.trans(factors))
        total *= tl.load(scales + m)[:, None]
        total *= tl.load(weight_scales + row, mask=n < ROWS, other=0.0)[None, :]
        inside = (choice >= 0)[:, None] & (n < ROWS)[None, :]
        tl.store(output + choice[:, None] * ROWS + n[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def multiply_codes(
    input,
    scales,
    weight,
    weight_scales,
    choices,
    owners,
    output,
    rows,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROUNDED: tl.constexpr,
    CHOICES: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same with weights as ``linear.py`` reads them; ROWS is a multiple of 16."""
    tile = tl.program_id(1)
    expert = tl.load(owners + tile)
    if expert >= 0:
        choice = tl.load(choices + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        inputs = rows * (CHOICES // SHARED)
        m = tl.where(choice >= 0, tl.maximum(choice, 0) // SHARED, inputs)
        total = sum_products(
            input,
            scales,
            weight,
            weight_scales,
            m,
            n,
            expert * ROWS,
            inputs,
            ROWS,
            COLS,
            BITS,
            GROUP,
            ROUNDED,
            TILE,
            BLOCK_N,
        )
        inside = (choice >= 0)[:, None] & (n < ROWS)[None, :]
        tl.store(output + choice[:, None] * ROWS + n[None, :], total, mask=inside)


@triton.jit
def combine(products, shares, output, CHOICES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of a row): shares of the products of a row's choices are added to ``output``, in the
    order of the choices."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for place in range(CHOICES):
        choice = row * CHOICES + place
        values = tl.load(products + choice * WIDTH + columns, mask=inside, other=0.0)
        total += values * tl.load(shares + choice)
    total += tl.load(output + row * WIDTH + columns, mask=inside, other=0.0)
    tl.store(output + row * WIDTH + columns, total, mask=inside)
