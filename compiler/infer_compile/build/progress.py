"""What a running build tells on stderr: a line per phase, and a moving one where a person is looking."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

UNITS: Mapping[str, int] = MappingProxyType({"MiB": 1 << 20, "tokens": 1, "questions": 1, "kernels": 1})
"""In what a phase tells how far it has come: the unit's name to its size."""


class Advance(Protocol):
    """Told how far a phase has come, in bytes or in what it counts."""

    def __call__(self, done: int, total: int) -> None: ...


class Reporter:
    """Writes to ``console``, which is stderr."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, end: str = "\n") -> None:
        self._console.print(text, end=end, highlight=False, markup=False, soft_wrap=True)

    def kept(self, label: str) -> None:
        self.say(f"{label}: kept from an earlier run")

    @contextmanager
    def phase(self, label: str, unit: str = "MiB") -> Iterator[Advance]:
        """One phase; yields a function to call with what is done and what there is in all."""
        began = time.perf_counter()
        with self._moving(label, unit) if self._console.is_terminal else self._logged(label) as advance:
            yield advance
        self.say(f"{time.perf_counter() - began:.1f} s")

    @contextmanager
    def _moving(self, label: str, unit: str) -> Iterator[Advance]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(label, total=None)

            def advance(done: int, total: int) -> None:
                size = f"{label}: {done / UNITS[unit]:,.0f} of {total / UNITS[unit]:,.0f} {unit}"
                progress.update(task, completed=done, total=total, description=size)

            yield advance
        self.say(f"{label}: ", end="")

    @contextmanager
    def _logged(self, label: str) -> Iterator[Advance]:
        """The line begins with the phase and ends with it, so that a log shows what is under way."""
        self.say(f"{label}: ", end="")
        try:
            yield lambda done, total: None
        except BaseException:
            self.say("stopped")
            raise
