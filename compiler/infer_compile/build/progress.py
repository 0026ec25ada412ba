"""What a running build tells on stderr: numbered lines, and a moving bar where a person is looking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Advance(Protocol):
    """Told how far a phase has come, in bytes."""

    def __call__(self, done: int, total: int) -> None: ...


class Reporter:
    """Writes to ``console``, which is stderr; on a terminal a phase in progress is one line that moves."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def kept(self, label: str) -> None:
        self.say(f"{label}: kept from an earlier run")

    @contextmanager
    def phase(self, label: str) -> Iterator[Advance]:
        """One phase; yields a function to call with the bytes done and the bytes in all."""
        began = time.perf_counter()
        if self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as progress:
                task = progress.add_task(label, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total)
        else:
            yield lambda done, total: None
        self.say(f"{label}: {time.perf_counter() - began:.1f} s")
