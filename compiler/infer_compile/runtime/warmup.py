"""The first steps of an engine are slow, for memory is touched and code is loaded: nobody waits for them."""

from __future__ import annotations

import numpy as np

from .pool import ABSENT
from .step import Engine, Sampling, SequenceStep, blank

TOKENS = 4
"""Single tokens behind the prompt, half of them drawn at temperature 1."""


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
