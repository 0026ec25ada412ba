"""The processor: its name, its instruction sets, the cores that this process may use."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ..catalog.target import Architecture, Isa
from ..runtime.formats.isa import TILES, lacking
from .cgroup import cpu_quota

_ARCHITECTURES: dict[str, Architecture] = {
    "x86_64": "x86-64",
    "amd64": "x86-64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
}
_LARGEST_FIRST: tuple[Isa, ...] = ("amx", "avx512", "avx2", "portable")
# Numbers of Linux's interface to the state of matrix tiles: https://docs.kernel.org/arch/x86/xstate.html
_ARCH_PRCTL, _ASK_SUPPORTED, _TILE_DATA = 158, 0x1021, 18


@dataclass(frozen=True, slots=True)
class Processor:
    """``architecture`` is None where the native engine knows none."""

    name: str
    vendor: str
    architecture: Architecture | None
    isa: Isa
    flags: frozenset[str]
    cores: int


def processor() -> Processor:
    """The processor of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = parse(cpuinfo.read_text(encoding="utf-8", errors="replace")) if cpuinfo.is_file() else {}
    architecture = host_architecture()
    flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
    return Processor(
        name=fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine(),
        vendor=fields.get("vendor_id") or fields.get("CPU implementer") or platform.system(),
        architecture=architecture,
        isa=isa_of(usable(flags)) if architecture == "x86-64" else "portable",
        flags=flags,
        cores=cores(),
    )


def host_architecture() -> Architecture | None:
    """This machine's, or None if it is neither of those that engines are generated for."""
    return _ARCHITECTURES.get(platform.machine().lower())


def parse(cpuinfo: str) -> dict[str, str]:
    """The first value of each field of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    return fields


def isa_of(flags: frozenset[str]) -> Isa:
    """The largest instruction set that ``flags`` hold whole."""
    return next(isa for isa in _LARGEST_FIRST if not lacking(isa, flags))


def usable(flags: frozenset[str]) -> frozenset[str]:
    """Less those of matrix tiles where the system does not keep their state: a sandbox may show the flags."""
    return flags if flags.isdisjoint(TILES) or _keeps_tiles() else flags - TILES


def _keeps_tiles() -> bool:
    """Whether the system would let a process use matrix tiles."""
    features = ctypes.c_uint64()
    call = ctypes.CDLL(None).syscall
    failed = call(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_ASK_SUPPORTED), ctypes.byref(features))
    return failed == 0 and bool(features.value >> _TILE_DATA & 1)


def cores() -> int:
    """Processors that this process may run on, within the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(allowed, int(quota))) if quota is not None else allowed
