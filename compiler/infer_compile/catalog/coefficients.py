"""What the planner multiplies bytes and operations with: data with sources, in coefficients.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from ..runtime.formats.kv import LevelName

Basis = Literal["arithmetic", "measurement", "datasheet", "published", "assumption"]
"""Strongest first; ``arithmetic`` is exact."""
_STRENGTH: tuple[Basis, ...] = ("arithmetic", "measurement", "datasheet", "published", "assumption")


def weakest(bases: Iterable[Basis]) -> Basis:
    """What a number computed from numbers of these bases is worth."""
    return max(bases, key=_STRENGTH.index, default="arithmetic")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Frozen):
    value: float
    basis: Basis
    source: str


class TokenBudget(_Frozen):
    """Bounds of the tokens of one step."""

    smallest: int
    largest: int
    source: str


class EngineCoefficients(_Frozen):
    """One engine on one kind of device. Efficiencies are shares of the target's bandwidth and matrix rate."""

    engine: str
    kind: Literal["cpu", "gpu", "unified"]
    weight_efficiency: dict[str, Figure]
    """By weight format."""
    unmeasured_bandwidth: Figure
    """Share of a target's bandwidth to reckon with where it is a peak and not a measurement."""
    cache_efficiency: dict[LevelName, Figure]
    matrix_efficiency: dict[str, Figure]
    """By weight format; of the rate that ``latency.matrix_tflops`` takes for it."""
    attention_efficiency: Figure
    step_us: Figure
    layer_us: Figure
    sequence_us: Figure
    reduce_us: Figure
    """Of one all-reduce, its bytes aside."""
    memory_fraction: Figure
    overhead_gib: Figure
    weight_overhead_fraction: Figure
    batch_tokens: TokenBudget
    most_sequences: Figure

    @field_validator("unmeasured_bandwidth", "attention_efficiency", "memory_fraction")
    @classmethod
    def _share(cls, figure: Figure) -> Figure:
        # Above one a prediction would lie below the physical bound.
        if not 0 < figure.value <= 1:
            raise ValueError("must be more than 0 and at most 1")
        return figure

    @field_validator("weight_efficiency", "cache_efficiency", "matrix_efficiency")
    @classmethod
    def _shares(cls, figures: dict[str, Figure]) -> dict[str, Figure]:
        return {name: cls._share(figure) for name, figure in figures.items()}

    @property
    def time_basis(self) -> Basis:
        """What a predicted time is worth, as far as the engine is concerned."""
        return weakest(
            figure.basis
            for figure in (
                *self.weight_efficiency.values(),
                *self.cache_efficiency.values(),
                *self.matrix_efficiency.values(),
                self.attention_efficiency,
                self.step_us,
                self.layer_us,
                self.sequence_us,
            )
        )


class Queueing(_Frozen):
    """Time to first token over that of the bare prefill, by the number of sequences in flight."""

    source: str
    basis: Basis
    concurrency: tuple[int, ...]
    factor: tuple[float, ...]

    @model_validator(mode="after")
    def _table(self) -> Queueing:
        if len(self.concurrency) != len(self.factor) or list(self.concurrency) != sorted(
            set(self.concurrency)
        ):
            raise ValueError("concurrency has to rise, with one factor each")
        return self


class CacheChoices(_Frozen):
    page_tokens: Figure
    sink_pages: Figure
    recent_pages: Figure


class ChoiceMargins(_Frozen):
    prefill_efficiency: Figure
    compressed_gain: Figure
    lossy_gain: Figure


class Coefficients(_Frozen):
    schema_version: Literal[1]
    engines: tuple[EngineCoefficients, ...]
    queueing: Queueing
    cache: CacheChoices
    choice: ChoiceMargins

    def of(self, engine: str, kind: str) -> EngineCoefficients:
        """Those of ``engine`` on a target of ``kind``; raises KeyError where there are none."""
        for entry in self.engines:
            if (entry.engine, entry.kind) == (engine, kind):
                return entry
        raise KeyError((engine, kind))


class Loss(_Frozen):
    """Expected loss of a format or level for models of ``parameters_b`` (from, below), in percent."""

    name: str
    parameters_b: tuple[float, float]
    low: float
    expected: float
    high: float
    basis: Basis
    source: str

    @model_validator(mode="after")
    def _ordered(self) -> Loss:
        if not self.low <= self.expected <= self.high:
            raise ValueError("low, expected and high have to rise")
        return self


class Quality(_Frozen):
    """Evidence on what each weight format and each cache level costs."""

    schema_version: Literal[1]
    default_budget_percent: Figure
    weights: tuple[Loss, ...]
    kv: tuple[Loss, ...]

    def of_weights(self, name: str, parameters: int) -> Loss:
        """The loss of a weight format; raises KeyError where nothing is known."""
        return _find(self.weights, name, parameters)

    def of_kv(self, name: str, parameters: int) -> Loss:
        """The loss of a cache level; raises KeyError where nothing is known."""
        return _find(self.kv, name, parameters)


def _find(losses: tuple[Loss, ...], name: str, parameters: int) -> Loss:
    for loss in losses:
        start, end = loss.parameters_b
        if loss.name == name and start <= parameters / 1e9 < end:
            return loss
    raise KeyError((name, parameters))


class Facts(_Frozen):
    """All that the planner knows beside the spec, the graph and the target."""

    coefficients: Coefficients
    quality: Quality


def load_facts() -> Facts:
    """The facts that ship with this version."""
    return Facts(
        coefficients=Coefficients.model_validate(_read("coefficients.yaml")),
        quality=Quality.model_validate(_read("quality.yaml")),
    )


def _read(name: str) -> object:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    # libyaml, where PyYAML was built with it, is ten times faster.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
