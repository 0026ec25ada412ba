"""What a cached token really takes: tokens are written into pools full of a sentinel, and what changed is
counted.

A format that quietly falls back to a wider one, or writes past its page, is found here and not in production.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import Exit, InferCompileError, Problem
from .formats.paging import Paging
from .pool import ABSENT
from .step import Engine, SequenceStep, blank

SENTINELS = (0xA5, 0x5A)
"""Two, so that a written byte that equals one of them is still counted; they differ in every bit."""
GUARD_PAGES = 1
"""Pages behind those handed out that must stay untouched."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of a cached token in all layers: ``token_bytes`` at ``level``, ``exact_token_bytes`` in bf16."""

    level: str
    token_bytes: int
    exact_token_bytes: int


@runtime_checkable
class Lender(Protocol):
    """An engine whose pools lie where the processor cannot write."""

    def lend(self, name: str, size: int) -> NDArray[np.uint8]:
        """The first ``size`` bytes of a pool. As long as somebody holds them, what is written there is in the
        pool when the next step begins, and what a step writes is there when it ends."""
        ...


def _window(engine: Engine, name: str, size: int) -> NDArray[np.uint8]:
    return engine.lend(name, size) if isinstance(engine, Lender) else engine.pool(name)[:size]


def _windows(engine: Engine, pages: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The bytes of the first ``pages`` pages of both pools and of the guard pages behind them."""
    cache = engine.program.cache
    end = pages + GUARD_PAGES
    return (
        _window(engine, "exact", end * cache.exact_page_bytes),
        _window(engine, "packed", end * cache.packed_page_bytes),
    )


def _write(engine: Engine, tokens: int) -> None:
    """Runs ``tokens`` tokens of one sequence whose page p is page p of both pools."""
    program = engine.program
    cache = program.cache
    ids = (np.arange(tokens) * 7919 % program.vocabulary).astype(np.int32)
    exact = np.arange(cache.pages(tokens), dtype=np.int32)
    packed = np.array([page if cache.packs(page) else ABSENT for page in exact.tolist()], np.int32)
    for start in range(0, tokens, program.limits.max_batch_tokens):
        chunk = ids[start : start + program.limits.max_batch_tokens]
        sealed = start // cache.page_tokens
        fed = blank(program, len(chunk))
        engine.step([SequenceStep(chunk, start, len(chunk), sealed, exact, packed, outputs=0, features=fed)])


def _tokens(layout: Paging, exact_pages: int, packed_pages: int, max_context: int) -> int:
    """Enough for one page to be compressed, and half a page more, as far as there is room."""
    pages = min(layout.sink_pages + 2, exact_pages)
    if layout.compressed:
        pages = min(pages, packed_pages)
    return min(pages * layout.page_tokens - layout.page_tokens // 2, max_context)


def measure(engine: Engine) -> Measured:
    """Counts, restores the pools to zeros, and raises IC501 if the count is not what the layout says."""
    cache, limits = engine.program.cache, engine.program.limits
    tokens = _tokens(cache, limits.exact_pages, limits.packed_pages, limits.max_context)
    pools = _windows(engine, cache.pages(tokens))
    changed = tuple(np.zeros(len(pool), bool) for pool in pools)
    for sentinel in SENTINELS:
        for pool in pools:
            pool[:] = sentinel
        _write(engine, tokens)
        for pool, mark in zip(pools, changed, strict=True):
            mark |= pool != sentinel
    for pool in pools:
        pool[:] = 0
    exact, packed = (int(np.count_nonzero(mark)) for mark in changed)
    sealed = sum(map(cache.packs, range(tokens // cache.page_tokens))) * cache.page_tokens
    if exact != tokens * cache.exact_token_bytes or packed != sealed * cache.token_bytes:
        raise _mismatch(cache, exact / tokens, packed / sealed if sealed else packed)
    return Measured(cache.level, packed // sealed if sealed else exact // tokens, exact // tokens)


def _mismatch(cache: Paging, exact: float, packed: float) -> InferCompileError:
    measured = f"{packed:g} bytes at level {cache.level!r} and " if cache.compressed else ""
    planned = f"{cache.token_bytes} and " if cache.compressed else ""
    return InferCompileError(
        Problem(
            "IC501",
            f"a cached token takes {measured}{exact:g} bytes in bf16, not {planned}{cache.exact_token_bytes}",
            because="the engine does not keep its cache as the program says",
            fix="build the bundle again; if it stays so, report this message",
        ),
        Exit.MISMATCH,
    )
