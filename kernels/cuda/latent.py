"""Latent attention of a few queries over exact and packed pages, split over the sequence.

All heads share one latent vector and one rotary key of each token. Queries come multiplied by what unfolds
keys from latent vectors, so that their scores are products with what is cached, and what is summed here is
latent vectors: whoever multiplies the sums by what unfolds values has the output of the heads (DeepSeek-V2,
arXiv 2405.04434, section 2.1.2).

One program takes the queries of one tile (a few tokens of one sequence, and ``GROUP`` query heads, as rows of
a matrix) over a share of the pages that they see in one form, and reads each vector once, as key and as
value. Shares are those of attend.py, and merge.py puts them together.

Over exact pages queries and softmax weights are rounded to bfloat16. Over packed pages, whose latent vectors
are float8, they are rounded to float16, queries relative to the largest number of their row."""

import triton
import triton.language as tl

from .bf16 import product, to_bf16
from .codes import FP8_UNIT
from .pages import Pages, read_values
from .seen import SEQUENCE, exact_part, hide, packed_part, rows_of, share
from .softmax import LOG2E, weigh

EVERYTHING = tl.constexpr(1 << 30)
"""A window that holds every position."""


@triton.jit
def latent(
    queries,
    parts,
    exact_pool,
    packed_pool,
    exact_table,
    packed_table,
    tiles,
    sequences,
    positions,
    sees,
    sums,
    logs,
    query_stride,
    part_stride,
    table_stride,
    exact_page,
    exact_place,
    packed_page,
    packed_place,
    scale,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    STEP: tl.constexpr,
    PAGE: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    TREE: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    LATENTS: tl.constexpr,
    KEYS: tl.constexpr,
    EXACT_LATENTS: tl.constexpr,
    EXACT_KEYS: tl.constexpr,
):
    """Grid (tiles, HEADS / GROUP rounded up, SPLITS). ``queries`` [rows, HEADS, RANK] for latent vectors;
    ``parts``, their rotary parts, ``STEP`` elements from head to head. README.md tells what the other
    arguments are."""
    tile, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(tiles + 2 * tile)
    if sequence < 0:
        return
    first_token = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(sequences + SEQUENCE * sequence)
    start = tl.load(sequences + SEQUENCE * sequence + 1)
    count = tl.load(sequences + SEQUENCE * sequence + 2)

    rows, row, last = rows_of(
        start, count, RECENT, 0, first_token, first_row, positions, sees, PAGE, TREE, TOKENS, GROUP, ROWS
    )
    lowest = tl.min(tl.where(rows.real, rows.position, 2147483647), axis=0)
    highest = tl.max(tl.where(rows.real, rows.position, 0), axis=0)
    head = group * GROUP + tl.arange(0, ROWS) % GROUP
    real = rows.real & (head < HEADS)
    query = queries + row * query_stride + head * RANK
    turn = parts + row * part_stride + head * STEP
    whose = (row * HEADS + head) * SPLITS + split

    if split < EXACT_SPLITS:
        first_sink, sinks, near, pages = exact_part(rows, lowest, last, 0, PAGE, SINK)
        table = exact_table + sequence * table_stride
        _sweep(
            Pages(exact_pool, table, exact_page, exact_place, first_sink, sinks, near, pages),
            share(split, EXACT_SPLITS, pages, PAGE, BLOCK),
            rows,
            real,
            query,
            turn,
            scale,
            sums + whose * RANK,
            logs + whose,
            True,
            PAGE,
            SINK,
            TREE,
            BLOCK,
            EXACT_LATENTS,
            EXACT_KEYS,
        )
    elif SPLITS > EXACT_SPLITS:
        first, pages = packed_part(rows, highest, 0, PAGE, SINK)
        table = packed_table + sequence * table_stride
        _sweep(
            Pages(packed_pool, table, packed_page, packed_place, 0, 0, first, pages),
            share(split - EXACT_SPLITS, SPLITS - EXACT_SPLITS, pages, PAGE, BLOCK),
            rows,
            real,
            query,
            turn,
            scale,
            sums + whose * RANK,
            logs + whose,
            False,
            PAGE,
            SINK,
            TREE,
            BLOCK,
            LATENTS,
            KEYS,
        )


