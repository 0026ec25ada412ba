"""What each engine can serve, and what it takes of a device's memory: data with sources, in engines.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import field_validator, model_validator

from .data import read
from .figure import Figure, Frozen

Kind = Literal["cpu", "gpu", "unified"]
Way = Literal["tensor", "pipeline", "expert", "data"]
Part = Literal["weights", "kv", "speculation"]
"""What of a plan an engine serves by name."""


class Devices(Frozen):
    """Devices that meet all that is stated here; what is not stated does not matter.

    ``least`` and ``most`` are compute capabilities of NVIDIA ("8.9"), ``families`` the names by which other
    vendors tell their generations ("gfx942").
    """

    vendor: str = ""
    kinds: tuple[Kind, ...] = ()
    least: str = ""
    most: str = ""
    families: tuple[str, ...] = ()

    @field_validator("least", "most")
    @classmethod
    def _version(cls, text: str) -> str:
        if text and not all(part.isdigit() for part in text.split(".", 1)):
            raise ValueError('must be a compute capability such as "8.9"')
        return text


class Needs(Frozen):
    """What something asks of device and model.

    ``devices``: any one of these; none stated: every device that the engine runs on. ``latent``: the same for
    models with latent attention, where it differs, and ``sparse`` for those that select what they attend to;
    an empty list: none. ``architectures``: classes of the models that it is made for; none stated: all.
    ``group``: what the inputs of every matrix must divide by.
    """

    devices: tuple[Devices, ...] = ()
    latent: tuple[Devices, ...] | None = None
    sparse: tuple[Devices, ...] | None = None
    architectures: tuple[str, ...] = ()
    group: int = 1
    source: str
    note: str = ""


class Architectures(Frozen):
    """Hugging Face classes of the models that an engine runs.

    ``own``: those that our graph calls native. ``limited`` are those that run on some devices only,
    ``assumed`` those that the source does not list by this name; both are among ``served``, where those are
    listed.
    """

    own: bool = False
    served: tuple[str, ...] = ()
    limited: Mapping[str, Needs] = {}
    assumed: tuple[str, ...] = ()
    source: str

    @model_validator(mode="after")
    def _among(self) -> Architectures:
        if self.own:
            return self
        if stray := {*self.limited, *self.assumed} - set(self.served):
            raise ValueError(f"not among those served: {sorted(stray)}")
        return self


class TokenBudget(Frozen):
    """Bounds of the tokens of one step."""

    smallest: int
    largest: int
    source: str


class Activations(Frozen):
    """Bytes of activations of a step: 2 x tokens x hidden x ``factor``, by the devices that share a layer."""

    factor: Mapping[int, float]
    mixture_factor: Mapping[int, float]
    """The same for models with experts."""
    least_mib: float
    source: str


class EngineKind(Frozen):
    """An engine on one kind of device.

    ``share``: what ``memory_fraction`` of the device's memory is for: ``all`` that the engine takes;
    ``static``: weights and cache, activations beside them; ``cache``: the cache's part of what the rest
    leaves free. ``verified``: its step has been run on such a device; what has not is planned for only where
    it is pinned.
    ``activations``: None where they are counted buffer by buffer.
    """

    kind: Kind
    verified: bool = True
    share: Literal["all", "static", "cache"] = "all"
    memory_fraction: Figure
    overhead_gib: Figure
    weight_overhead_fraction: Figure
    activations: Activations | None = None
    batch_tokens: TokenBudget
    most_sequences: Figure

    @field_validator("memory_fraction")
    @classmethod
    def _share(cls, figure: Figure) -> Figure:
        if not 0 < figure.value <= 1:
            raise ValueError("must be more than 0 and at most 1")
        return figure


class Engine(Frozen):
    """One engine in one version: what it runs on, what it serves, how it splits a model.

    ``nodes``: it runs over several machines. ``experts_whole``: experts that are dealt go over all devices of
    a stage, never over parts of it. ``copies_whole``: copies of the attention that share dealt experts are
    one per device. ``windows_freed``: it gives pages back that no query sees again. ``evicts``: kinds of
    devices on which it is planned to go on, where that is asked, with a sequence that reaches the context,
    without its oldest tokens but the first. ``vocabulary_slack``: by
    how many tokens the vocabulary of a drafting model may differ. ``builds``: kinds of devices for which this
    version compiles a bundle, for one device. ``trees``: kinds of devices on which a step verifies several
    choices for a drafted token, and not chains alone.
    """

    name: str
    version: str
    sources: Mapping[str, str]
    """Field to where it was read; ``default`` speaks for the rest."""
    devices: tuple[Devices, ...]
    nodes: bool
    parallelism: tuple[Way, ...]
    experts_whole: bool = False
    copies_whole: bool = False
    architectures: Architectures
    weights: Mapping[str, Needs]
    kv: Mapping[str, Needs]
    speculation: Mapping[str, Needs] = {}
    vocabulary_slack: int = 0
    page_tokens: Figure
    windows_freed: bool
    evicts: tuple[Kind, ...] = ()
    builds: tuple[Kind, ...] = ()
    trees: tuple[Kind, ...] = ()
    kinds: tuple[EngineKind, ...]

    @property
    def title(self) -> str:
        """Name and version; our own has no version apart from this program's."""
        return f"{self.name} {self.version}".strip()

    def on(self, kind: Kind) -> EngineKind:
        """The engine on devices of ``kind``; raises KeyError where it does not run there."""
        for entry in self.kinds:
            if entry.kind == kind:
                return entry
        raise KeyError((self.name, kind))

    def builds_for(self, kind: Kind, devices: int) -> bool:
        """Whether this version compiles a bundle of the engine for so many devices of ``kind``."""
        return kind in self.builds and devices == 1

    def needs(self, part: Part) -> Mapping[str, Needs]:
        """The names that the engine serves as ``part`` of a plan."""
        return {"weights": self.weights, "kv": self.kv, "speculation": self.speculation}[part]

    def source(self, field: str) -> str:
        return self.sources.get(field, self.sources["default"])


class Engines(Frozen):
    """Every engine that a plan can name; the first of equals is preferred."""

    schema_version: Literal[1]
    engines: tuple[Engine, ...]

    def of(self, name: str) -> Engine:
        """The engine of that name; raises KeyError where there is none."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(engine.name for engine in self.engines)

    def served(self, part: Part) -> tuple[str, ...]:
        """The names that at least one engine serves as ``part`` of a plan, in the order of the engines."""
        return tuple(dict.fromkeys(name for engine in self.engines for name in engine.needs(part)))


def load_engines() -> Engines:
    """The table that ships with this version."""
    return Engines.model_validate(read("engines.yaml"))
