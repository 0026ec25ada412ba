"""Attention of a few queries over exact and packed pages, split over the sequence.

One program takes the queries of one tile (a few tokens of one sequence, and all query heads of one key-value
head, as rows of a matrix) over a share of the pages that they see in one form. The first ``EXACT_SPLITS``
shares are of exact pages, the others of packed ones; merge.py puts shares together. Codes are unpacked once
for all rows, and their integers multiplied on tensor cores; scales of keys multiply scores, those of values
softmax weights.

Factors of queries (query.py) are integers, and sums of their products with integers of codes of up to 4 bits
are exact in float32: scores are those of the slow form. Softmax weights are rounded to float16 (bfloat16
where values are bfloat16), which is finer than the bytes of the slow form.

Slots and positions are counted as if what a sequence evicted had never been, as its page tables are. Sinks
are seen so by queries that turn_back.py turned back over the gap."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .bf16 import product, to_bf16
from .codes import FP8_UNIT
from .pages import Pages, read_keys, read_scales, read_values
from .seen import SEQUENCE, exact_part, hide, packed_part, rows_of, share
from .softmax import LOG2E, weigh
from .turn_back import SHIFT

EVERY = tl.constexpr(1 << 24)
"""More pages than a sequence has."""


class Target(NamedTuple):
    """Where a program's sums go."""

    sums: Any
    logs: Any
    first_row: Any
    first_token: Any
    head: Any
    split: Any


@triton.jit
def attend(
    queries,
    factors,
    steps,
    exact_pool,
    packed_pool,
    exact_table,
    packed_table,
    tiles,
    sequences,
    positions,
    sees,
    turned,
    sums,
    logs,
    query_stride,
    table_stride,
    exact_page,
    exact_place,
    packed_page,
    packed_place,
    scale,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    TREE: tl.constexpr,
    EVICTS: tl.constexpr,
    CHECKED: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_SCALES: tl.constexpr,
    VALUE_SCALES: tl.constexpr,
    EXACT_KEYS: tl.constexpr,
    EXACT_VALUES: tl.constexpr,
):
    """Grid (tiles, KV_HEADS, SPLITS); README.md tells what the arguments are."""
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(tiles + 2 * tile)
    if sequence < 0:
        return
    first_token = tl.load(tiles + 2 * tile + 1)
    own = sequences + SEQUENCE * sequence
    first_row = tl.load(own)
    start = tl.load(own + 1)
    count = tl.load(own + 2)
    recent = RECENT
    gap = 0
    if CHECKED:
        told = tl.load(own + 3)
        # Of what compresses nothing the complement: all its pages are recent.
        recent = tl.where(told < 0, EVERY, RECENT)
        gap = tl.maximum(told, ~told)
    elif EVICTS:
        gap = tl.load(own + 3)
    start -= gap

    rows, row, last = rows_of(
        start,
        count,
        recent,
        gap,
        first_token,
        first_row,
        positions,
        sees,
        PAGE,
        TREE,
        TOKENS,
        GROUP,
        ROWS,
    )
    lowest = tl.min(tl.where(rows.real, rows.position, 2147483647), axis=0)
    highest = tl.max(tl.where(rows.real, rows.position, 0), axis=0)
    # Pages before this one are behind every row's window.
    behind = tl.maximum(lowest - window + 1, 0) // PAGE
    whose = _whose(first_row, first_token, head, ROWS, GROUP, KV_HEADS)
    query = queries + row * query_stride + (head * GROUP + tl.arange(0, ROWS) % GROUP) * D
    target = Target(sums, logs, own, first_token, head, split)

    if split < EXACT_SPLITS:
        first_sink, sinks, near, count = exact_part(rows, lowest, last, behind, PAGE, SINK)
        table = exact_table + sequence * table_stride
        pages = Pages(
            exact_pool, table, exact_page, exact_place + head * (PAGE * D), first_sink, sinks, near, count
        )
        blocks = share(split, EXACT_SPLITS, count, PAGE, BLOCK)
        _sweep(
            pages,
            blocks,
            rows,
            query,
            query,
            turned + whose * (D + SHIFT),
            scale,
            window,
            target,
            True,
            EVICTS,
            GROUP,
            KV_HEADS,
            D,
            SPLITS,
            PAGE,
            SINK,
            TREE,
            BLOCK,
            1,
            EXACT_KEYS,
            EXACT_VALUES,
            -1,
            -1,
        )
    elif SPLITS > EXACT_SPLITS:
        first, count = packed_part(rows, highest, behind, PAGE, SINK)
        table = packed_table + sequence * table_stride
        pages = Pages(packed_pool, table, packed_page, packed_place + head * HEAD, 0, 0, first, count)
        blocks = share(split - EXACT_SPLITS, SPLITS - EXACT_SPLITS, count, PAGE, BLOCK)
        _sweep(
            pages,
            blocks,
            rows,
            query if KEYS[0][2] == "bf16" else factors + whose * D,
            steps + whose * SEGMENTS,
            query,
            scale,
            window,
            target,
            False,
            False,
            GROUP,
            KV_HEADS,
            D,
            SPLITS,
            PAGE,
            SINK,
            TREE,
            BLOCK,
            SEGMENTS,
            KEYS,
            VALUES,
            KEY_SCALES,
            VALUE_SCALES,
        )


