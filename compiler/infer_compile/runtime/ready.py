"""An opened bundle on its way to its first request: warm, and measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .bundle import Bundle, Opened
from .measure import Measured, measure
from .stopwatch import Stopwatch
from .warmup import capture, warm_up


@contextmanager
def ready(bundle: Bundle, threads: int | None, watch: Stopwatch) -> Iterator[tuple[Opened, Measured]]:
    """The engine and what drafts for it, after their first steps, and what a cached token of the model takes.
    Closed at the end. Raises as ``Bundle.engine`` and ``measure``."""
    with bundle.opened(threads) as opened:
        watch.lap("engine")
        for engine in opened.engines:
            warm_up(engine)
        watch.lap("warm_up")
        if sum(map(capture, opened.engines)):
            watch.lap("graphs")
        measured, *_ = [measure(engine) for engine in opened.engines if engine.program.cache.layers]
        watch.lap("measure")
        yield opened, measured
