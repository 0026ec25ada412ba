"""Evidence on what formats and cache levels cost, by size of the model: data with sources, in quality.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from .figure import Basis, Figure, Frozen


class Loss(Frozen):
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


class Quality(Frozen):
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
