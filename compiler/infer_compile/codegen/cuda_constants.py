"""What the CUDA kernels of the cache are compiled with: the constants of one layer of one layout.

Layers that are stored alike, and pages of the same size, share a kernel: where a layer lies in a page is an
argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime.formats.codebook import unit
from ..runtime.formats.kv import CacheLayout, Plane
from ..runtime.formats.latent import LatentLayout
from .cuda_pages import WORD, Piece, exact_pages, head_bytes, head_pages, powers

Constants = dict[str, Any]
LEAST_ROWS = 16
"""Rows of a tile of queries: the height of a tensor core's matrix."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How attention is cut: tiles of ``tokens`` new tokens, ``block`` cached tokens at a time, and the pages
    among ``exact_splits`` and ``packed_splits`` programs; ``tree`` where new tokens have parents."""

    tokens: int
    block: int
    exact_splits: int
    packed_splits: int
    tree: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """``block`` cached tokens at a time, and Triton's options; a thread has so many ``registers`` at most."""

    block: int
    warps: int
    stages: int
    registers: int = 255


def decode_launch(head_dim: int, rows: int, calibrated: bool = False) -> Launch:
    """For tiles of few ``rows``, tokens times grouped heads, over keys and values of which some may be
    ``calibrated``: what spills nothing and issues least, by docs/cuda-kernels.md. No speed was measured."""
    if head_dim > 128:
        return Launch(block=32, warps=4, stages=2)
    block = 64 if head_dim < 128 else 32
    if calibrated:
        # Columns in many pieces take many registers; in a single warp nothing is unpacked twice.
        return Launch(block, warps=1 if rows <= LEAST_ROWS else 2, stages=1)
    # Six programs of 64 threads share a multiprocessor.
    registers = 168 if rows <= LEAST_ROWS else 255
    return Launch(block, warps=2, stages=2, registers=registers)


def chunk_launch() -> Launch:
    """For tiles of a prompt's chunk, of 64 rows: with a second stage they spill before 9.0, and issue more
    everywhere."""
    return Launch(block=32, warps=4, stages=1)


SEAL_WARPS = 2
"""With more of them the assembler keeps a stack for the slow ways of roots and quotients."""


def attend_constants(
    layout: CacheLayout,
    layer: int,
    group: int,
    tiling: Tiling,
    *,
    evicts: bool = False,
    checked: bool = False,
) -> Constants:
    """For sequences that may go on without their oldest tokens if it ``evicts``, and, if ``checked``, may
    compress nothing."""
    pages, exact = head_pages(layout, layer), exact_pages(layout)
    keys, values = pages["keys"], pages["values"]
    return {
        "GROUP": group,
        "KV_HEADS": layout.kv_heads,
        "D": layout.head_dim,
        "PAGE": layout.page_tokens,
        "SINK": layout.sink_pages if layout.compressed or evicts else 0,
        # Without a packed form every page is recent.
        "RECENT": layout.recent_pages if layout.compressed else 1 << 24,
        "TREE": tiling.tree,
        "EVICTS": evicts,
        "CHECKED": checked and layout.compressed,
        "TOKENS": tiling.tokens,
        "ROWS": max(LEAST_ROWS, power(tiling.tokens * group)),
        "BLOCK": tiling.block,
        "EXACT_SPLITS": tiling.exact_splits,
        "SPLITS": splits(layout, tiling),
        "SEGMENTS": segments(keys.plane),
        "HEAD": head_bytes(layout, layer) // WORD,
        "KEYS": keys.pieces,
        "VALUES": values.pieces,
        "KEY_SCALES": keys.scales,
        "VALUE_SCALES": values.scales,
        "EXACT_KEYS": exact["keys"].pieces,
        "EXACT_VALUES": exact["values"].pieces,
    }


def splits(layout: CacheLayout | LatentLayout, tiling: Tiling) -> int:
    return tiling.exact_splits + (tiling.packed_splits if layout.compressed else 0)


def segments(plane: Plane) -> int:
    """Steps of a query: one for each segment of keys."""
    return max(1, len(plane.segments))


def columns(plane: Plane, head_dim: int) -> int:
    return plane.columns if plane.kind == "codes" else head_dim


