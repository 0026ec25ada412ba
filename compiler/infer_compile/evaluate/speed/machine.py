"""What the machine gives while a bundle is measured, beside what its plan reckoned with."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from ...planner.plan import TargetPart
from ...probe.cpu import processor
from ...probe.machine import memory_bytes
from ...probe.measure import bandwidth, matrix_rate

_IDLE = (3, 4)
"""Fields of a processor's line in /proc/stat (proc(5)): idle, and waiting for a disk."""
_KNOWN = 8
"""Fields that count time once: user to steal; those of guests behind them are within user's."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of the machine as planned and as measured just now; None: not known."""

    planned: float | None
    now: float | None

    @property
    def ratio(self) -> float | None:
        return self.now / self.planned if self.planned and self.now else None


@dataclass(frozen=True, slots=True)
class Machine:
    """``bandwidth`` in 1e9 bytes per second, ``matrix`` in 1e12 operations per second, both as ``probe``
    measures them with ``cores`` threads. ``sustained``: the plan's bandwidth was measured, and is not a
    datasheet's peak. ``others``: share of the processor time of these cores that other programs took while
    the bundle was measured; None where the system does not tell."""

    name: str
    cores: int
    bandwidth: Rate
    matrix: Rate
    sustained: bool
    others: float | None = None


def machine(target: TargetPart) -> Machine:
    """This machine, beside ``target``; takes some seconds. Of a GPU nothing is measured."""
    here = processor()
    measured = target.kind == "cpu"
    return Machine(
        name=here.name if measured else target.name,
        cores=here.cores,
        bandwidth=Rate(
            target.bandwidth_gbs, bandwidth(here.cores, memory_bytes()) / 1e9 if measured else None
        ),
        matrix=Rate(target.matrix_tflops, matrix_rate() / 1e12 if measured else None),
        sustained=target.measured,
    )


@dataclass(slots=True)
class Company:
    """Counts from its making on how busy others keep the cores that this process may use."""

    _began: float = field(default_factory=time.monotonic)
    _busy: float | None = field(default_factory=lambda: _busy_seconds())
    _own: float = field(default_factory=time.process_time)

    def others(self) -> float | None:
        """Their share of the cores' time; what a hypervisor gave to other machines is among it."""
        now = _busy_seconds()
        if now is None or self._busy is None:
            return None
        own = time.process_time() - self._own
        total = (time.monotonic() - self._began) * len(_cores())
        return min(1.0, max(0.0, (now - self._busy - own) / total)) if total else None


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def _busy_seconds() -> float | None:
    """Seconds that the cores of this process were not idle; None where /proc/stat does not tell."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    mine = {f"cpu{core}" for core in _cores()}
    ticks = [line.split()[1:] for line in lines if line.split(maxsplit=1)[0] in mine]
    if not ticks:
        return None
    busy = sum(
        int(value) for line in ticks for index, value in enumerate(line[:_KNOWN]) if index not in _IDLE
    )
    # Some sandboxes show a processor that was never busy.
    return busy / os.sysconf("SC_CLK_TCK") if busy else None


def resident_bytes() -> int | None:
    """Of this process's memory, what lies in RAM; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
