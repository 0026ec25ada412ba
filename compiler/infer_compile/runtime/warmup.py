"""The first steps of an engine are slow, for memory is touched and code is loaded: nobody waits for them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from .pool import ABSENT
from .step import Engine, Sampling, SequenceStep, blank

TOKENS = 4
"""Single tokens behind the prompt, half of them drawn at temperature 1."""


GREEDY, DRAWN = Sampling(), Sampling(temperature=1.0)


@runtime_checkable
class Capturing(Protocol):
    """An engine that keeps steps of single tokens in a form that it makes when one comes a second time."""

    @property
    def captured(self) -> tuple[int, ...]:
        """How many sequences they are of, ascending."""
        ...


def warm_up(engine: Engine) -> None:
    """Runs a prompt of a whole step and a few tokens behind it. What it leaves in the pools is never read."""
    cache, limits = engine.program.cache, engine.program.limits
    places = limits.exact_pages if not cache.compressed else min(limits.exact_pages, limits.packed_pages)
    room = min(places * cache.page_tokens, limits.max_context)
    prompt = max(1, min(limits.max_batch_tokens, room - TOKENS))
    exact = np.arange(cache.pages(room), dtype=np.int32)
    packed = np.array([page if cache.packs(page) else ABSENT for page in exact.tolist()], np.int32)
    start = 0
    for count in (prompt, *[1] * min(TOKENS, room - prompt)):
        tokens = ((start + np.arange(count)) * 7919 % engine.program.vocabulary).astype(np.int32)
        sampling = Sampling(temperature=float(start % 2))
        sealed = start // cache.page_tokens
        fed = blank(engine.program, count)
        engine.step(
            [SequenceStep(tokens, start, count, sealed, exact, packed, sampling=sampling, features=fed)]
        )
        start += count


def capture(engine: Engine) -> int:
    """Has ``engine`` make all of them that its sequences can fill, the largest first, for the memory of one
    serves the others; returns how many. What they leave in the pools is never read."""
    if not isinstance(engine, Capturing):
        return 0
    most = engine.program.limits.max_sequences
    # A step of all sequences is one of the first size that holds them.
    counts = dict.fromkeys(min(count, most) for count in engine.captured)
    for count in sorted(counts, reverse=True):
        for sampling in (GREEDY, GREEDY, DRAWN, DRAWN):
            engine.step([_first(page, sampling) for page in range(count)])
    return len(counts)


def _first(page: int, sampling: Sampling) -> SequenceStep:
    """The first token of a sequence whose only page is ``page``."""
    exact, packed = np.array([page], np.int32), np.array([ABSENT], np.int32)
    return SequenceStep(np.zeros(1, np.int32), 0, 1, 0, exact, packed, sampling=sampling)
