"""The order inside the CUDA kernels' pages, as the constants that they are compiled with
(kernels/cuda/README.md).

A pool page holds the layers in order, and in each the heads in order; inside, keys and then values. Exact
pages keep ``[page_tokens, head_dim]`` bf16 of each, as those of the reference engine. Packed pages keep, of
each, the strips of the plane, then the scales; kernels/cuda/codes.py tells how a strip lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..runtime.formats.codebook import integers
from ..runtime.formats.kv import SIDES, STRIP_BITS, CacheLayout, Plane, Side, Strip, layer_cache
from .cuda_look_up import instructions

WORD = 4
"""Bytes; nibbles of a word are twice as many."""
BYTE_BITS = 8
TOGETHER = {1: 4, 2: 2, 3: 4, 4: 1}
"""By bits of a code: how many rows of a strip share words."""
EXCESS_BITS = 3

StripPlace = tuple[int, int, int, int, int]
Piece = tuple[int, int, str, int, int, int, tuple[StripPlace, ...], str]


@dataclass(frozen=True, slots=True)
class SidePages:
    """Keys or values of one head in a page: ``pieces`` as kernels/cuda/pages.py describes them, the place of
    the scales (in fp16 numbers from the beginning of the head's part; -1 for none), and ``bytes`` of all."""

    plane: Plane
    pieces: tuple[Piece, ...]
    scales: int
    bytes: int


def side_pages(plane: Plane, side: Side, head_dim: int, page_tokens: int, begin: int = 0) -> SidePages:
    """``plane`` where its bytes begin ``begin`` bytes behind those of the head."""
    pieces: list[Piece] = []
    place = begin
    if plane.kind != "codes":
        size = plane.vector_bytes(1)
        for first, columns in powers(0, head_dim):
            strip = (BYTE_BITS * size, 0, place // size + first, head_dim, 0)
            pieces.append((columns, first, plane.kind, BYTE_BITS * size, 0, 0, (strip,), ""))
        place += page_tokens * head_dim * size
    else:
        first = 0
        for index, segment in enumerate(plane.segments):
            strips, place = _strips(plane, index, page_tokens, place)
            for begins, columns in powers(first, segment.columns):
                cut = tuple(_cut(strip, begin_, side, page_tokens, begins) for strip, begin_ in strips)
                found = instructions(segment.bits) if segment.bits <= STRIP_BITS else ""
                own = (columns, begins, "codes", segment.bits, excess(segment.bits), index, cut, found)
                pieces.append(own)
            first += segment.columns
    scales = place // 2 if plane.scale_bytes else -1
    place += page_tokens * plane.scale_bytes
    return SidePages(plane, tuple(pieces), scales, place - begin)


def head_pages(layout: CacheLayout, layer: int) -> dict[Side, SidePages]:
    """Both sides of one head in a packed page."""
    own = layout.layers[layer]
    keys = side_pages(own.keys, "keys", layout.head_dim, layout.page_tokens)
    values = side_pages(own.values, "values", layout.head_dim, layout.page_tokens, keys.bytes)
    return {"keys": keys, "values": values}


def exact_pages(layout: CacheLayout) -> dict[Side, SidePages]:
    """The same in an exact page."""
    plane, tokens = layer_cache("bf16", layout.head_dim).keys, layout.page_tokens
    keys = side_pages(plane, "keys", layout.head_dim, tokens)
    return {"keys": keys, "values": side_pages(plane, "values", layout.head_dim, tokens, keys.bytes)}


def layer_place(layout: CacheLayout, layer: int) -> int:
    """Bytes before ``layer`` in a packed page."""
    before = sum(other.token_bytes(layout.head_dim, layout.kv_heads) for other in layout.layers[:layer])
    return layout.page_tokens * before


def head_bytes(layout: CacheLayout, layer: int) -> int:
    """Bytes of one head in a packed page."""
    own = layout.layers[layer]
    return layout.page_tokens * sum(own.plane(side).vector_bytes(layout.head_dim) for side in SIDES)


def excess(bits: int) -> int:
    """By how much the positive integers of a code exceed 1, 3, 5 and so on, 3 bits each; 0 for wide codes."""
    if bits > STRIP_BITS:
        return 0
    half = integers(bits)[1 << bits - 1 :].tolist()
    parts = [point - (2 * index + 1) for index, point in enumerate(half)]
    if not all(0 <= part < 1 << EXCESS_BITS for part in parts):
        raise ValueError(f"the kernels have no form for the integers {half}")
    return sum(part << EXCESS_BITS * index for index, part in enumerate(parts))


def powers(first: int, columns: int) -> Iterator[tuple[int, int]]:
    """``columns`` columns from ``first`` on as (first, columns) of powers of two, the largest before the
    rest."""
    while columns:
        width = 1 << columns.bit_length() - 1
        yield first, width
        first, columns = first + width, columns - width


def _strips(plane: Plane, segment: int, page_tokens: int, place: int) -> tuple[list[tuple[Strip, int]], int]:
    """The strips of a segment, each with the byte at which it begins, and the byte behind them."""
    own = plane.segments[segment]
    first = sum(other.columns for other in plane.segments[:segment])
    if own.bits == BYTE_BITS:
        strip = Strip(bits=BYTE_BITS, first=first, columns=own.columns)
        return [(strip, place)], place + page_tokens * own.columns
    strips = []
    for strip in Plane(kind="codes", segments=(own,)).strips:
        strips.append((strip.model_copy(update={"first": first}), place))
        place += page_tokens * own.columns * strip.bits // BYTE_BITS
    return strips, place


def _cut(strip: Strip, begin: int, side: Side, page_tokens: int, first: int) -> StripPlace:
    """The part of a strip from column ``first`` on: bits, shift, place, from row to row, from plane to
    plane."""
    inner = strip.columns if side == "keys" else page_tokens
    skipped = first - strip.first
    if strip.bits == BYTE_BITS:
        return (BYTE_BITS, 0, begin + skipped * (1 if side == "keys" else inner), inner, 0)
    row = inner // (2 * WORD)
    outer = page_tokens if side == "keys" else strip.columns
    plane = outer // TOGETHER[strip.bits] * row
    words = skipped // (2 * WORD) if side == "keys" else skipped // TOGETHER[strip.bits] * row
    return (strip.bits, strip.shift, begin // WORD + words, row, plane)
