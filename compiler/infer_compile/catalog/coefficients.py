"""What the planner multiplies bytes and operations with to get seconds: data with sources, in coefficients.yaml.

Measurements calibrate an engine (in one build) on a class of devices. Where none exist, what is known of the
engine elsewhere speaks, and at last a prior; how far a figure was carried is told with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .figure import Basis, Frozen
from .target import Target

Share = Annotated[float, Field(gt=0, le=1)]
"""Above one a prediction would lie below the physical bound."""
Micro = Annotated[float, Field(ge=0)]
"""Microseconds."""
Ratio = Annotated[float, Field(gt=0)]

Reach = Literal["device", "class", "family", "engine", "prior"]
"""How near the nearest measurements are: on this device with this engine, on a device of its class, of its
family of classes, elsewhere with this engine, nowhere. Nearest first."""

REACHES: tuple[Reach, ...] = ("device", "class", "family", "engine", "prior")


class DeviceClass(Frozen):
    """Devices whose coefficients are taken to be alike. An empty list matches every device."""

    name: str
    family: str
    vendors: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()

    def holds(self, target: Target) -> bool:
        pairs = (
            (self.vendors, target.vendor),
            (self.kinds, target.kind),
            (self.capabilities, target.compute_capability),
        )
        return all(not allowed or value in allowed for allowed, value in pairs)


class Rates(Frozen):
    """One engine, in one build, on one class of devices.

    Efficiencies are shares of the target's bandwidth and dense rate, by weight format or cache level; ``other``
    stands for those without an entry. ``reduce_us`` is one all-reduce within a machine and ``node_us`` one
    message between machines, their bytes aside. ``routing`` is the exponent of the tokens that choose experts
    independently: real tokens of a batch share experts more often than chance does.
    """

    weight_efficiency: dict[str, Share]
    cache_efficiency: dict[str, Share]
    matrix_efficiency: dict[str, Share]
    attention_efficiency: Share
    decode_matrix_efficiency: dict[str, Share]
    decode_attention_efficiency: Share
    link_efficiency: Share
    step_us: Micro
    layer_us: Micro
    mixture_us: Micro
    sequence_us: Micro
    prompt_us: Micro
    prompt_layer_us: Micro
    reduce_us: Micro
    node_us: Micro
    routing: Share

    @model_validator(mode="after")
    def _complete(self) -> Rates:
        for name in ("weight_efficiency", "cache_efficiency", "matrix_efficiency", "decode_matrix_efficiency"):
            if "other" not in getattr(self, name):
                raise ValueError(f'{name} lacks "other"')
        return self


class Waiting(Frozen):
    """What a first token waits for beside its own prompt: see ``planner.forecast``.

    ``others``: share of the prefill of the prompts in flight that a prompt waits for. ``queued``: requests of a closed
    load that wait for a slot though there is one for each. ``request_us``: before the engine sees a request.
    """

    others: Ratio
    queued: Annotated[float, Field(ge=0)]
    request_us: Micro


class Spread(Frozen):
    """Measured over predicted time: the quantiles that hold 80 % of what was left out of the fit."""

    itl: tuple[Ratio, Ratio]
    ttft: tuple[Ratio, Ratio]
    e2e: tuple[Ratio, Ratio]


class Calibration(Frozen):
    """``build`` None: any build without an entry of its own. ``device_class``: a class, a family, or None for any
    device."""

    engine: str
    build: str | None = None
    device_class: str | None = None
    devices: tuple[str, ...] = ()
    """Those that were measured."""
    formats: tuple[str, ...] = ()
    """The weight formats that were measured."""
    rates: Rates
    waiting: Waiting
    spread: Spread
    basis: Basis
    source: str


class Coefficients(Frozen):
    """``sustained`` is the share of a processor's peak bandwidth that its cores reach, for those that were not
    probed; the efficiencies of other kinds are shares of the datasheet's peak. ``widen`` is by how much an
    interval grows where figures were carried from afar."""

    schema_version: Literal[1]
    sustained: Share
    sustained_source: str
    widen: dict[Reach, Annotated[float, Field(ge=1)]]
    classes: tuple[DeviceClass, ...]
    calibrations: tuple[Calibration, ...]

    def device_class(self, target: Target) -> DeviceClass:
        """The first class that holds ``target``; the last holds all."""
        return next(each for each in self.classes if each.holds(target))

    def find(
        self, engine: str, target: Target, weights: str, build: str | None = None
    ) -> tuple[Calibration, Reach]:
        """What is known nearest to ``engine`` on ``target`` with ``weights``, and how near that is.

        A build that was measured on the class of the device comes first; then the newest one measured there with
        that weight format (the last in the file), the class, its family, the engine. An engine without any
        entry gets the prior.
        """
        found = self.device_class(target)
        places: tuple[tuple[str | None, Reach], ...] = (
            (found.name, "class"),
            (found.family, "family"),
            (None, "engine"),
        )
        mine = [each for each in self.calibrations if each.engine == engine]
        for place, reach in places:
            here = [each for each in mine if each.device_class == place]
            chosen = _choose(here, weights, build)
            if chosen:
                return chosen, "device" if target.id in chosen.devices else reach
        prior = next(each for each in self.calibrations if each.engine == "prior")
        return prior, "prior"


def _choose(here: list[Calibration], weights: str, build: str | None) -> Calibration | None:
    """Of calibrations of one engine and place: the build's, else the newest with the format, else the newest."""
    if build is not None:
        for each in here:
            if each.build is not None and build == each.build:
                return each
        plain = [each for each in here if each.build is None]
        if plain:
            return plain[-1]
    return _last(each for each in here if weights in each.formats) or _last(here)


def _last(found: Iterable[Calibration]) -> Calibration | None:
    last = None
    for last in found:
        pass
    return last
