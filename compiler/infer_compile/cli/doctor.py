"""``infer-compile doctor``: what this machine has and lacks, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from ..codegen import nvrtc
from ..codegen.toolchain import find
from ..probe.cpu import host_architecture, processor, usable
from ..probe.gpu import gpus, nvml
from ..probe.machine import cache_file, memory_bytes, recall
from ..runtime.engines.device import check_driver, holders
from ..runtime.engines.driver import Driver
from ..runtime.errors import Exit, InferCompileError
from .console import coloured, print_json

GIB = 1 << 30
LITTLE = 4 * GIB
"""Free bytes below which only small models fit: those of the examples take 3 GiB and more."""
_MARKS = {"ok": ("ok", "green"), "note": ("--", "yellow"), "missing": ("no", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """``missing``: builds or serving fail without it. ``note``: only what the message names does."""

    check: str
    status: Literal["ok", "note", "missing"]
    message: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What is missing on this machine, and the command that mends it.

    Exit status 1 if anything must be mended before specs can be built and served here.
    """
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _print(finding)
    if any(finding.status == "missing" for finding in findings):
        context.exit(Exit.FAILED)


def _print(finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    shown = click.style(mark, fg=colour) if coloured(sys.stdout) else mark
    click.echo(f"{shown}  {finding.check}: {finding.message}", color=coloured(sys.stdout))
    if finding.fix:
        click.echo(f"    fix: {finding.fix}")


def python() -> Iterator[Finding]:
    """The interpreter is one that the package declares it runs on."""
    wanted = importlib.metadata.metadata("infer-compile")["Requires-Python"].removeprefix(">=")
    version = platform.python_version()
    enough = sys.version_info[:2] >= tuple(map(int, wanted.split(".")))
    fix = "" if enough else f"install Python {wanted} or newer"
    yield Finding("python", "ok" if enough else "missing", f"{version} at {sys.executable}", fix)


def packages() -> Iterator[Finding]:
    """What the package requires is installed; extras are named with what they are for."""
    lacking = []
    for requirement in importlib.metadata.requires("infer-compile") or ():
        name, _, marker = requirement.partition(";")
        name = name.strip().split(">")[0]
        if "extra" not in marker and not _installed(name):
            lacking.append(name)
    if lacking:
        fix = f"{sys.executable} -m pip install {' '.join(lacking)}"
        yield Finding("packages", "missing", f"{', '.join(lacking)} not installed", fix)
    else:
        yield Finding("packages", "ok", "all that planning, building and serving need")
    if _installed("torch"):
        yield Finding("torch", "ok", importlib.metadata.version("torch"))
    else:
        yield Finding(
            "torch",
            "note",
            "not installed; the reference engine needs it, calibration, and serving on a GPU",
            f"{sys.executable} -m pip install 'infer-compile[torch]'",
        )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def compiler() -> Iterator[Finding]:
    """A C++ compiler makes the engine."""
    architecture = host_architecture()
    if architecture is None:
        message = f"no engine can be generated for {platform.machine()}"
        yield Finding("compiler", "missing", message, "use a machine with an x86-64 or aarch64 processor")
        return
    try:
        found = find(architecture)
    except InferCompileError as error:
        problem = error.problems[0]
        yield Finding("compiler", "missing", problem.message, f"{sys.executable} -m pip install ziglang")
        return
    yield Finding("compiler", "ok", f"{'zig (ziglang), ' if found.zig else ''}{found.version}")
    if importlib.util.find_spec("ziglang") is None:
        other = {"x86-64": "aarch64", "aarch64": "x86-64"}[architecture]
        fix = f"{sys.executable} -m pip install ziglang"
        yield Finding("cross compiler", "note", f"none; only a target of kind {other} needs it", fix)


def kernels() -> Iterator[Finding]:
    """Triton and NVRTC make the kernels of bundles for GPUs."""
    lacking = [
        *([] if _installed("triton") else ["triton"]),
        *([] if nvrtc.installed() else [nvrtc.PACKAGES[0]]),
    ]
    if lacking:
        fix = f"{sys.executable} -m pip install {' '.join(lacking)}"
        yield Finding(
            "gpu kernels", "note", f"no {' and no '.join(lacking)}; building for a GPU needs it", fix
        )
    else:
        versions = f"triton {importlib.metadata.version('triton')}, NVRTC {nvrtc.version()}"
        yield Finding("gpu kernels", "ok", versions)


def machine() -> Iterator[Finding]:
    """Processor, instruction sets and memory, as a plan for this machine sees them."""
    found = processor()
    kind = f"{found.architecture or platform.machine()}, instruction sets: {found.isa}"
    yield Finding("processor", "ok", f"{found.name}, {found.cores} cores, {kind}")
    if found.isa == "amx":
        message = "used for prompts; run emulated only so far: engines try them when they are opened"
        yield Finding("matrix tiles", "note", message)
    elif usable(found.flags) != found.flags:
        yield Finding("matrix tiles", "note", "the processor has them, the system withholds them")
    yield Finding("memory", "ok", f"{memory_bytes() / GIB:.1f} GiB")
    if recall() is None:
        yield Finding(
            "measurement", "note", "made with the first plan for this-machine", "infer-compile probe"
        )
    else:
        yield Finding("measurement", "ok", f"remembered in {cache_file()}")


def graphics() -> Iterator[Finding]:
    """NVIDIA devices. A driver without the binding that reads it is named."""
    binding = nvml()
    found = gpus(binding)
    for index, each in enumerate(found):
        capability = f"compute capability {each.compute_capability}"
        yield Finding("gpu", "ok", f"{each.name}, {each.memory / GIB:.1f} GiB, {capability}")
        for holder in holders(index):
            yield Finding("gpu memory", "note", str(holder))
    if found:
        yield from driver()
    if not found and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        if binding is None:
            fix = f"{sys.executable} -m pip install nvidia-ml-py"
            yield Finding("gpu", "note", "there is an NVIDIA driver, and nothing here that can ask it", fix)
        else:
            yield Finding("gpu", "note", "the NVIDIA driver shows no device", "nvidia-smi tells why")
    elif not found:
        yield Finding("gpu", "note", "none of NVIDIA's; bundles for one can be built here, and not be run")


def driver() -> Iterator[Finding]:
    """The driver serves what the installed PyTorch was built with."""
    try:
        served = Driver().version()
        if _installed("torch"):
            check_driver(served, _built_with())
    except InferCompileError as error:
        problem = error.problems[0]
        yield Finding("driver", "note", f"{problem.message}: {problem.because}", problem.fix)
        return
    yield Finding("driver", "ok", f"serves CUDA {served[0]}.{served[1]}")


def _built_with() -> str | None:
    """The version of CUDA that PyTorch was built with, without loading it; None where it was not."""
    found = importlib.util.find_spec("torch")
    said = Path(found.origin).with_name("version.py") if found and found.origin else None
    text = said.read_text() if said is not None and said.is_file() else ""
    match = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return None if match is None else match[1]


def disk() -> Iterator[Finding]:
    """Room where bundles go by default."""
    free = shutil.disk_usage(Path.cwd()).free
    message = f"{free / GIB:.1f} GiB free in {Path.cwd()}"
    if free < LITTLE:
        yield Finding(
            "disk", "note", message, "a bundle takes twice its weights: build on a larger disk with -o"
        )
    else:
        yield Finding("disk", "ok", message)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python,
    packages,
    compiler,
    kernels,
    machine,
    graphics,
    disk,
)
