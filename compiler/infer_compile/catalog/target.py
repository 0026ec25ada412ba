"""Devices: what memory, bandwidth and arithmetic each offers, one YAML per device in ``targets/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.check import check
from ..spec.document import read
from ..spec.fields import Positive, Strict, Text
from ..spec.unserved import nearest
from .resources import folder

THIS_MACHINE = "this-machine"


Architecture = Literal["x86-64", "aarch64"]
Isa = Literal["amx", "avx512", "avx2", "portable"]


class Rates(Strict):
    """Dense matrix rates with 32-bit accumulation, 1e12 operations per second.

    None: the device has no such arithmetic, or its rate is not published. So what a device can execute is
    what it has a rate for; one below that of bf16 says that the arithmetic exists and gains nothing.
    """

    bf16_tflops: Positive | None = None
    """Devices without bf16 arithmetic state their fp16 rate; the note says so."""
    fp8_tflops: Positive | None = None
    int8_tops: Positive | None = None
    fp4_tflops: Positive | None = None


class Link(Strict):
    name: Text
    gbs_per_direction: Positive | None = None


class Cpu(Strict):
    """What the native engine is compiled for when it runs on the processor."""

    architecture: Architecture
    isa: Isa
    """``amx`` stands for AMX with int8 beside all of ``avx512``, which is AVX-512 F, BW, DQ and VL with VNNI;
    ``avx2`` for AVX2 with FMA and F16C."""
    cores: Annotated[int, Field(ge=1)]


class Gpu(Strict):
    """The same where it runs on an NVIDIA GPU: compute capability 8.9 is 89."""

    capability: Annotated[int, Field(ge=10)]

    @property
    def isa(self) -> str:
        """In the words of NVIDIA's assembler."""
        return f"sm_{self.capability}"


class Price(Strict):
    """Prices move: for orientation only. A plan's cost is reckoned with what the spec states."""

    purchase_usd: Positive | None = None
    rent_usd_per_hour: tuple[Positive, Positive] | None = None
    """Lowest and highest seen."""


class Target(Strict):
    """One device: its figures, and where each stems from."""

    id: Text
    name: Text
    vendor: Text
    kind: Literal["cpu", "gpu", "unified"]
    """``unified``: processor and accelerator share the memory."""
    memory_gb: Positive
    """1e9 bytes; what the driver reports where that is known."""
    bandwidth_gbs: Positive
    """1e9 bytes per second: sustained reading if ``measured``, else the peak."""
    rates: Rates
    interconnect: Link | None = None
    """Between the devices of one machine, all links of a device together."""
    host_link: Link | None = None
    network: Link | None = None
    """Between machines, the share of one device: what the machines it is sold in have, or a typical one."""
    tdp_w: Positive | None = None
    compute_capability: Text | None = None
    price: Price | None = None
    cpu: Cpu | None = None
    note: str = ""
    sources: Mapping[str, Text]
    """Dotted figure (``memory_gb``, ``rates.int8_tops``) to its source; ``default`` speaks for the rest."""
    confidence: Literal["A", "B", "C"]
    """A: a datasheet-grade source or a measurement; B: mixed; C: recalled, to be verified."""
    measured: bool = False

    def source(self, figure: str) -> str:
        """Where ``figure`` stems from: its own entry, that of the group around it, or the default."""
        group = figure.partition(".")[0]
        keys = (figure, group, "default")
        return next((self.sources[key] for key in keys if key in self.sources), "")

    @property
    def compiled_for(self) -> Cpu | Gpu | None:
        """What the native engine is compiled for; None where it does not run on the device."""
        major, _, minor = (self.compute_capability or "").partition(".")
        if self.kind != "cpu" and major.isdigit() and minor.isdigit():
            return Gpu(capability=10 * int(major) + int(minor))
        return self.cpu if self.kind == "cpu" else None

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        if self.kind == "cpu" and self.cpu is None:
            raise PydanticCustomError(
                "IC007",
                "a target of kind cpu needs the section cpu",
                {"at": "kind", "fix": "cpu: {architecture: x86-64, isa: avx2, cores: 8}"},
            )
        if self.cpu and self.cpu.architecture == "aarch64" and self.cpu.isa != "portable":
            raise PydanticCustomError(
                "IC007",
                'isa "{isa}" does not exist on aarch64',
                {"isa": self.cpu.isa, "at": "cpu.isa", "fix": "isa: portable"},
            )
        return self


def target_names() -> tuple[str, ...]:
    """Every device of the catalog, sorted."""
    return tuple(sorted(path.stem for path in folder("targets").glob("*.yaml")))


def load_target(name_or_path: str, base: Path, where: str = "") -> Target:
    """The device of that name, or the one in a target file (``./my.yaml``, relative to ``base``).

    ``where`` is the place of the name, for the message. Raises IC020 for an unknown name, and what a broken
    file gives (IC001 to IC008), exit 2. ``this-machine`` is not looked up but measured: see ``probe``.
    """
    if is_file(name_or_path):
        path = base / name_or_path
        if not path.is_file():
            raise _unknown(f'there is no target file "{name_or_path}"', where, f"looked for {path}")
        return check(Target, read(path))
    names = target_names()
    found = {name.lower(): name for name in names}.get(name_or_path.lower())
    if found is None:
        close = nearest(name_or_path, (*names, THIS_MACHINE))
        fix = f"did you mean {close}?" if close else "infer-compile targets lists the names"
        raise _unknown(f'there is no target "{name_or_path}"', where, fix=fix)
    return check(Target, read(folder("targets") / f"{found}.yaml"))


def is_file(name_or_path: str) -> bool:
    """Whether a target is given as a file rather than by name."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or "\\" in name_or_path


def _unknown(message: str, where: str, because: str = "", fix: str = "") -> InferCompileError:
    return InferCompileError(Problem("IC020", message, where, because, fix), Exit.USAGE)
