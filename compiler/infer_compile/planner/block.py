"""Candidates that share engine, weight format and cache level, reckoned through at once as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..catalog.engines import Engine
from ..runtime.formats.weights import BF16, WeightFormat
from .deployment import Deployment
from .draft_time import draft_seconds
from .performance.cache import Cache, Floats
from .performance.forecast import Forecast, Load, Verify, forecast
from .performance.latency import Runner, Speed
from .performance.layout import Ints, Layout
from .performance.memory import Held, Memory, memory
from .performance.shape import Stored
from .quality import Expected
from .speculation import Drafting
from .units import GIB

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that a spec or a device sets: the value that each candidate has, what is allowed, and by what
    share of that it is broken (0: kept)."""

    name: str
    unit: str
    value: Floats
    allowed: Floats
    excess: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Block:
    """``layout``, ``drafted`` (an index into ``draftings``) and ``budget`` (tokens of a step) are arrays, an
    entry for each candidate. ``weights``: the format of our own engine, None for others."""

    engine: Engine
    weights: WeightFormat | None
    stored: Stored
    cache: Cache
    speed: Speed
    layout: Layout
    draftings: tuple[Drafting, ...]
    drafted: Counts
    budget: Counts
    loss_of_weights: Expected
    loss_of_cache: Expected

    def __len__(self) -> int:
        return len(self.budget)

    @property
    def loss(self) -> Expected:
        return self.loss_of_weights + self.loss_of_cache

    def of_drafts(self, figure: Callable[[Drafting], float]) -> NDArray[np.float64]:
        """A figure of each candidate's drafting."""
        return np.array([figure(one) for one in self.draftings], dtype=np.float64)[self.drafted]


@dataclass(frozen=True, slots=True)
class Solved:
    """A block under a load: ``sequences`` in flight over all copies, and what comes of them."""

    block: Block
    sequences: Counts
    memory: Memory
    forecast: Forecast
    limits: tuple[Limit, ...]
    excess: NDArray[np.float64] = field(init=False)
    """How far each candidate is from feasible: 0 where it keeps every limit."""

    def __post_init__(self) -> None:
        total = np.zeros(len(self.block))
        for limit in self.limits:
            total = total + limit.excess
        object.__setattr__(self, "excess", total)

    @property
    def feasible(self) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = self.excess == 0
        return kept


def solve(asked: Deployment, block: Block) -> Solved:
    """``block`` under the load asked for.

    An arrival rate is carried by as many sequences in flight as it brings about, and a standard deviation of
    random arrivals more; the objective "capacity" takes as many sequences as the limits allow.
    """
    most = _most_sequences(asked, block)
    if asked.rate is not None:
        seen = _rated(asked, block, asked.rate, most)
        mean = np.maximum(np.asarray(seen.concurrency), 1e-9)
        return _solved(asked, block, _whole(mean + np.sqrt(mean), most), seen)
    solved = at(asked, block, np.full(len(block), asked.concurrency, dtype=np.int64))
    if asked.spec.objective == "capacity":
        return _fullest(asked, block, solved, most)
    return solved


def keeping(asked: Deployment, block: Block, sequences: Counts) -> Solved:
    """``block`` under the load asked for, with room for so many sequences and no others."""
    if asked.rate is None:
        return at(asked, block, sequences)
    return _solved(asked, block, sequences, _rated(asked, block, asked.rate, _most_sequences(asked, block)))


def _most_sequences(asked: Deployment, block: Block) -> Counts:
    return int(block.engine.on(asked.target.kind).most_sequences.value) * np.asarray(block.layout.data)


def _rated(asked: Deployment, block: Block, rate: float, most: Counts) -> Forecast:
    load = Load(most, asked.input_tokens, asked.output_tokens, rate)
    return _forecast(asked, block, load, _drafted_for(asked, block, rate, most))


def _drafted_for(asked: Deployment, block: Block, rate: float, most: Counts) -> Floats:
    """About how many sequences a step drafts for at an arrival rate: what a draft takes depends on it."""
    count = np.asarray(block.layout.data, dtype=np.float64)
    if any(one.tokens for one in block.draftings):
        for _ in range(_APPROACHES):
            load = Load(count, asked.input_tokens, asked.output_tokens)
            seen = _forecast(asked, block, load, count)
            count = np.clip(rate * np.asarray(seen.e2e), block.layout.data, most)
    return count


_APPROACHES = 3
"""Times that Little's law is applied to an approximate number in flight."""


def at(asked: Deployment, block: Block, sequences: Counts) -> Solved:
    """``block`` with so many sequences in flight, each replaced when it ends."""
    load = Load(sequences, asked.input_tokens, asked.output_tokens)
    return _solved(asked, block, sequences, _forecast(asked, block, load, sequences))


def _whole(sequences: Floats, most: Counts) -> Counts:
    return np.clip(np.ceil(sequences), 1, most).astype(np.int64)


