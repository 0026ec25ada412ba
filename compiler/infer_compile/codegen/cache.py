"""The cache's layers as the tables that the CPU kernels loop over (kernels/cpu/plane.hpp)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..runtime.formats.codebook import integers, unit
from ..runtime.formats.kv import SIDES, STRIP_BITS, CacheLayout, LayerCache, Plane, Side

LOOKUP = 16
"""Entries of a table of integers: they stand in it again and again, so that an index may have more bits."""


def cache_view(layout: CacheLayout, tables: Mapping[str, int]) -> dict[str, Any]:
    """``planes``, each once, and ``layers`` with the names of theirs; ``tables`` are offsets of the tables of
    calibrated planes in the weights file."""
    planes: list[Plane] = []
    layers: list[dict[str, Any]] = []
    place = 0
    for index, layer in enumerate(layout.layers):
        for side in SIDES:
            if layer.plane(side) not in planes:
                planes.append(layer.plane(side))
        sides = {side: _side(planes, layer, side, index, tables) for side in SIDES}
        layers.append(sides | {"place": place})
        place += layout.page_tokens * layer.token_bytes(layout.head_dim, layout.kv_heads)
    return {"planes": [_plane(plane, layout.head_dim) for plane in planes], "layers": layers}


def _side(
    planes: list[Plane], layer: LayerCache, side: Side, index: int, tables: Mapping[str, int]
) -> list[Any]:
    plane = layer.plane(side)
    decode = "scale" if plane.transform == "diagonal" else "decode"
    offsets = [tables.get(f"layers.{index}.{side}.{name}", 0) for name in ("mean", "encode", decode)]
    return [f"&kPlane{planes.index(plane)}", *offsets]


def _plane(plane: Plane, head_dim: int) -> dict[str, Any]:
    return {
        "kind": plane.kind,
        "transform": plane.transform,
        "scaled": plane.scale_bytes > 0,
        "columns": plane.columns,
        "bytes": plane.vector_bytes(head_dim),
        "segments": list(_segments(plane)),
    }


def _segments(plane: Plane) -> Iterator[dict[str, Any]]:
    first = 0
    for segment in plane.segments:
        yield {
            "bits": segment.bits,
            "first": first,
            "columns": segment.columns,
            "unit": f"{unit(segment.bits)!r}f",
            "points": _points(segment.bits),
        }
        first += segment.columns


def _points(bits: int) -> list[int]:
    """Those of wide codes are not looked up."""
    if bits > STRIP_BITS:
        return [0] * LOOKUP
    return [int(value) for value in integers(bits)] * (LOOKUP // 2**bits)
