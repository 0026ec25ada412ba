"""Levels of layers, drawn: every kind of plane, and tables as a calibration might give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer_compile.lower.signs import signs
from infer_compile.runtime.formats.kv import (
    GRANULE,
    LEVELS,
    CacheLayout,
    LayerCache,
    LevelName,
    Plane,
    Segment,
    Transform,
    layer_cache,
)
from infer_compile.runtime.formats.program import Limits, Program

Float32 = NDArray[np.float32]


def draw_plane(rng: np.random.Generator, head_dim: int, transform: Transform) -> Plane:
    """Segments of 1 to 8 bits in falling order; some of the last dimensions keep nothing."""
    granules = head_dim // GRANULE - int(rng.choice([0, 1, 2]))
    count = min(int(rng.integers(1, 6)), granules)
    cuts = np.sort(rng.choice(np.arange(1, granules), count - 1, replace=False)) if count > 1 else []
    sizes = np.diff([0, *cuts, granules])
    widths = np.sort(rng.choice(np.arange(1, 9), count, replace=False))[::-1]
    segments = tuple(
        Segment(bits=int(bits), columns=GRANULE * int(size)) for bits, size in zip(widths, sizes, strict=True)
    )
    return Plane(kind="codes", transform=transform, segments=segments)


def draw_layer(rng: np.random.Generator, level: LevelName, head_dim: int) -> LayerCache:
    if not level.startswith("ct"):
        return layer_cache(level, head_dim)
    values: Transform = "dense" if rng.random() < 0.3 else "diagonal"
    return LayerCache(
        level=level,
        keys=draw_plane(rng, head_dim, "dense" if rng.random() < 0.7 else "diagonal"),
        values=draw_plane(rng, head_dim, values),
    )


def draw_layout(
    rng: np.random.Generator,
    levels: list[LevelName],
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    sink_pages: int,
    recent_pages: int,
) -> CacheLayout:
    """One layer for each of ``levels``; a compressed layout is named for the first that compresses."""
    name = next((level for level in levels if level != "bf16"), LEVELS["bf16"])
    return CacheLayout(
        level=name,
        page_tokens=page_tokens,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(draw_layer(rng, level, head_dim) for level in levels),
        signs="" if name == "bf16" else signs(head_dim),
    )


def draw_tables(rng: np.random.Generator, layout: CacheLayout) -> dict[str, Float32]:
    """Means of the size of what varies; transforms whose condition is at most 9, and steps by which the
    columns of a normal vector fill their codes."""
    tables: dict[str, Float32] = {}
    for index, layer in enumerate(layout.layers):
        for side in ("keys", "values"):
            plane = layer.keys if side == "keys" else layer.values
            if plane.calibrated:
                drawn = _draw_side(rng, plane, layout.kv_heads, layout.head_dim)
                tables |= {f"layers.{index}.{side}.{name}": values for name, values in drawn.items()}
    expected = {table.name: table.shape for table in layout.tables()}
    assert {name: values.shape for name, values in tables.items()} == expected
    return tables


def _draw_side(rng: np.random.Generator, plane: Plane, kv_heads: int, head_dim: int) -> Mapping[str, Float32]:
    columns = plane.columns
    steps = np.concatenate([np.full(s.columns, 3.0 / 2**s.bits) for s in plane.segments])
    tables = {"mean": rng.standard_normal((kv_heads, head_dim))}
    if plane.transform == "diagonal":
        tables["scale"] = steps * rng.uniform(0.8, 1.25, (kv_heads, columns))
    else:
        bases = [np.linalg.qr(rng.standard_normal((2, head_dim, head_dim)))[0] for _ in range(kv_heads)]
        full = np.stack([a * rng.uniform(1 / 3, 3, head_dim) @ b for a, b in bases])
        tables["encode"] = full[:, :columns] / steps[:, None]
        tables["decode"] = np.linalg.inv(full).swapaxes(1, 2)[:, :columns] * steps[:, None]
    return {name: values.astype(np.float32) for name, values in tables.items()}


def cache_alone(layout: CacheLayout, limits: Limits) -> Program:
    """A program of no operations, for what checks steps against a cache."""
    nothing: dict[str, Any] = {"prologue": (), "layers": (), "epilogue": ()}
    return Program.model_construct(cache=layout, limits=limits, vocabulary=1 << 20, **nothing)
