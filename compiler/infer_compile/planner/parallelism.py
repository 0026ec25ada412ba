"""The ways to spread a model over devices that an engine has and the model's heads and experts allow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..catalog.engines import Engine, Way
from ..spec.pin import Parallelism
from .performance.layout import Layout
from .performance.shape import Shape

WAYS: tuple[Way, ...] = ("tensor", "pipeline", "expert", "data")
Sizes = tuple[int, int, int, int]
"""In the order of ``WAYS``."""


def layouts(
    shape: Shape, engine: Engine, count: int, nodes: int, pinned: Parallelism | None = None
) -> tuple[Sizes, ...]:
    """Every layout that uses all devices, the least split first; empty if there is none.

    Tensor parallelism divides query heads, and key heads or copies them; pipeline stages hold at least a
    layer; experts are dealt evenly. Copies of the attention serve sequences apart from one another.
    """
    devices = count * nodes
    found = [
        sizes
        for tensor in divisors(devices)
        for pipeline in divisors(devices // tensor)
        for sizes in _experts(shape, engine, tensor, pipeline, devices // tensor // pipeline)
        if _serves(engine, sizes) and divides(shape, tensor) and pipeline <= shape.layers
    ]
    wanted = [getattr(pinned, way) if pinned else None for way in WAYS]
    kept = [
        sizes
        for sizes in found
        if all(want in (None, size) for want, size in zip(wanted, sizes, strict=True))
    ]
    return tuple(sorted(kept))


def divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)


def divides(shape: Shape, tensor: int) -> bool:
    """Whether each of ``tensor`` devices holds whole query heads, and whole key heads or copies of one."""
    return shape.query_heads % tensor == 0 and all(
        heads.kv_heads % tensor == 0 or tensor % heads.kv_heads == 0 for heads in shape.heads
    )


def columns(sizes: tuple[Sizes, ...], per_node: int) -> Layout:
    """The layouts as one of arrays."""
    tensor, pipeline, expert, data = np.array(sizes, dtype=np.int64).T
    return Layout(tensor, pipeline, expert, data, per_node)


def _experts(shape: Shape, engine: Engine, tensor: int, pipeline: int, data: int) -> Iterator[Sizes]:
    yield tensor, pipeline, 1, data
    if not shape.experts:
        return
    stage = tensor * data
    for expert in divisors(stage)[1:]:
        parted = expert < stage and engine.experts_whole
        shared = tensor > 1 and data > 1 and engine.copies_whole
        if shape.experts % expert == 0 and not parted and not shared:
            yield tensor, pipeline, expert, data


def _serves(engine: Engine, sizes: Sizes) -> bool:
    used = zip(WAYS, sizes, strict=True)
    return all(size == 1 or way in engine.parallelism for way, size in used)
