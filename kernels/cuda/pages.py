"""Pages that a program reads, one after the other: where they lie, and tiles of their keys and values.

Tokens are counted along the list of these pages: first some sinks, then pages in a row. A piece is a power of
two of neighbouring columns in one form, described by a tuple (codegen/cuda_pages.py): columns, the first of
them, kind, bits of a code, excess of its integers (codes.py), segment, strips, instructions (look_up.py); a
strip is bits, shift, place in the head's part of the page, words from row to row, words from plane to plane.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .codes import load_words, open_fp8, open_nibbles, rows_of_word, wide_points
from .look_up import look_up


class Pages(NamedTuple):
    """``count`` pages of a sequence: ``sinks`` from page ``first_sink`` on, the rest from page ``next`` on.

    ``table`` tells where they lie in ``pool``, whose pages are ``size`` elements; ``place`` is where a page
    keeps this layer's part of this head."""

    pool: Any
    table: Any
    size: Any
    place: Any
    first_sink: Any
    sinks: Any
    next: Any
    count: Any


@triton.jit
def page_of(pages, tokens, PAGE: tl.constexpr):
    """The pages of the sequence in which ``tokens`` of the list lie."""
    listed = tokens // PAGE
    return tl.where(listed < pages.sinks, pages.first_sink + listed, pages.next + listed - pages.sinks)


@triton.jit
def _places(pages, tokens, PAGE: tl.constexpr):
    """Where in the pool the head's part of the pages of ``tokens`` begins, and which of them are in the
    list."""
    there = tokens < pages.count * PAGE
    held = tl.load(pages.table + page_of(pages, tokens, PAGE), mask=there, other=0)
    return held.to(tl.int64) * pages.size + pages.place, there


@triton.jit
def read_scales(pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, PLACE: tl.constexpr):
    """Of ``BLOCK`` tokens, float32."""
    tokens = first + tl.arange(0, BLOCK)
    places, there = _places(pages, tokens, PAGE)
    halves = pages.pool.to(tl.pointer_type(tl.float16))
    return tl.load(halves + 2 * places + PLACE + tokens % PAGE, mask=there, other=0.0).to(tl.float32)


@triton.jit
def read_keys(pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr):
    """[columns of the piece, BLOCK]."""
    if PIECE[2] == "codes" and PIECE[3] <= 4:
        return tl.trans(
            look_up(
                _key_words(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][0]), PIECE[3], PIECE[4], PIECE[7]
            )
        )
    elif PIECE[2] == "codes":
        codes = _key_strip(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][0])
        for i in tl.static_range(1, len(PIECE[6])):
            codes = codes | _key_strip(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][i])
        return tl.trans(wide_points(codes, PIECE[3]))
    else:
        return tl.trans(_plain(pages, first, PAGE, BLOCK, PIECE))


@triton.jit
def read_values(pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr):
    """[BLOCK, columns of the piece]."""
    if PIECE[2] == "codes" and PIECE[3] <= 4:
        words = _value_words(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][0])
        return tl.trans(look_up(words, PIECE[3], PIECE[4], PIECE[7]))
    elif PIECE[2] == "codes":
        codes = _value_strip(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][0])
        for i in tl.static_range(1, len(PIECE[6])):
            codes = codes | _value_strip(pages, first, PAGE, BLOCK, PIECE[0], PIECE[6][i])
        return tl.trans(wide_points(codes, PIECE[3]))
    else:
        return _plain(pages, first, PAGE, BLOCK, PIECE)


@triton.jit
def _plain(pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr):
    """[BLOCK, columns of the piece]: bfloat16, or float8 as float16 over 256."""
    tokens = first + tl.arange(0, BLOCK)
    places, there = _places(pages, tokens, PAGE)
    columns: tl.constexpr = PIECE[0]
    inside = PIECE[6][0][2] + (tokens % PAGE)[:, None] * PIECE[6][0][3] + tl.arange(0, columns)[None, :]
    if PIECE[2] == "bf16":
        numbers = pages.pool.to(tl.pointer_type(tl.bfloat16))
        return tl.load(numbers + 2 * places[:, None] + inside, mask=there[:, None], other=0.0)
    else:
        stored = pages.pool.to(tl.pointer_type(tl.uint8))
        return open_fp8(tl.load(stored + 4 * places[:, None] + inside, mask=there[:, None], other=0))


@triton.jit
def _key_strip(
    pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr
):
    """Codes [BLOCK, COLUMNS] of one strip, in place."""
    if STRIP[0] == 8:
        tokens = first + tl.arange(0, BLOCK)
        places, there = _places(pages, tokens, PAGE)
        inside = STRIP[2] + (tokens % PAGE)[:, None] * STRIP[3] + tl.arange(0, COLUMNS)[None, :]
        stored = pages.pool.to(tl.pointer_type(tl.uint8))
        return tl.load(stored + 4 * places[:, None] + inside, mask=there[:, None], other=0).to(tl.int16)
    else:
        words = _key_words(pages, first, PAGE, BLOCK, COLUMNS, STRIP)
        return (open_nibbles(words) << STRIP[1]).to(tl.int16)


@triton.jit
def _key_words(
    pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr
):
    """Nibbles [BLOCK, COLUMNS / 8]."""
    together: tl.constexpr = rows_of_word(STRIP[0])
    tokens = first + together * tl.arange(0, BLOCK // together)
    places, there = _places(pages, tokens, PAGE)
    inside = (tokens % PAGE // together)[:, None] * STRIP[3] + tl.arange(0, COLUMNS // 8)[None, :]
    return load_words(pages.pool + places[:, None] + STRIP[2] + inside, STRIP[4], there[:, None], STRIP[0])


@triton.jit
def _value_strip(
    pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr
):
    """Codes [COLUMNS, BLOCK] of one strip, in place."""
    if STRIP[0] == 8:
        tokens = first + tl.arange(0, BLOCK)
        places, there = _places(pages, tokens, PAGE)
        inside = STRIP[2] + tl.arange(0, COLUMNS)[:, None] * STRIP[3] + (tokens % PAGE)[None, :]
        stored = pages.pool.to(tl.pointer_type(tl.uint8))
        return tl.load(stored + 4 * places[None, :] + inside, mask=there[None, :], other=0).to(tl.int16)
    else:
        words = _value_words(pages, first, PAGE, BLOCK, COLUMNS, STRIP)
        return (open_nibbles(words) << STRIP[1]).to(tl.int16)


@triton.jit
def _value_words(
    pages, first, PAGE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STRIP: tl.constexpr
):
    """Nibbles [COLUMNS, BLOCK / 8]."""
    together: tl.constexpr = rows_of_word(STRIP[0])
    tokens = first + 8 * tl.arange(0, BLOCK // 8)
    places, there = _places(pages, tokens, PAGE)
    inside = tl.arange(0, COLUMNS // together)[:, None] * STRIP[3] + (tokens % PAGE // 8)[None, :]
    return load_words(pages.pool + places[None, :] + STRIP[2] + inside, STRIP[4], there[None, :], STRIP[0])
