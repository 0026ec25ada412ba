"""One choice, reckoned through: what it takes, what it gives, and the limits that it breaks."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ..catalog.engines import Engine
from ..catalog.formats import WeightScheme
from ..runtime.formats.weights import WeightFormat
from .block import Limit, Solved
from .performance.cache import Cache
from .performance.forecast import Forecast
from .performance.latency import Speed
from .performance.layout import Layout
from .performance.memory import Memory
from .performance.shape import Stored
from .quality import Expected
from .speculation import Drafting

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Violation:
    """A limit that a candidate breaks; ``excess`` is by how much, as a share of the limit."""

    limit: str
    value: str
    allowed: str
    excess: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """``budget`` tokens a step, ``sequences`` in flight over all copies; ``weights`` is the format of our own
    engine, None with another. Numbers are plain integers and floats."""

    engine: Engine
    scheme: WeightScheme
    weights: WeightFormat | None
    stored: Stored
    cache: Cache
    speed: Speed
    layout: Layout
    drafting: Drafting
    budget: int
    sequences: int
    memory: Memory
    forecast: Forecast
    loss_of_weights: Expected
    loss_of_cache: Expected
    violations: tuple[Violation, ...]

    @property
    def level(self) -> str:
        return self.cache.scheme.name

    @property
    def compressed(self) -> bool:
        return self.level != "bf16"

    @property
    def loss(self) -> Expected:
        return self.loss_of_weights + self.loss_of_cache

    @property
    def feasible(self) -> bool:
        return not self.violations

    @property
    def excess(self) -> float:
        """How far it is from feasible."""
        return sum(violation.excess for violation in self.violations)


def candidate(solved: Solved, index: int) -> Candidate:
    """The candidate at ``index`` of a solved block."""
    block = solved.block
    return Candidate(
        engine=block.engine,
        scheme=block.stored.scheme,
        weights=block.weights,
        stored=block.stored,
        cache=block.cache,
        speed=block.speed,
        layout=_whole(_at(block.layout, index)),
        drafting=block.draftings[int(block.drafted[index])],
        budget=int(block.budget[index]),
        sequences=int(solved.sequences[index]),
        memory=_at(solved.memory, index),
        forecast=_at(solved.forecast, index),
        loss_of_weights=block.loss_of_weights,
        loss_of_cache=block.loss_of_cache,
        violations=tuple(_violation(limit, index) for limit in solved.limits if limit.excess[index] > 0),
    )


def _violation(limit: Limit, index: int) -> Violation:
    value, allowed = _entry(limit.value, index), _entry(limit.allowed, index)
    return Violation(
        limit.name,
        f"{value:.4g} {limit.unit}",
        f"{allowed:.4g} {limit.unit}",
        float(limit.excess[index]),
    )


def _at(columns: T, index: int) -> T:
    """The entry ``index`` of a record of columns, records within it too."""
    changes: dict[str, Any] = {}
    for each in fields(columns):  # type: ignore[arg-type]
        value = getattr(columns, each.name)
        if isinstance(value, np.ndarray | np.generic):
            changes[each.name] = _entry(value, index)
        elif is_dataclass(value) and not isinstance(value, type):
            changes[each.name] = _at(value, index)
    return replace(columns, **changes)  # type: ignore[type-var]


def _entry(value: Any, index: int) -> float:
    return float(value[index] if np.ndim(value) else value)


def _whole(layout: Layout) -> Layout:
    return Layout(
        int(layout.tensor), int(layout.pipeline), int(layout.expert), int(layout.data), layout.per_node
    )