@triton.jit
def _sweep(
    pages,
    blocks,
    rows,
    real,
    query,
    turn,
    scale,
    sums,
    logs,
    EXACT: tl.constexpr,
    PAGE: tl.constexpr,
    SINK: tl.constexpr,
    TREE: tl.constexpr,
    BLOCK: tl.constexpr,
    LATENTS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Attention over one share of ``pages``: the sums over its weights, and the logarithm of the weights'
    sum."""
    height: tl.constexpr = real.shape[0]
    float8: tl.constexpr = LATENTS[0][2] == "fp8"
    step, unit = tl.full((height,), 1.0, tl.float32), 1.0
    if float8:
        step, unit = _largest(query, real, LATENTS), FP8_UNIT
    operands = ()
    totals = ()
    for i in tl.static_range(len(LATENTS)):
        operands = operands + (_operand(query, real, step, float8, LATENTS[i]),)
        totals = totals + (tl.zeros((height, LATENTS[i][0]), tl.float32),)
    turns = ()
    for i in tl.static_range(len(KEYS)):
        turns = turns + (_operand(turn, real, step, False, KEYS[i]),)
    most = tl.full((height,), float("-inf"), tl.float32)
    total = tl.zeros((height,), tl.float32)

    for block in range(blocks[0], blocks[1]):
        first = block * BLOCK
        vectors = ()
        found = tl.zeros((height, BLOCK), tl.float32)
        for i in tl.static_range(len(LATENTS)):
            vectors = vectors + (read_values(pages, first, PAGE, BLOCK, LATENTS[i]),)
            found += product(operands[i], tl.trans(vectors[i]))
        scores = found * (step * unit)[:, None]
        for i in tl.static_range(len(KEYS)):
            scores += product(turns[i], tl.trans(read_values(pages, first, PAGE, BLOCK, KEYS[i])))
        scores = hide(scores * (scale * LOG2E), pages, rows, first, EVERYTHING, EXACT, PAGE, SINK, TREE)
        weights, fade, most, total = weigh(scores, most, total)
        weights = weights.to(tl.float16) if float8 else to_bf16(weights)
        mixed = ()
        for i in tl.static_range(len(LATENTS)):
            mixed = mixed + (totals[i] * fade[:, None] + product(weights, vectors[i]),)
        totals = mixed

    inverse = tl.where(total > 0.0, unit / total, 0.0)
    for i in tl.static_range(len(LATENTS)):
        columns = LATENTS[i][1] + tl.arange(0, LATENTS[i][0])
        tl.store(sums[:, None] + columns[None, :], totals[i] * inverse[:, None], mask=real[:, None])
    tl.store(logs, most + tl.log2(total), mask=real)


@triton.jit
def _largest(query, real, LATENTS: tl.constexpr):
    """The largest magnitude of each row; one where it is so small that its inverse would overflow."""
    largest = tl.zeros((real.shape[0],), tl.float32)
    for i in tl.static_range(len(LATENTS)):
        columns = LATENTS[i][1] + tl.arange(0, LATENTS[i][0])
        numbers = tl.load(query[:, None] + columns[None, :], mask=real[:, None], other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(numbers.to(tl.float32)), axis=1))
    return tl.where(largest > 1e-30, largest, 1.0)


@triton.jit
def _operand(source, real, step, FLOAT16: tl.constexpr, PIECE: tl.constexpr):
    """The piece's columns of each row, as bfloat16, or as float16 over ``step``."""
    columns = PIECE[1] + tl.arange(0, PIECE[0])
    numbers = tl.load(source[:, None] + columns[None, :], mask=real[:, None], other=0.0)
    if FLOAT16:
        return (numbers.to(tl.float32) / step[:, None]).to(tl.float16)
    elif source.dtype.element_ty == tl.float32:
        return to_bf16(numbers)
    else:
        return numbers
