"""Maximum a posteriori: positive coefficients, each a sum of effects in logarithms, shrunk towards a prior.

The prediction of a row is a sum of features times coefficients. A coefficient's logarithm (of an efficiency
the logit) is its prior mean plus one effect for each level that the row belongs to (engine, generation,
family, class, format): Gaussian, of a stated deviation. Residuals are logarithms of predicted over measured,
with Student's t of four degrees of freedom, so that a broken run pulls little. Gauss-Newton steps with
Levenberg's damping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Level = tuple[str, ...]
"""Kind of the level, then its value."""
Effect = tuple[str, Level]
"""Coefficient, level."""


@dataclass(frozen=True)
class Model:
    """``means`` by coefficient; ``shares`` are those that are efficiencies; ``levels`` of a row by
    coefficient; ``deviation`` of an effect; ``scale`` of a residual."""

    names: tuple[str, ...]
    means: Mapping[str, float]
    shares: frozenset[str]
    levels: Callable[[int, str], Sequence[Level]]
    deviation: Callable[[str, str], float]
    scale: float

    def coefficient(self, name: str, levels: Sequence[Level], effects: Mapping[Effect, float]) -> float:
        """What multiplies the feature: seconds per second of an efficiency of 1, or of a unit of cost."""
        total = self.means[name] + sum(effects.get((name, level), 0.0) for level in levels)
        return float(_factor(np.array([total]), np.array([name in self.shares]))[0])


_WIDEST = 9.0
_TURNS = 40
_DEGREES = 4.0


@dataclass
class Design:
    """Rows with features that are not 0, spread over the effects."""

    row: np.ndarray
    name: np.ndarray
    column: np.ndarray
    effects: list[Effect] = field(default_factory=list)


def fit(
    model: Model,
    rows: Sequence[int],
    features: np.ndarray,
    offset: np.ndarray,
    seconds: np.ndarray,
    weights: np.ndarray,
    start: Mapping[Effect, float] | None = None,
    turns: int = _TURNS,
) -> dict[Effect, float]:
    """The effects that explain ``seconds`` of ``rows`` best; arrays have one entry for each of ``rows``."""
    design = _design(model, rows, features)
    deviations = np.array([model.deviation(name, level[0]) for name, level in design.effects])
    values = (
        np.array([start.get(effect, 0.0) for effect in design.effects])
        if start
        else np.zeros(len(deviations))
    )
    goal, damping = np.log(seconds), 1e-2
    predicted, slopes = _predict(model, design, features, offset, values)
    cost = _cost(model, weights, predicted - goal, values / deviations)
    for _ in range(turns):
        residual = predicted - goal
        pull = weights * (_DEGREES + 1) / (_DEGREES + (residual / model.scale) ** 2) / model.scale**2
        jacobian = np.zeros((len(rows), len(values)))
        np.add.at(jacobian, (design.row, design.column), slopes[design.row, design.name])
        pulled = jacobian * pull[:, None]
        hessian = jacobian.T @ pulled
        hessian[np.diag_indices(len(values))] += deviations**-2
        gradient = pulled.T @ residual + values / deviations**2
        while True:
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -gradient)
            tried = _predict(model, design, features, offset, values + step)
            reached = _cost(model, weights, tried[0] - goal, (values + step) / deviations)
            if reached <= cost or damping > 1e3:
                break
            damping *= 4
        if reached > cost:
            break
        settled = cost - reached < 1e-4 * max(1.0, cost)
        values, (predicted, slopes), cost, damping = values + step, tried, reached, max(damping / 5, 1e-5)
        if settled:
            break
    return dict(zip(design.effects, map(float, values), strict=True))


def predict(
    model: Model,
    rows: Sequence[int],
    features: np.ndarray,
    offset: np.ndarray,
    effects: Mapping[Effect, float],
) -> np.ndarray:
    """Seconds of ``rows``; a level that was not seen has no effect."""
    memo: dict[tuple[str, tuple[Level, ...]], float] = {}
    factors = np.zeros_like(features)
    for index, row in enumerate(rows):
        for column, name in enumerate(model.names):
            if features[index, column]:
                levels = tuple(model.levels(row, name))
                if (name, levels) not in memo:
                    memo[name, levels] = model.coefficient(name, levels, effects)
                factors[index, column] = memo[name, levels]
    total: np.ndarray = (features * factors).sum(axis=1) + offset
    return total


def group_weights(groups: Sequence[object]) -> np.ndarray:
    """A group of n rows counts as the root of n."""
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** -0.5 for group in groups])
    return np.minimum(weights * len(weights) / weights.sum(), 4.0)


def _design(model: Model, rows: Sequence[int], features: np.ndarray) -> Design:
    index: dict[Effect, int] = {}
    where: list[tuple[int, int, int]] = []
    for column, name in enumerate(model.names):
        for place, row in enumerate(rows):
            if features[place, column]:
                for level in model.levels(row, name):
                    where.append((place, column, index.setdefault((name, level), len(index))))
    row_index, names, columns = np.array(where).T
    return Design(row_index, names, columns, list(index))


def _predict(
    model: Model, design: Design, features: np.ndarray, offset: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of predictions, and their slopes by the logarithm (logit) of each coefficient."""
    sums = np.tile([model.means[name] for name in model.names], (len(features), 1))
    np.add.at(sums, (design.row, design.name), values[design.column])
    shares = np.array([name in model.shares for name in model.names])
    parts = features * _factor(sums, shares)
    total = parts.sum(axis=1) + offset
    falling = -features * np.exp(-np.clip(sums, -_WIDEST, _WIDEST))
    return np.log(total), np.where(shares, falling, parts) / total[:, None]


def _factor(sums: np.ndarray, shares: np.ndarray) -> np.ndarray:
    bounded = np.clip(sums, -_WIDEST, _WIDEST)
    return np.where(shares, 1 + np.exp(-bounded), np.exp(bounded))


def _cost(model: Model, weights: np.ndarray, residual: np.ndarray, shrunk: np.ndarray) -> float:
    heavy = np.log1p((residual / model.scale) ** 2 / _DEGREES) * (_DEGREES + 1) / 2
    return float((weights * heavy).sum() + 0.5 * (shrunk**2).sum())
