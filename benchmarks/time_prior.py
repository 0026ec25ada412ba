"""What the fit of the time coefficients believes before it sees a row: means, deviations, and levels of
effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from time_fit import Level, Model
from time_rows import EFFICIENCIES

# Where each coefficient is pulled to: efficiencies as shares, costs in microseconds.
PRIOR = {
    "weight": 0.8,
    "cache": 0.7,
    "matrix": 0.55,
    "expert": 0.35,
    "attention": 0.35,
    "decode_matrix": 0.4,
    "decode_attention": 0.1,
    "link": 0.6,
    "step": 500,
    "layer": 20,
    "mixture": 20,
    "sequence": 8,
    "prompt": 100,
    "prompt_layer": 30,
    "reduce": 10,
    "node": 30,
}
MEANS = {n: math.log(v / (1 - v)) if n in EFFICIENCIES else math.log(v) for n, v in PRIOR.items()}
WAIT_PRIOR = {"own": 0.5, "together": 0.15, "queue": 1.0, "steps": 2.0, "queued": 0.05, "request": 15_000}
WAIT_MEANS = {name: math.log(value) for name, value in WAIT_PRIOR.items()}
BY_FORMAT = ("weight", "matrix", "expert", "decode_matrix")
ROUTING = (0.4, 0.6, 0.75, 0.9, 1.0)
USUAL_ROUTING = 0.9

# Deviations of effects, of all coefficients and of the cost of a layer, chosen by the cross-validation's
# error.
DEVIATIONS = {
    "servers": {
        "base": (0.7, 0.4),
        "engine": (0.2, 0.15),
        "generation": (0.4, 0.3),
        "family": (0.3, 0.2),
        "class": (0.3, 0.2),
        "pair": (0.3, 0.2),
        "format": (0.5, 0.5),
        "own format": (0.4, 0.4),
    },
    "local": {
        "base": (0.7, 1.0),
        "engine": (0.3, 0.5),
        "generation": (0.3, 0.5),
        "family": (0.3, 0.8),
        "class": (0.15, 0.4),
        "pair": (0.4, 1.0),
        "format": (0.5, 0.5),
        "own format": (0.4, 0.4),
    },
    "waiting": {
        "base": (0.5, 0.5),
        "kind": (0.2, 0.2),
        "engine": (0.15, 0.15),
        "generation": (0.05, 0.05),
        "class": (0.025, 0.025),
        "pair": (0.025, 0.025),
    },
}
QUEUED = {"base": 1.0, "engine": 0.3, "generation": 2.0, "class": 0.1, "pair": 0.1}
"""Of the requests that wait for a slot: one benchmark keeps one waiting, most none."""
SCALES = {"servers": 0.1, "local": 0.07, "waiting": 0.2}


@dataclass(frozen=True)
class Place:
    """Where a coefficient is asked for."""

    engine: str
    generation: str
    like: str
    """The generation whose rates it shares."""
    family: str
    device_class: str
    weights: str = ""
    mixture: bool = False


def rate_levels(place: Place, name: str) -> list[Level]:
    levels: list[Level] = [("base",), ("engine", place.engine)]
    levels.append(("generation", place.engine, place.like))
    levels += [("family", place.family), ("class", place.device_class)]
    levels.append(("pair", place.engine, place.like, place.device_class))
    if name in BY_FORMAT:
        levels += [("format", place.weights), ("own format", place.engine, place.like, place.weights)]
    return levels


def wait_levels(place: Place, name: str) -> list[Level]:
    levels: list[Level] = [("base",), ("engine", place.engine)]
    if name in ("own", "together", "steps"):
        levels.append(("kind", str(place.mixture)))
    levels += [("generation", place.engine, place.generation), ("class", place.device_class)]
    levels.append(("pair", place.engine, place.generation, place.device_class))
    return levels


def model_of(
    name: str,
    places: Sequence[Place],
    names: tuple[str, ...],
    means: dict[str, float],
    levels: Callable[[Place, str], list[Level]],
) -> Model:
    deviations = DEVIATIONS[name]
    return Model(
        names=names,
        means=means,
        shares=frozenset(EFFICIENCIES) & frozenset(names),
        levels=lambda row, coefficient: levels(places[row], coefficient),
        deviation=lambda coefficient, kind: (
            QUEUED[kind] if coefficient == "queued" else deviations[kind][coefficient == "layer"]
        ),
        scale=SCALES[name],
    )
