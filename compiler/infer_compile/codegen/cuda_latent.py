"""What the CUDA kernels of latent attention are compiled with; as ``cuda_constants`` for other caches.

A pool page holds the layers in order; of each, latent vectors ``[page_tokens, rank]`` and then rotary keys
``[page_tokens, rope]``.
"""

from __future__ import annotations

from ..runtime.formats.kv import Plane
from ..runtime.formats.latent import LatentLayout
from .cuda_constants import LEAST_ROWS, Constants, Launch, Tiling, power, splits
from .cuda_pages import WORD, Piece, side_pages

SEALED_TOKENS = 16
"""Tokens that one program compresses."""


def latent_launch() -> Launch:
    """For tiles of ``LEAST_ROWS`` rows: what spills nothing, by docs/cuda-kernels.md; sums of 64 rows for a
    rank of 512 do. No speed was measured."""
    return Launch(block=32, warps=4, stages=2)


def latent_constants(layout: LatentLayout, heads: int, step: int, group: int, tiling: Tiling) -> Constants:
    """``group`` of the ``heads`` are in a tile; rotary parts of queries are ``step`` elements apart."""
    latents, keys = _pieces(layout, layout.latents)
    exact_latents, exact_keys = _pieces(layout, layout.keys)
    return {
        "HEADS": heads,
        "RANK": layout.rank,
        "STEP": step,
        "PAGE": layout.page_tokens,
        "SINK": layout.sink_pages if layout.compressed else 0,
        # Without a packed form every page is recent.
        "RECENT": layout.recent_pages if layout.compressed else 1 << 24,
        "TREE": tiling.tree,
        "TOKENS": tiling.tokens,
        "GROUP": group,
        "ROWS": max(LEAST_ROWS, power(tiling.tokens * group)),
        "BLOCK": tiling.block,
        "EXACT_SPLITS": tiling.exact_splits,
        "SPLITS": splits(layout, tiling),
        "LATENTS": latents,
        "KEYS": keys,
        "EXACT_LATENTS": exact_latents,
        "EXACT_KEYS": exact_keys,
    }


def latent_append_constants(layout: LatentLayout) -> Constants:
    return {
        "RANK": layout.rank,
        "RANK_LANES": power(layout.rank),
        "ROPE": layout.rope,
        "ROPE_LANES": power(layout.rope),
        "PAGE": layout.page_tokens,
    }


def latent_seal_constants(layout: LatentLayout, fp8_most: float) -> Constants:
    return latent_append_constants(layout) | {"TOKENS": SEALED_TOKENS, "FP8_MOST": fp8_most}


def latent_merge_constants(layout: LatentLayout, tiling: Tiling) -> Constants:
    """Of merge.py, with a program for every head."""
    pieces, _ = _pieces(layout, layout.keys)
    return {
        "GROUP": 1,
        "HEIGHT": 1,
        "D": layout.rank,
        "COLUMNS": layout.rank,
        "EXACT_SPLITS": tiling.exact_splits,
        "SPLITS": splits(layout, tiling),
        "TRANSFORM": "none",
        "MEANS": False,
        "VALUES": pieces,
        "WIDTHS": pieces,
        "ROUND": 0,
    }


def latent_places(layout: LatentLayout, layer: int) -> dict[str, int]:
    """Sizes of pages, and where a layer begins in them, in words."""
    exact, packed = layout.exact_page_bytes // WORD, layout.packed_page_bytes // WORD
    return {
        "exact_page": exact,
        "exact_place": layer * exact // layout.layers,
        "packed_page": packed,
        "packed_place": layer * packed // layout.layers,
    }


def _pieces(layout: LatentLayout, latents: Plane) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Of latent vectors and of rotary keys, in pages that keep the former as ``latents``."""
    first = side_pages(latents, "keys", layout.rank, layout.page_tokens)
    second = side_pages(layout.keys, "keys", layout.rope, layout.page_tokens, first.bytes)
    return first.pieces, second.pieces
