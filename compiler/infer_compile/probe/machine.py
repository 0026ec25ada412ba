"""This machine as a target: measured once, then remembered, so that two builds plan with the same figures."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from ..catalog.target import THIS_MACHINE, Cpu, Rates, Target
from ..runtime.errors import InferCompileError, Problem
from ..spec.check import check
from ..spec.document import read
from .cgroup import memory_limit
from .cpu import Processor, processor
from .files import write_aside
from .measure import BANDWIDTH_METHOD, RATE_METHOD, bandwidth, matrix_rate

METHOD = "Probed by method 1."
"""Changes with what is measured and how, so that older figures are measured again."""


def this_machine() -> Target:
    """The remembered figures, if they are of this processor, these cores and this memory; else new ones."""
    remembered = recall()
    if remembered is not None:
        return remembered
    measured = probe()
    # A second build may have measured meanwhile: what was kept first stands for both.
    return recall() or remember(measured)


def cache_file() -> Path:
    """Where the figures are kept: ``$XDG_CACHE_HOME/infer-compile/this-machine.yaml``."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "infer-compile" / f"{THIS_MACHINE}.yaml"


def recall() -> Target | None:
    """What is remembered of this machine; None where nothing is, or where it was another machine."""
    path = cache_file()
    if not path.is_file():
        return None
    try:
        remembered = check(Target, read(path))
    except InferCompileError:
        # Written by another version, or damaged: measuring again mends it.
        return None
    return remembered if _identity(remembered) == _identity(_described(processor(), memory_bytes())) else None


def remember(target: Target) -> Target:
    """Keep ``target`` for later. Raises InferCompileError IC231 where that is not possible."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, to_yaml(target))
    except (OSError, InferCompileError) as error:
        cause = (
            error.problems[0].because
            if isinstance(error, InferCompileError)
            else error.strerror or str(error)
        )
        raise InferCompileError(
            Problem(
                "IC231",
                f"cannot remember the figures of this machine in {path}",
                because=f"{cause}; measured anew each time, two builds would differ",
                fix="set XDG_CACHE_HOME to a folder that can be written, or name a target file: "
                "infer-compile probe -o machine.yaml, target: ./machine.yaml",
            )
        ) from error
    return target


def probe() -> Target:
    """Measure; takes a few seconds. Raises InferCompileError IC232 on a processor that no engine knows."""
    found, memory = processor(), memory_bytes()
    described = _described(found, memory)
    return described.model_copy(
        update={
            "bandwidth_gbs": _round(bandwidth(found.cores, memory) / 1e9),
            "rates": Rates(bf16_tflops=_round(matrix_rate() / 1e12)),
        }
    )


def _described(found: Processor, memory: int) -> Target:
    """All but the bandwidth and the rates, which the caller measures and fills in."""
    if found.architecture is None:
        raise InferCompileError(
            Problem(
                "IC232",
                "this machine's processor is not known to any engine",
                found.name,
                "engines are made for x86-64 and aarch64",
                "name another target",
            )
        )
    return Target(
        id=THIS_MACHINE,
        name=found.name,
        vendor=found.vendor,
        kind="cpu",
        memory_gb=round(memory / 1e9, 2),
        bandwidth_gbs=1.0,
        rates=Rates(bf16_tflops=1.0),
        cpu=Cpu(architecture=found.architecture, isa=found.isa, cores=found.cores),
        note=METHOD,
        sources={
            "memory_gb": "the system's memory, or the limit of this process's control group if that is less",
            "bandwidth_gbs": BANDWIDTH_METHOD,
            "rates.bf16_tflops": RATE_METHOD,
            "cpu": "the flags of /proc/cpuinfo; cores that this process may use",
        },
        confidence="A",
        measured=True,
    )


def _identity(target: Target) -> tuple[object, ...]:
    """What may not change between the measurement and its use."""
    return target.name, target.memory_gb, target.cpu, target.note


def memory_bytes() -> int:
    """Bytes of memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    return min(total, limit) if limit is not None else total


def to_yaml(target: Target) -> str:
    """A target file."""
    fields = target.model_dump(mode="json", exclude_none=True)
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)
    return text


def _round(value: float) -> float:
    """Three significant digits: more would be noise."""
    return float(f"{value:.3g}")
