"""Measured beside predicted: each figure of a load, and what a user wanted of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ...planner.outlook import Outlook
from ...planner.plan import Plan, Predicted
from ...spec.spec import Slo
from .load import Load, Run

NEAR_PERCENT = 15.0
"""A figure that is off by no more is called near."""
PERCENTILES = (50, 90, 99)

_TIME_OF: Mapping[str, str] = MappingProxyType(
    {
        "prefill_tokens_per_second": "ttft_ms",
        "tokens_per_second_per_user": "itl_ms",
        "tokens_per_second": "e2e_s",
    }
)
"""Rates to the times whose intervals are theirs, turned over."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``measured`` is the median of the rounds, ``least`` and ``most`` are the ends of them. ``predicted``
    with the ends of an interval that holds four of five measurements, and ``predicted_now`` with the rates
    that the machine gives just now; None where nothing is."""

    name: str
    measured: float
    least: float
    most: float
    predicted: float | None
    low: float | None
    high: float | None
    predicted_now: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if not self.predicted else self.measured / self.predicted

    @property
    def off_percent(self) -> float | None:
        """By how much of the prediction the measurement differs from it."""
        return None if self.ratio is None else abs(self.ratio - 1) * 100

    @property
    def inside(self) -> bool | None:
        """Whether it lies within the interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step in which all sequences draw, none of a prompt: median seconds, and what the planner reckons of
    it. ``read_bytes`` of weights and cache at the mean ``context``; None where several tokens are verified a
    step, or nothing is predicted."""

    seconds: float
    predicted: float | None
    context: int | None
    read_bytes: float | None

    @property
    def bytes_per_second(self) -> float | None:
        return None if self.read_bytes is None else self.read_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class Speculated:
    """``tokens_per_step`` that a sequence drew, and the share of the verified chains' tokens that was kept
    (None: none was verified), beside the plan's."""

    tokens_per_step: float
    acceptance: float | None
    planned_tokens_per_step: float
    planned_acceptance: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """A load held against its prediction. ``ttft_ms`` and ``itl_ms``: percentiles over all its requests, and
    over all pairs of neighbouring tokens. ``engine_share``: of the time, what the engine's steps took."""

    load: Load
    planned: bool
    figures: tuple[Figure, ...]
    step: DecodeStep | None
    speculated: Speculated | None
    ttft_ms: Mapping[int, float]
    itl_ms: Mapping[int, float]
    requests: int
    seconds: float
    engine_share: float
    preempted: int

    def figure(self, name: str) -> Figure | None:
        return next((each for each in self.figures if each.name == name), None)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the spec's ``slo`` asks of the planned load, and what was measured."""

    name: str
    wanted: float
    measured: float

    @property
    def held(self) -> bool:
        least = self.name in _TIME_OF
        return self.measured >= self.wanted if least else self.measured <= self.wanted


def point(
    run: Run,
    predicted: Predicted | None,
    plan: Plan,
    seen: Outlook | None,
    planned: bool,
    now: Predicted | None = None,
) -> Point:
    """``run`` beside what is predicted for its load, and beside that with the rates of ``now``."""
    load = run.load
    return Point(
        load=load,
        planned=planned,
        figures=tuple(
            _figure(name, values, predicted, now)
            for name, values in _rounds(run).items()
            if not np.isnan(values[0])
        ),
        step=_step(run, predicted, plan, seen),
        speculated=_speculated(run, plan),
        ttft_ms=_percentiles(run.first),
        itl_ms=_percentiles(run.between),
        requests=len(run.first),
        seconds=run.seconds,
        engine_share=run.engine_share,
        preempted=run.preempted,
    )


def _rounds(run: Run) -> dict[str, list[float]]:
    """Each figure in each round, in the units and by the names of a plan's predictions."""
    found = {
        "ttft_ms": [each.ttft * 1e3 for each in run.rounds],
        "itl_ms": [each.itl * 1e3 for each in run.rounds],
    }
    if run.load.sequences == 1 and run.load.rate is None:
        found["prefill_tokens_per_second"] = [run.load.input_tokens / each.ttft for each in run.rounds]
        found["tokens_per_second_per_user"] = [1 / each.itl for each in run.rounds]
    found["tokens_per_second"] = [each.tokens_per_second for each in run.rounds]
    return found


def _figure(name: str, values: Sequence[float], predicted: Predicted | None, now: Predicted | None) -> Figure:
    expected = low = high = None
    if predicted is not None:
        expected, low, high = interval(predicted, name)
    here = None if now is None else float(getattr(now, name))
    return Figure(name, float(np.median(values)), min(values), max(values), expected, low, high, here)


def interval(predicted: Predicted, name: str) -> tuple[float, float, float]:
    """The figure ``name`` and the ends of its interval; a rate's are those of its time, turned over."""
    expected = float(getattr(predicted, name))
    time = _TIME_OF.get(name, name)
    middle, low, high = (float(getattr(predicted, time + end)) for end in ("", "_low", "_high"))
    if time == name:
        return expected, low, high
    return expected, expected * middle / high, expected * middle / low


def _step(run: Run, predicted: Predicted | None, plan: Plan, seen: Outlook | None) -> DecodeStep | None:
    seconds, load = run.decode_step(), run.load
    if seconds is None:
        return None
    if predicted is None:
        return DecodeStep(seconds, None, None, None)
    parts, context = predicted.step_ms, predicted.workload.context_tokens
    reckoned = (parts.weights + parts.cache + parts.compute + parts.fixed + parts.links) / 1e3
    plain = not plan.speculation.tokens
    read = seen.read_bytes(load.sequences, context) if plain and seen is not None else None
    return DecodeStep(seconds, reckoned, context, read)


def _speculated(run: Run, plan: Plan) -> Speculated | None:
    one, drafted = plan.speculation, run.drafted
    if not one.tokens or not drafted.steps:
        return None
    return Speculated(
        tokens_per_step=drafted.tokens / drafted.steps,
        acceptance=drafted.kept / drafted.chained if drafted.chained else None,
        planned_tokens_per_step=one.tokens_per_step,
        planned_acceptance=one.acceptance,
    )


def _percentiles(seconds: Sequence[float]) -> dict[int, float]:
    if not seconds:
        return {}
    values = np.percentile(seconds, PERCENTILES) * 1e3
    return {mark: float(value) for mark, value in zip(PERCENTILES, values, strict=True)}


def goals(slo: Slo, points: Sequence[Point]) -> tuple[Goal, ...]:
    """What ``slo`` states, of the planned load, where that is among ``points``."""
    found = []
    for each in points:
        for name, wanted in slo.model_dump().items() if each.planned else ():
            figure = each.figure(name)
            if wanted is not None and figure is not None:
                found.append(Goal(name, float(wanted), figure.measured))
    return tuple(found)


def strays(points: Sequence[Point], percent: float) -> tuple[tuple[Load, Figure], ...]:
    """The figures that differ by more than ``percent`` from what was predicted."""
    return tuple(
        (each.load, figure)
        for each in points
        for figure in each.figures
        if (figure.off_percent or 0.0) > percent and not math.isnan(figure.measured)
    )