def _fullest(asked: Deployment, block: Block, solved: Solved, most: Counts) -> Solved:
    """As many sequences as keep every limit, by bisection: a limit that few break, more break too."""
    low, high = (
        solved.sequences,
        np.where(solved.feasible, np.maximum(most, solved.sequences), solved.sequences),
    )
    while np.any(low < high):
        middle = (low + high + 1) // 2
        kept = at(asked, block, middle).feasible
        low, high = np.where(kept, middle, low), np.where(kept, high, np.maximum(low, middle - 1))
    return at(asked, block, low)


def _forecast(asked: Deployment, block: Block, load: Load, sequences: Floats) -> Forecast:
    runner = Runner(asked.shape, block.stored, block.cache, block.layout, block.speed)
    return forecast(runner, load, block.budget, _speculated(block, load, sequences))


def _speculated(block: Block, load: Load, sequences: Floats) -> Verify | None:
    if all(one.tokens == 0 for one in block.draftings):
        return None
    per_copy = sequences / np.asarray(block.layout.data)
    seconds = np.zeros(len(block))
    for index, one in enumerate(block.draftings):
        mine = block.drafted == index
        if one.tokens:
            took = draft_seconds(one, block.speed, block.layout, per_copy, load.decode_context)
            seconds = np.where(mine, took, seconds)
    return block.of_drafts(lambda one: one.rows), block.of_drafts(lambda one: one.expected), seconds


def _solved(asked: Deployment, block: Block, sequences: Counts, seen: Forecast) -> Solved:
    copies = np.asarray(block.layout.data)
    held = replace(
        held_for(asked, -(-sequences // copies), block.budget),
        draft_bytes=block.of_drafts(lambda one: one.resident_bytes),
        draft_token_bytes=block.of_drafts(lambda one: one.draft_cache_elements_per_token * BF16.bits / 8),
        draft_token_values=block.of_drafts(lambda one: one.draft_token_values),
        draft_output_values=block.of_drafts(lambda one: one.draft_output_values),
    )
    kind = block.engine.on(asked.target.kind)
    taken = memory(asked.shape, block.stored, block.cache, block.layout, held, asked.target, kind)
    return Solved(block, sequences, taken, seen, tuple(_limits(asked, block, taken, seen)))


def held_for(asked: Deployment, sequences: Ints, budget: Ints) -> Held:
    """What is asked for with so many sequences in a copy, drafts aside."""
    typical = min(asked.context, asked.input_tokens + asked.output_tokens)
    return Held(asked.context, typical, sequences, budget, asked.checked_tokens)


def _limits(asked: Deployment, block: Block, taken: Memory, seen: Forecast) -> list[Limit]:
    slo = asked.slo
    limits = [_most("memory", "GiB", taken.total / GIB, taken.capacity / GIB)]
    if slo.ttft_ms is not None:
        limits.append(_most("ttft_ms", "ms", seen.ttft * 1e3, slo.ttft_ms))
    if slo.itl_ms is not None:
        limits.append(_most("itl_ms", "ms", seen.itl * 1e3, slo.itl_ms))
    if slo.tokens_per_second is not None:
        limits.append(_least("tokens_per_second", "tokens/s", seen.tokens_per_second, slo.tokens_per_second))
    if asked.rate is not None:
        # The fixed point is found to a few digits.
        carried = seen.requests_per_second * 1.001
        limits.append(_least("requests_per_second", "requests/s", carried, asked.rate))
    loss, allowed = _quality(asked, block)
    limits.append(_most("quality", "%", np.asarray(loss), max(allowed, 0.0)))
    size = len(block)
    return [
        Limit(one.name, one.unit, one.value, one.allowed, np.broadcast_to(one.excess, (size,)))
        for one in limits
    ]


def _most(name: str, unit: str, value: Floats, allowed: Floats) -> Limit:
    # A budget of nothing is broken by as much as a tenth of the figure's unit would break it.
    over = np.maximum(np.asarray(value / np.maximum(allowed, 0.1) - 1, dtype=np.float64), 1e-9)
    return Limit(name, unit, value, allowed, np.where(np.asarray(value) > allowed, over, 0.0))


def _least(name: str, unit: str, value: Floats, wanted: float) -> Limit:
    short = np.asarray(wanted / np.maximum(value, 1e-12) - 1, dtype=np.float64)
    return Limit(name, unit, value, wanted, np.maximum(short, 0.0))


def loses_too_much(asked: Deployment, block: Block) -> bool:
    """Whether ``block`` is over the budget of loss, whatever the rest of a candidate is."""
    loss, allowed = _quality(asked, block)
    return loss > max(allowed, 0.0)


def _quality(asked: Deployment, block: Block) -> tuple[float, float]:
    """The loss of what the planner chose itself, and what of the budget is left for it.

    A pin is the user's own decision: it is charged to a budget that the spec states, not to the default.
    """
    pin = asked.spec.pin
    pins = ((block.loss_of_weights, pin.weights is not None), (block.loss_of_cache, pin.kv is not None))
    chosen = sum(loss.expected for loss, pinned in pins if not pinned)
    spent = sum(loss.expected for loss, pinned in pins if pinned and asked.budget_stated)
    return chosen, asked.budget_percent - spent
