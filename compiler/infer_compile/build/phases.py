"""The phases of a build: what each writes, what it depends on, and the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bundle import layout
from ..codegen.engine import emit
from ..quantize.checkpoint import Checkpoint
from ..quantize.disk import save
from ..quantize.write import write
from ..runtime.formats.manifest import Engine, Manifest, Serving
from . import identity, ship
from .inputs import Inputs
from .journal import Journal
from .progress import Advance
from .requirements import direct, pinned
from .templates import render

Work = Callable[[Path, Advance], None]


@dataclass(frozen=True, slots=True)
class Phase:
    """A numbered step.

    ``outputs`` are the files and folders that it writes, ``key`` is the digest of what they depend on.
    ``work`` writes them below the folder that it is given, and ``resumes`` if it knows by itself what of an
    unfinished run is whole.
    """

    label: str
    name: str
    outputs: tuple[str, ...]
    key: str
    work: Work
    resumes: bool


def phases(inputs: Inputs, journal: Journal) -> tuple[Phase, ...]:
    """The phases of a build from ``inputs``; the last lists what ``journal`` says that the others wrote."""
    plan, program = inputs.plan.digest, inputs.program.digest
    tool = identity.key(*(f"{name} {version}" for name, version in sorted(inputs.toolchain.items())))
    packages = pinned(direct())
    pins = "\n".join("==".join(package) for package in packages)

    def spec(folder: Path, advance: Advance) -> None:
        save(folder / layout.SPEC, inputs.spec)

    def decided(folder: Path, advance: Advance) -> None:
        save(folder / layout.PLAN, inputs.plan.to_json().encode())

    def lowered(folder: Path, advance: Advance) -> None:
        (folder / layout.PROGRAM).parent.mkdir(exist_ok=True)
        save(folder / layout.PROGRAM, inputs.program.to_json().encode())

    def weights(folder: Path, advance: Advance) -> None:
        write(
            Checkpoint.open(inputs.folder),
            inputs.program,
            folder / layout.MODEL,
            config=inputs.model.config,
            progress=lambda _, done, total: advance(done, total),
        )

    def engine(folder: Path, advance: Advance) -> None:
        cpu = inputs.cpu
        emit(inputs.program, cpu.architecture, cpu.isa, folder / layout.MODEL, folder / layout.ENGINE)

    def runtime(folder: Path, advance: Advance) -> None:
        ship.copy(folder / layout.RUNTIME)

    def deploy(folder: Path, advance: Advance) -> None:
        values = _values(inputs, packages)
        (folder / layout.DEPLOY).mkdir(exist_ok=True)
        for name in ("Dockerfile", "compose.yaml", "requirements.txt"):
            save(folder / layout.DEPLOY / name, render(f"deploy/{name}.j2", **values).encode())
        save(folder / layout.README, render("bundle/README.md.j2", **values).encode())

    def manifest(folder: Path, advance: Advance) -> None:
        listed = Manifest(
            name=inputs.plan.name,
            plan=plan,
            program=program,
            source=inputs.source,
            engine=Engine(kind="cpu", isa=inputs.cpu.isa),
            serving=Serving(port=inputs.port),
            toolchain=inputs.toolchain,
            files=journal.files(layout.MANIFEST),
        )
        save(folder / layout.MANIFEST, listed.sealed().to_json().encode())

    steps: tuple[tuple[str, tuple[str, ...], tuple[str, ...], Work], ...] = (
        ("spec", (layout.SPEC,), (inputs.spec.decode("utf-8", "replace"),), spec),
        ("plan", (layout.PLAN,), (plan,), decided),
        ("program", (layout.PROGRAM,), (program,), lowered),
        ("weights", (layout.MODEL,), (program, inputs.model_digest, tool), weights),
        ("engine", (layout.ENGINE,), (program, inputs.model_digest, tool, str(inputs.cpu)), engine),
        ("runtime", (layout.RUNTIME,), (tool,), runtime),
        ("deploy", (layout.DEPLOY, layout.README), (plan, tool, pins, str(inputs.port)), deploy),
        ("manifest", (layout.MANIFEST,), (plan, program, tool, inputs.model_digest, pins), manifest),
    )
    return tuple(
        Phase(
            label=f"[{number}/{len(steps)}] {name}",
            name=name,
            outputs=outputs,
            key=identity.key(name, *parts),
            work=work,
            resumes=work is weights,
        )
        for number, (name, outputs, parts, work) in enumerate(steps, 1)
    )


def _values(inputs: Inputs, packages: list[tuple[str, str]]) -> dict[str, object]:
    """What the templates may use."""
    plan = inputs.plan
    return {
        "name": plan.name,
        "version": identity.tool_version(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": packages,
        "plan": plan.digest,
        "port": inputs.port,
        "model": plan.model.name,
        "target": plan.target.name,
        "weights": plan.weights.format,
        "kv": plan.kv.level,
        "max_context": plan.limits.max_context,
        "max_sequences": plan.limits.max_sequences,
    }
