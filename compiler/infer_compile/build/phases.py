"""The phases of a build: what each writes, what it depends on, and the work."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ..bundle import layout
from ..catalog.target import Cpu, Gpu
from ..codegen import gpu_engine
from ..codegen.engine import emit
from ..planner.plan import Plan
from ..quantize.cache.fold import Basis, folded
from ..quantize.checkpoint import Checkpoint
from ..quantize.disk import save
from ..quantize.write import write
from ..runtime.formats.manifest import DRAFTED, Engine, Manifest
from ..runtime.formats.program import Program
from . import calibration, identity, ship
from .device import Device
from .inputs import Draft, Inputs
from .journal import Journal
from .phase import Phase, Work
from .progress import Advance
from .requirements import TRACING, direct, on_gpus, pinned
from .templates import render

DEPLOYED = (
    "Dockerfile",
    "compose.yaml",
    "kubernetes/deployment.yaml",
    "kubernetes/service.yaml",
    "requirements.txt",
    "prometheus.yaml",
    "alerts.yaml",
    "dashboard.json",
)
"""Files of ``deploy/``, each from its template."""
ACCEPTANCE_LOW = 0.5
"""Share of the planned acceptance below which an alert is raised."""


@dataclass(frozen=True, slots=True)
class Made:
    """The engine that was built: of ``plan``, which says what was measured, running ``program``."""

    plan: Plan
    program: Program


def names(inputs: Inputs) -> tuple[str, ...]:
    """The phases of a build from ``inputs``, in order."""
    calibrate = ("calibrate",) if inputs.calibration else ()
    gate = ("reference", "gate") if inputs.gate else ()
    built = ("engine", *gate) if inputs.measured_by is None else (STAND_IN, *gate, "engine")
    draft = ("draft",) if inputs.draft else ()
    closing = ("plan", "runtime", "deploy", "manifest")
    return ("spec", *calibrate, "program", "weights", *built, *draft, *closing)


STAND_IN = "stand-in"
SCRATCH: Mapping[str, str] = MappingProxyType(
    {"calibrate": calibration.FOLDER, "reference": "reference", STAND_IN: STAND_IN}
)
"""Phases that make something for the build alone, and the folders they make."""


def spec(inputs: Inputs) -> Phase:
    def work(folder: Path, advance: Advance) -> None:
        save(folder / layout.SPEC, inputs.spec)

    return _phase("spec", (layout.SPEC,), (inputs.spec.decode("utf-8", "replace"),), work)


def program(program: Program) -> Phase:
    def work(folder: Path, advance: Advance) -> None:
        (folder / layout.PROGRAM).parent.mkdir(exist_ok=True)
        save(folder / layout.PROGRAM, program.to_json().encode())

    return _phase("program", (layout.PROGRAM,), (program.digest,), work)


def weights(inputs: Inputs, program: Program, bases: Mapping[int, Basis]) -> Phase:
    """``bases`` of the values are folded into the weights before these are rounded."""

    def work(folder: Path, advance: Advance) -> None:
        checkpoint = Checkpoint.open(inputs.folder)
        write(
            folded(checkpoint, program, bases) if bases else checkpoint,
            program,
            folder / layout.MODEL,
            config=inputs.model.config,
            progress=lambda _, done, total: advance(done, total),
        )

    # How the cache is kept does not bear on the weights: a raised level leaves them as they are.
    stored = program.model_dump_json(exclude={"cache", "limits"})
    parts = (stored, inputs.model_digest, identity.tool(inputs.toolchain), identity.of_bases(bases))
    return _phase("weights", (layout.MODEL,), parts, work, resumes=True)


def engine(inputs: Inputs, program: Program, fitted: str) -> Phase:
    """``fitted`` is the digest of what a calibrated cache was fitted to, if it is one."""

    def work(folder: Path, advance: Advance) -> None:
        if fitted:
            calibration.take_along(folder, layout.ENGINE)
        _emit(inputs.device, program, folder, advance)

    parts = _compiled(inputs, program, str(inputs.device), fitted)
    return replace(_phase("engine", (layout.ENGINE,), parts, work), unit="kernels")


def stand_in(inputs: Inputs, program: Program, fitted: str, cpu: Cpu) -> Phase:
    """What is measured in place of a GPU's engine: one of the same program for ``cpu``, this machine's."""

    def work(folder: Path, advance: Advance) -> None:
        if fitted:
            calibration.take_along(folder, STAND_IN)
        emit(program, cpu.architecture, cpu.isa, folder / layout.MODEL, folder / STAND_IN)

    return _phase(STAND_IN, (STAND_IN,), _compiled(inputs, program, str(cpu), fitted), work)


def _compiled(inputs: Inputs, program: Program, device: str, fitted: str) -> tuple[str, ...]:
    return (program.digest, inputs.model_digest, identity.tool(inputs.toolchain), device, fitted)


def _untold(done: int, total: int) -> None:
    """Where nobody asks how far the work has come."""


def _emit(device: Device, program: Program, place: Path, advance: Advance = _untold) -> None:
    """The engine of the weights in the folder ``place``."""
    model, engine = place / layout.MODEL, place / layout.ENGINE
    if isinstance(device, Cpu):
        emit(program, device.architecture, device.isa, model, engine)
    else:
        gpu_engine.emit(program, device.capability, model, engine, advance=advance)


def draft(inputs: Inputs, found: Draft) -> Phase:
    """The weights and the engine of the model or the heads that draft."""

    def work(folder: Path, advance: Advance) -> None:
        place = folder / layout.DRAFT
        write(
            found.checkpoint,
            found.program,
            place / layout.MODEL,
            config=found.model.config,
            progress=lambda _, done, total: advance(done, total),
        )
        _emit(inputs.device, found.program, place)
        if found.tokens is not None:
            save(place / layout.ENGINE / DRAFTED, found.tokens.astype("<i4").tobytes())

    # Heads take what they do not have from the model.
    parts = (
        found.program.digest,
        found.digest,
        inputs.model_digest,
        identity.tool(inputs.toolchain),
        str(inputs.device),
    )
    return _phase("draft", (layout.DRAFT,), parts, work)


def closing(inputs: Inputs, made: Made, journal: Journal) -> tuple[Phase, ...]:
    """What follows once the engine is what it will be; the last phase lists what ``journal`` says that the
    others wrote."""
    packages = pinned([*direct(), *(TRACING if inputs.serving.traces else ())])
    if inputs.kind == "cuda":
        packages = sorted({**dict(packages), **dict(on_gpus())}.items())
    pins = "\n".join("==".join(package) for package in packages)
    tool, decided = identity.tool(inputs.toolchain), made.plan.digest

    def plan(folder: Path, advance: Advance) -> None:
        save(folder / layout.PLAN, made.plan.to_json().encode())

    def runtime(folder: Path, advance: Advance) -> None:
        ship.copy(folder / layout.RUNTIME, inputs.kind)

    def deploy(folder: Path, advance: Advance) -> None:
        values = _values(inputs, made.plan, packages)
        for name in DEPLOYED:
            (folder / layout.DEPLOY / name).parent.mkdir(parents=True, exist_ok=True)
            save(folder / layout.DEPLOY / name, render(f"deploy/{name}.j2", **values).encode())
        save(folder / layout.README, render("bundle/README.md.j2", **values).encode())

    def manifest(folder: Path, advance: Advance) -> None:
        listed = Manifest(
            name=inputs.plan.name,
            plan=inputs.plan.digest,
            program=made.program.digest,
            asked=inputs.asked,
            source=inputs.source,
            engine=_engine(inputs),
            serving=inputs.serving,
            speculation=inputs.speculation,
            toolchain=inputs.toolchain,
            files=journal.files(layout.MANIFEST, SCRATCH),
        )
        save(folder / layout.MANIFEST, listed.sealed().to_json().encode())

    speculation, serving = str(inputs.speculation), str(inputs.serving)
    all_of_it = (inputs.plan.digest, decided, made.program.digest, tool, inputs.model_digest, pins)
    drafts = (draft(inputs, inputs.draft),) if inputs.draft else ()
    return (
        *drafts,
        _phase("plan", (layout.PLAN,), (decided,), plan),
        _phase("runtime", (layout.RUNTIME,), (tool, inputs.kind), runtime),
        _phase("deploy", (layout.DEPLOY, layout.README), (decided, tool, pins, serving), deploy),
        _phase(
            "manifest", (layout.MANIFEST,), (*all_of_it, str(inputs.asked), speculation, serving), manifest
        ),
    )


def _phase(
    name: str, outputs: tuple[str, ...], parts: tuple[str, ...], work: Work, *, resumes: bool = False
) -> Phase:
    return Phase(name, outputs, identity.key(name, *parts), work, resumes)


def _engine(inputs: Inputs) -> Engine:
    """As the manifest has it."""
    plan = inputs.plan
    verified = inputs.resolved.facts.engines.of(plan.engine).on(plan.target.kind).verified
    return Engine(kind=inputs.kind, isa=inputs.device.isa, verified=verified)


def _label(name: str) -> str:
    """A bundle's name as Kubernetes takes it for a service: without dots, and with a letter in front."""
    plain = name.replace(".", "-")
    return plain if plain[0].isalpha() else f"serve-{plain}"[:63].rstrip("-")


