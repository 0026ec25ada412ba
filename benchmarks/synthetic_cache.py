"""Caches of random contents: layouts with the default windows, and tables of calibrated levels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infer_compile.lower.signs import signs
from infer_compile.runtime.formats.kv import (
    CacheLayout,
    LayerCache,
    LevelName,
    Plane,
    Segment,
    Table,
    layer_cache,
)

# Columns by bits, of a key and of a value, as much as the level stores in all.
SPREADS: Mapping[str, tuple[dict[int, int], dict[int, int]]] = {
    "ct4": ({8: 48, 7: 32, 5: 16, 2: 16}, {8: 16, 7: 16, 4: 16, 2: 16}),
    "ct3": ({8: 16, 7: 16, 6: 32, 4: 16, 2: 16, 1: 16}, {8: 16, 5: 16, 3: 16}),
    "ct2": ({7: 16, 5: 16, 4: 32, 2: 16}, {8: 16, 4: 16}),
}
SPREAD_DIM = 128
"""The elements of a head that these are of."""


def layout_of(
    level: LevelName, layers: int, kv_heads: int, head_dim: int, page_tokens: int = 32
) -> CacheLayout:
    """The cache of a random model with the default windows."""
    return CacheLayout(
        level=level,
        page_tokens=page_tokens,
        sink_pages=1,
        recent_pages=4,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=(_layer(level, head_dim),) * layers,
        signs="" if level == "bf16" else signs(head_dim),
    )


def _layer(level: LevelName, head_dim: int) -> LayerCache:
    planned = layer_cache(level, head_dim)
    if level not in SPREADS or head_dim != SPREAD_DIM:
        return planned
    keys, values = (
        tuple(Segment(bits=bits, columns=columns) for bits, columns in widths.items())
        for widths in SPREADS[level]
    )
    layer = LayerCache(
        level=level,
        keys=Plane(kind="codes", transform="dense", segments=keys),
        values=Plane(kind="codes", transform="diagonal", segments=values),
    )
    found, expected = (each.token_bytes(head_dim, 1) for each in (layer, planned))
    if found != expected:
        raise ValueError(f"{level}: {found} bytes a token and head, not {expected}")
    return layer


def drawn(rng: np.random.Generator, table: Table) -> np.ndarray:
    """Rotations, and steps that fill the codes of columns of unit variance."""
    kind = table.name.rsplit(".", 1)[-1]
    if kind not in ("encode", "decode"):
        return np.full(table.shape, 0.1 if kind == "scale" else 0.0, np.float32)
    heads, columns, size = table.shape
    turns = np.linalg.qr(rng.standard_normal((heads, size, size)))[0][:, :columns]
    return np.ascontiguousarray(turns * (10.0 if kind == "encode" else 0.1), np.float32)
