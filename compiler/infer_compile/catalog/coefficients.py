"""What turns bytes and operations into seconds: data with sources, in coefficients.yaml.

Measurements calibrate an engine (in one build) on a class of devices. Where none exist, what is known of the
engine elsewhere speaks, and at last a prior; how far a figure was carried is told with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
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

    Efficiencies are shares of the target's bandwidth and dense rate, by weight format or cache level;
    ``other`` stands for those without an entry. Products of a processor may exceed one: its rate is that
    of a product of floats, and ours are of integers, or of one query and hidden behind what it reads.
    ``cache_slots``: where ``cache_efficiency`` is of reading alone, the instructions of a lane that attention
    of single tokens issues besides for each number of the cache, by level.
    ``integer_levels``: those whose codes it multiplies as bytes, at the device's rate for them.
    ``coded_attention``: how many times faster attention multiplies codes of our own cache than numbers in
    bf16. ``step_us`` and ``sequence_us`` are what a server's streams take beside the engine; of these
    ``http_step_us`` and ``http_sequence_us`` are its HTTP. ``reduce_us`` is one all-reduce within a machine
    and ``node_us`` one message between machines, their bytes aside. ``routing`` is the exponent of the tokens
    that choose experts independently: real tokens of a batch share experts more often than chance does.
    """

    weight_efficiency: dict[str, Share]
    cache_efficiency: dict[str, Share]
    cache_slots: Mapping[str, Ratio] = {}
    integer_levels: tuple[str, ...] = ()
    matrix_efficiency: dict[str, Ratio]
    expert_efficiency: dict[str, Share]
    attention_efficiency: Share
    decode_matrix_efficiency: dict[str, Ratio]
    decode_attention_efficiency: Ratio
    coded_attention: Ratio = 1.0
    link_efficiency: Share
    step_us: Micro
    layer_us: Micro
    mixture_us: Micro
    sequence_us: Micro
    http_step_us: Micro = 0.0
    http_sequence_us: Micro = 0.0
    prompt_us: Micro
    prompt_layer_us: Micro
    reduce_us: Micro
    node_us: Micro
    routing: Share

    @model_validator(mode="after")
    def _complete(self) -> Rates:
        for name in (
            "weight_efficiency",
            "cache_efficiency",
            "matrix_efficiency",
            "expert_efficiency",
            "decode_matrix_efficiency",
        ):
            if "other" not in getattr(self, name):
                raise ValueError(f'{name} lacks "other"')
        if self.http_step_us > self.step_us or self.http_sequence_us > self.sequence_us:
            raise ValueError("HTTP takes more than a step or a sequence does")
        return self


class Wait(Frozen):
    """What the first token of one prompt among others takes, in prefills of an idle engine: of ``own`` for
    the prompt itself, ``together`` for each of half of the other requests in flight (those that start
    together), ``queue`` times the wait of a queue with that load; and ``steps`` decode steps."""

    own: Ratio
    together: Annotated[float, Field(ge=0)]
    queue: Annotated[float, Field(ge=0)]
    steps: Annotated[float, Field(ge=0)]


class Waiting(Frozen):
    """The wait for a first token, of models with and without experts. ``queued``: requests of a closed load
    that wait for a slot though there is one for each. ``request_us``: before the engine sees a request."""

    dense: Wait
    mixture: Wait
    queued: Annotated[float, Field(ge=0)]
    request_us: Micro


class Admission(Frozen):
    """What an engine reserves when it starts a request: this share of its answer; and of each token's cache
    the share of what the cache level says, by weight format, as far as measured waiting tells."""

    answer: Share
    kept: dict[str, Share]


class Spread(Frozen):
    """Measured over predicted time: the quantiles that hold 80 % of what was left out of the fit."""

    itl: tuple[Ratio, Ratio]
    ttft: tuple[Ratio, Ratio]
    e2e: tuple[Ratio, Ratio]


class Generation(Frozen):
    """Builds of an engine that are taken to be alike, by patterns of their names (``*`` for anything), and
    how the measured runs were set: ``step_tokens`` tokens of a step."""

    engine: str
    name: str = ""
    builds: tuple[str, ...]
    admission: Admission
    step_tokens: int
    like: str = ""
    """The generation that its rates are fitted together with."""
    source: str

    def holds(self, build: str) -> bool:
        return any(fnmatchcase(build, pattern) for pattern in self.builds)