def _values(inputs: Inputs, plan: Plan, packages: list[tuple[str, str]]) -> dict[str, object]:
    """What the templates may use."""
    return {
        "name": plan.name,
        "label": _label(plan.name),
        "version": identity.tool_version(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": packages,
        "plan": inputs.plan.digest,
        "engine": _engine(inputs),
        "capability": divmod(inputs.device.capability, 10) if isinstance(inputs.device, Gpu) else None,
        "memory_mib": math.ceil(plan.predicted.memory_gib.total * 1024),
        "measured": plan.measured,
        "port": inputs.serving.port,
        "model": plan.model.name,
        "target": plan.target.name,
        "weights": plan.weights.format,
        "kv": plan.kv.level,
        "max_context": plan.limits.max_context,
        "max_sequences": plan.limits.max_sequences,
        "overflow": plan.limits.overflow,
        "speculation": plan.speculation,
        "acceptance": plan.speculation.acceptance,
        "acceptance_low": round((plan.speculation.acceptance or 0) * ACCEPTANCE_LOW, 3),
        "ttft_seconds": round(plan.predicted.ttft_ms_high / 1000, 4),
        "itl_seconds": round(plan.predicted.itl_ms_high / 1000, 5),
        "checked_tokens": plan.limits.checked_tokens,
        "drift_percent": inputs.gate.budget if inputs.gate else plan.predicted.quality_loss_percent.high,
        "first_tokens": plan.kv.sink_pages * plan.kv.page_tokens,
    }
