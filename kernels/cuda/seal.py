"""Compressing full exact pages: ``Codec.encode`` of runtime/kv/codec.py, into the words of codes.py."""

import triton
import triton.language as tl

from .bf16 import to_bf16
from .codes import close_fp8, close_nibbles, nearest, points, rows_of_word, store_words
from .transform import forward

TOKENS = tl.constexpr(16)
"""Tokens that one program encodes."""


@triton.jit
def seal(
    exact_pool,
    packed_pool,
    jobs,
    signs,
    key_table,
    value_table,
    exact_page,
    exact_place,
    packed_page,
    packed_place,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD: tl.constexpr,
    FP8_MOST: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_SCALES: tl.constexpr,
    VALUE_SCALES: tl.constexpr,
    KEY_TRANSFORM: tl.constexpr,
    VALUE_TRANSFORM: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    KEY_UNIT: tl.constexpr,
    VALUE_UNIT: tl.constexpr,
):
    """Grid (jobs, kv_heads, PAGE / 8): two programs for 16 tokens, one for keys and one for values. Job j
    encodes exact pool page ``jobs[j, 0]`` into packed pool page ``jobs[j, 1]``; none where they are
    negative."""
    job, head = tl.program_id(0), tl.program_id(1)
    first, side = tl.program_id(2) // 2 * TOKENS, tl.program_id(2) % 2
    source = tl.load(jobs + 2 * job)
    if source >= 0:
        numbers = exact_pool.to(tl.pointer_type(tl.bfloat16))
        numbers += 2 * (source.to(tl.int64) * exact_page + exact_place + head * (PAGE * D)) + side * (
            PAGE * D
        )
        target = (
            packed_pool + tl.load(jobs + 2 * job + 1).to(tl.int64) * packed_page + packed_place + head * HEAD
        )
        if side == 0:
            _encode(
                numbers,
                target,
                first,
                signs,
                key_table,
                head,
                True,
                D,
                PAGE,
                FP8_MOST,
                KEYS,
                KEY_SCALES,
                KEY_TRANSFORM,
                KEY_COLUMNS,
                KEY_UNIT,
            )
        else:
            _encode(
                numbers,
                target,
                first,
                signs,
                value_table,
                head,
                False,
                D,
                PAGE,
                FP8_MOST,
                VALUES,
                VALUE_SCALES,
                VALUE_TRANSFORM,
                VALUE_COLUMNS,
                VALUE_UNIT,
            )


@triton.jit
def _encode(
    numbers,
    target,
    first,
    signs,
    table,
    head,
    IS_KEYS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8_MOST: tl.constexpr,
    PIECES: tl.constexpr,
    SCALES: tl.constexpr,
    TRANSFORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Keys or values of 16 tokens of one head."""
    tokens = first + tl.arange(0, TOKENS)
    source = numbers + tokens * D
    real = tokens < PAGE
    columns = ()
    for i in tl.static_range(len(PIECES)):
        x = forward(source, real, signs, table, head, D, COLUMNS, TRANSFORM, False, PIECES[i])
        columns = columns + (x,)
    inverse = tl.full((TOKENS,), 1.0, tl.float32)
    if SCALES >= 0:
        size = tl.zeros((TOKENS,), tl.float32)
        # A vector with a scale has one segment.
        if PIECES[0][3] > 4:
            for i in tl.static_range(len(PIECES)):
                size = tl.maximum(size, tl.max(tl.abs(columns[i]), axis=1))
            most: tl.constexpr = (1 << PIECES[0][3]) - 1.0
            step = tl.div_rn(size, tl.full((TOKENS,), most, tl.float32)).to(tl.float16).to(tl.float32)
            scale = step
        else:
            for i in tl.static_range(len(PIECES)):
                size += tl.sum(columns[i] * columns[i], axis=1)
            size = tl.sqrt_rn(size)
            step = size * UNIT
        inverse = tl.where(step > 0.0, tl.div_rn(inverse, tl.where(step > 0.0, step, 1.0)), 0.0)
    squares = tl.zeros((TOKENS,), tl.float32)
    for i in tl.static_range(len(PIECES)):
        x = columns[i] * inverse[:, None]
        if PIECES[i][2] == "codes":
            codes = nearest(x, PIECES[i][3], PIECES[i][4])
            found = points(codes, PIECES[i][3], PIECES[i][4]).to(tl.float32)
            squares += tl.sum(found * found, axis=1)
            _store_codes(target, first, codes, IS_KEYS, PAGE, PIECES[i])
        else:
            _store_plain(target, tokens, x, FP8_MOST, PIECES[i])
    if SCALES >= 0:
        if PIECES[0][3] <= 4:
            scale = tl.div_rn(size, tl.sqrt_rn(squares))
        halves = target.to(tl.pointer_type(tl.float16))
        tl.store(halves + SCALES + tokens, scale.to(tl.float16))


@triton.jit
def _store_plain(target, tokens, x, FP8_MOST: tl.constexpr, PIECE: tl.constexpr):
    columns: tl.constexpr = PIECE[0]
    inside = PIECE[6][0][2] + tokens[:, None] * PIECE[6][0][3] + tl.arange(0, columns)[None, :]
    if PIECE[2] == "bf16":
        tl.store(target.to(tl.pointer_type(tl.bfloat16)) + inside, to_bf16(x))
    else:
        tl.store(target.to(tl.pointer_type(tl.uint8)) + inside, close_fp8(x, FP8_MOST))


@triton.jit
def _store_codes(target, first, codes, IS_KEYS: tl.constexpr, PAGE: tl.constexpr, PIECE: tl.constexpr):
    """``codes`` [16, columns of the piece] of the tokens from ``first`` on, into all strips."""
    if not IS_KEYS:
        codes = tl.trans(codes)
    for i in tl.static_range(len(PIECE[6])):
        _store_strip(target, first, codes, IS_KEYS, PIECE[6][i])


@triton.jit
def _store_strip(target, first, codes, IS_KEYS: tl.constexpr, STRIP: tl.constexpr):
    together: tl.constexpr = rows_of_word(STRIP[0])
    outer: tl.constexpr = codes.shape[0] // together
    # The first row and the first word; keys lie token by token, values column by column.
    if STRIP[0] == 8:
        inner: tl.constexpr = codes.shape[1]
    else:
        inner: tl.constexpr = codes.shape[1] // 8
    if IS_KEYS:
        place = STRIP[2] + first // together * STRIP[3]
    elif STRIP[0] == 8:
        place = STRIP[2] + first
    else:
        place = STRIP[2] + first // 8
    inside = place + tl.arange(0, outer)[:, None] * STRIP[3] + tl.arange(0, inner)[None, :]
    if STRIP[0] == 8:
        tl.store(target.to(tl.pointer_type(tl.uint8)) + inside, codes.to(tl.uint8))
    else:
        words = close_nibbles((codes >> STRIP[1]) & ((1 << STRIP[0]) - 1))
        store_words(target + inside, STRIP[4], words, STRIP[0])