def append_constants(layout: CacheLayout, layer: int) -> Constants:
    own = layout.layers[layer]
    return {
        "D": layout.head_dim,
        "LANES": power(layout.head_dim),
        "PAGE": layout.page_tokens,
        "MEANS": own.keys.calibrated or own.values.calibrated,
    }


def query_constants(layout: CacheLayout, layer: int, group: int) -> Constants:
    keys = head_pages(layout, layer)["keys"]
    return {
        "GROUP": group,
        "HEIGHT": _height(keys.plane, group),
        "D": layout.head_dim,
        "COLUMNS": columns(keys.plane, layout.head_dim),
        "SEGMENTS": segments(keys.plane),
        "TRANSFORM": keys.plane.transform,
        "KEYS": keys.pieces,
    }


def query_warps(layout: CacheLayout, layer: int) -> int:
    """A dense table is shared out."""
    return 4 if layout.layers[layer].keys.transform == "dense" else 1


def turn_back_constants(layout: CacheLayout, layer: int, group: int, rotated: bool) -> Constants:
    return {
        "GROUP": group,
        "D": layout.head_dim,
        "BLOCK": power(layout.head_dim // 2),
        "ROTATED": rotated,
        "MEANS": layout.layers[layer].keys.calibrated,
    }


def merge_constants(
    layout: CacheLayout, layer: int, group: int, tiling: Tiling, rounded: int = 0
) -> Constants:
    """What it gives is int8 with a scale for every ``rounded`` numbers, if that is not 0."""
    values = head_pages(layout, layer)["values"]
    return {
        "GROUP": group,
        "HEIGHT": _height(values.plane, group),
        "D": layout.head_dim,
        "COLUMNS": columns(values.plane, layout.head_dim),
        "EXACT_SPLITS": tiling.exact_splits,
        "SPLITS": splits(layout, tiling),
        "TRANSFORM": values.plane.transform,
        "MEANS": values.plane.calibrated,
        "VALUES": values.pieces,
        "WIDTHS": merged_pieces(layout, layer),
        "ROUND": rounded,
    }


def merged_pieces(layout: CacheLayout, layer: int) -> tuple[Piece, ...]:
    """In which attention's output is put together."""
    values = head_pages(layout, layer)["values"]
    if values.plane.transform == "dense":
        return exact_pages(layout)["keys"].pieces
    # Pieces of the columns are pieces of the vector; what no column tells of comes behind.
    used = columns(values.plane, layout.head_dim)
    return (*values.pieces, *widths_of(used, layout.head_dim - used))


def seal_constants(layout: CacheLayout, layer: int, fp8_most: float) -> Constants:
    pages = head_pages(layout, layer)
    keys, values = pages["keys"], pages["values"]
    return {
        "D": layout.head_dim,
        "PAGE": layout.page_tokens,
        "HEAD": head_bytes(layout, layer) // WORD,
        "FP8_MOST": fp8_most,
        "KEYS": keys.pieces,
        "VALUES": values.pieces,
        "KEY_SCALES": keys.scales,
        "VALUE_SCALES": values.scales,
        "KEY_TRANSFORM": keys.plane.transform,
        "VALUE_TRANSFORM": values.plane.transform,
        "KEY_COLUMNS": columns(keys.plane, layout.head_dim),
        "VALUE_COLUMNS": columns(values.plane, layout.head_dim),
        "KEY_UNIT": _unit(keys.plane, layout.head_dim),
        "VALUE_UNIT": _unit(values.plane, layout.head_dim),
    }


def widths_of(first: int, count: int) -> tuple[Piece, ...]:
    """Pieces of ``count`` columns from ``first`` on that nothing stores."""
    return tuple((width, begin, "none", 0, 0, 0, (), "") for begin, width in powers(first, count))


def _unit(plane: Plane, head_dim: int) -> float:
    """The step of a vector of norm one, as the codec rounds it."""
    if not plane.scale_bytes:
        return 1.0
    return float(np.float32(unit(plane.segments[0].bits) / math.sqrt(head_dim)))


def _height(plane: Plane, group: int) -> int:
    """Rows of the query heads of one key-value head; products of matrices take 16."""
    return max(LEAST_ROWS if plane.transform == "dense" else 1, power(group))


def power(count: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (count - 1).bit_length()