@triton.jit
def _whose(first_row, first_token, head, ROWS: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr):
    """Each row's place among all query heads of the batch."""
    index = tl.arange(0, ROWS)
    row = (first_row + first_token + index // GROUP).to(tl.int64)
    return row * (KV_HEADS * GROUP) + head * GROUP + index % GROUP


@triton.jit
def _sweep(
    pages,
    blocks,
    rows,
    query,
    steps,
    turned,
    scale,
    window,
    target,
    EXACT: tl.constexpr,
    EVICTS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    SINK: tl.constexpr,
    TREE: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_SCALES: tl.constexpr,
    VALUE_SCALES: tl.constexpr,
):
    """Attention over one share of ``pages``: the sums over its weights, and the logarithm of the weights'
    sum. Where ``EVICTS`` its sinks are seen by queries ``turned``."""
    height: tl.constexpr = rows.real.shape[0]
    operands = ()
    for i in tl.static_range(len(KEYS)):
        operands = operands + (_load(query, rows.real, KEYS[i]),)
    factors = ()
    for i in tl.static_range(SEGMENTS):
        if KEYS[0][2] == "bf16":
            factors = factors + (tl.full((height,), 1.0, tl.float32) * (scale * LOG2E),)
        elif KEYS[0][2] == "fp8":
            factors = factors + (tl.load(steps + i, mask=rows.real, other=0.0) * (FP8_UNIT * LOG2E),)
        else:
            factors = factors + (tl.load(steps + i, mask=rows.real, other=0.0) * LOG2E,)
    totals = ()
    for i in tl.static_range(len(VALUES)):
        totals = totals + (tl.zeros((height, VALUES[i][0]), tl.float32),)
    most = tl.full((height,), float("-inf"), tl.float32)
    total = tl.zeros((height,), tl.float32)

    for block in range(blocks[0], blocks[1]):
        first = block * BLOCK
        scores = tl.zeros((height, BLOCK), tl.float32)
        for i in tl.static_range(len(KEYS)):
            found = product(operands[i], read_keys(pages, first, PAGE, BLOCK, KEYS[i]))
            scores += found * factors[KEYS[i][5]][:, None]
        if EVICTS:
            scores = _see_sinks(scores, pages, rows, turned, factors[0], first, D, PAGE, BLOCK, KEYS)
        if KEY_SCALES >= 0:
            scores *= read_scales(pages, first, PAGE, BLOCK, KEY_SCALES)[None, :]
        scores = hide(scores, pages, rows, first, window, EXACT, PAGE, SINK, TREE)

        weights, fade, most, total = weigh(scores, most, total)

        if VALUE_SCALES >= 0:
            scales = read_scales(pages, first, PAGE, BLOCK, VALUE_SCALES)
            # float16 holds what is relative to the block's largest.
            unit = tl.maximum(tl.max(scales, axis=0), 1e-30)
            weights *= (scales * (1.0 / unit))[None, :]
        elif VALUES[0][2] == "fp8":
            unit = FP8_UNIT
        else:
            unit = 1.0
        weights = to_bf16(weights) if VALUES[0][2] == "bf16" else weights.to(tl.float16)
        mixed = ()
        for i in tl.static_range(len(VALUES)):
            found = product(weights, read_values(pages, first, PAGE, BLOCK, VALUES[i]))
            mixed = mixed + (totals[i] * fade[:, None] + found * unit,)
        totals = mixed

    inverse = tl.where(total > 0.0, 1.0 / total, 0.0)
    # The first row is read anew, lest the addresses take registers in the loop.
    first_row = tl.load(target.first_row, volatile=True)
    whose = _whose(first_row, target.first_token, target.head, height, GROUP, KV_HEADS)
    out = target.sums + (whose * SPLITS + target.split) * D
    for i in tl.static_range(len(VALUES)):
        _store(out, totals[i] * inverse[:, None], rows.real, VALUES[i])
    tl.store(target.logs + whose * SPLITS + target.split, most + tl.log2(total), mask=rows.real)


@triton.jit
def _see_sinks(
    scores,
    pages,
    rows,
    turned,
    factor,
    first,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
):
    """``scores`` of a block of exact pages, those of sinks by queries ``turned``, and what these lack."""
    if first < pages.sinks * PAGE:
        found = tl.zeros((rows.real.shape[0], BLOCK), tl.float32)
        for i in tl.static_range(len(KEYS)):
            found += product(_load(turned, rows.real, KEYS[i]), read_keys(pages, first, PAGE, BLOCK, KEYS[i]))
        found += tl.load(turned + D, mask=rows.real, other=0.0)[:, None]
        sinks = first + tl.arange(0, BLOCK) < pages.sinks * PAGE
        scores = tl.where(sinks[None, :], found * factor[:, None], scores)
    return scores


@triton.jit
def _load(source, real, PIECE: tl.constexpr):
    columns: tl.constexpr = PIECE[0]
    pointers = source[:, None] + PIECE[1] + tl.arange(0, columns)[None, :]
    numbers = tl.load(pointers, mask=real[:, None], other=0.0)
    if PIECE[2] == "bf16" and source.dtype.element_ty == tl.float32:
        numbers = to_bf16(numbers)
    return numbers


@triton.jit
def _store(out, numbers, real, PIECE: tl.constexpr):
    columns: tl.constexpr = PIECE[0]
    tl.store(out[:, None] + PIECE[1] + tl.arange(0, columns)[None, :], numbers, mask=real[:, None])