class Calibration(Frozen):
    """A generation of an engine on a class of devices, on a family of classes, or (None) on any device."""

    engine: str
    generation: str = ""
    device_class: str | None = None
    devices: tuple[str, ...] = ()
    """Those of the class that were measured; none: carried over from other classes or generations."""
    formats: tuple[str, ...] = ()
    """The weight formats that were measured."""
    rates: Rates
    waiting: Waiting
    spread: Spread
    basis: Basis
    source: str


class Issue(Frozen):
    """How fast a device issues instructions. ``operations``: dense ones in bf16 that its tensor cores do in
    the time of one instruction of one lane, by compute capability."""

    operations: Mapping[str, Ratio]
    source: str

    def share(self, target: Target) -> float:
        """Instructions of lanes for each bf16 operation; of a generation that is not known the fewest."""
        return 1 / self.operations.get(target.compute_capability or "", max(self.operations.values()))


class Coefficients(Frozen):
    """``sustained`` is the share of a processor's peak bandwidth that its cores reach, for those that were
    not probed; the efficiencies of other kinds are shares of the datasheet's peak. ``widen`` is the power
    that an interval is raised to where figures were carried from afar."""

    schema_version: Literal[1]
    sustained: Share
    sustained_source: str
    widen: dict[Reach, Annotated[float, Field(ge=1)]]
    classes: tuple[DeviceClass, ...]
    issue: Issue
    stand_ins: Mapping[str, str] = {}
    """Engines without measurements to those whose figures speak for them."""
    alike: Mapping[str, tuple[str, ...]] = {}
    """Weight formats to others whose kernels are of the same kind, the nearest first: their figures speak for
    a format that was not measured, which would else look better than one that was."""
    alike_source: str = ""
    generations: tuple[Generation, ...]
    """Of each engine the oldest first."""
    calibrations: tuple[Calibration, ...]

    def share(self, shares: Mapping[str, float], name: str) -> float:
        """Of efficiencies by weight format or cache level: that of ``name``, else of what is alike."""
        known = (each for each in (name, *self.alike.get(name, ())) if each in shares)
        return shares[next(known, "other")]

    def device_class(self, target: Target) -> DeviceClass:
        """The first class that holds ``target``; the last holds all."""
        return next(each for each in self.classes if each.holds(target))

    def generation(self, engine: str, build: str) -> str | None:
        """The generation that ``build`` belongs to; None if it is not known."""
        mine = [each for each in self.generations if each.engine == engine]
        return next((each.name for each in mine if each.holds(build)), None)

    def settings(self, calibration: Calibration) -> Generation:
        """The generation of ``calibration``; raises KeyError where the file lacks it."""
        for each in self.generations:
            if (each.engine, each.name) == (calibration.engine, calibration.generation):
                return each
        raise KeyError((calibration.engine, calibration.generation))

    def find(
        self, engine: str, target: Target, weights: str, build: str | None = None
    ) -> tuple[Calibration, Reach]:
        """What is known nearest to ``engine`` on ``target`` with ``weights``, and how near that is.

        Of the generation of ``build``; of an unknown one the newest generation that was measured
        on the class of the device with that weight format, else on the class, on its family, elsewhere. None
        is the build of today, whatever the format: an older one must not make its formats look worse. An
        engine without any entry gets the prior.
        """
        stands = engine in self.stand_ins
        engine = self.stand_ins.get(engine, engine)
        found = self.device_class(target)
        named = self.generation(engine, build) if build else None
        mine = [each for each in self.calibrations if each.engine == engine]
        if named is not None:
            mine = [each for each in mine if each.generation == named]
        here = [each for each in mine if each.device_class == found.name]
        family = [each for each in mine if each.device_class == found.family]
        measured = [each for each in here if each.devices]
        exact = [each for each in measured if weights in each.formats and build is not None]
        order: tuple[tuple[list[Calibration], Reach], ...] = (
            (exact, "class"),
            (measured, "class"),
            (here, "family"),
            (family, "family"),
            ([each for each in mine if each.device_class is None], "engine"),
            ([each for each in self.calibrations if each.engine == "prior"], "prior"),
        )
        entries, reach = next(each for each in order if each[0])
        # Entries stand in the order of their generations.
        newest = entries[-1]
        if stands:
            return newest, "engine"
        return newest, "device" if target.id in newest.devices else reach
