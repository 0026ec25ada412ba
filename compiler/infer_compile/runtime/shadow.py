"""The shadow check: what the compressed cache costs the answers that the server really gives.

A share of the finished answers is read again by the same engine, token by token as it stands, twice side by
side: through the cache as it is served, and through an exact one, which differs in the sequence's pages
alone. At each place of the answer the two say how likely every next token is. KL(exact || served) is what
the served cache loses there, in nats, on what an exact one would go on with: the logarithm of a perplexity
over another. Summing over the whole vocabulary it needs no luck: what was drawn was likely under the served
cache by construction, and would speak for it (docs/serving.md).

It runs on the engine's thread, for an engine takes one step at a time, and only while nobody waits for an
answer; a request that comes meanwhile waits for two small steps at most, one in either cache. Its pages are
its own, behind those of the sequences, and bear no names: it takes nothing from anybody's cache of prefixes.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from .errors import InferCompileError, Problem
from .formats.paging import CHECK_STEP, Paging
from .logprobs import Float64, divergence, log_softmax
from .pages import Pages, PageTable
from .pool import ABSENT
from .sequence import Sequence
from .step import Engine, Int32, SequenceStep

log = logging.getLogger(__name__)

WAITING = 16
"""Answers that wait to be checked; of more none is taken up until there is room."""
Unchecked = Literal["busy", "too_long"]


def drift_percent(nats: float, tokens: int) -> float:
    """What a divergence of ``nats`` over ``tokens`` tokens adds to the perplexity, in percent."""
    return 100 * math.expm1(nats / tokens)


class CheckObserver(Protocol):
    """Told of the answers that were drawn for a check, from the engine's thread."""

    def checked(self, tokens: int, nats: float) -> None:
        """An answer of ``tokens`` tokens was checked; the caches diverge by ``nats`` in all."""

    def unchecked(self, why: Unchecked) -> None:
        """An answer was not checked: too many waited, or it has more tokens than there are pages for."""


@dataclass(slots=True)
class _Form:
    """One of the two caches: ``pages`` that begin at page ``exact`` of the engine's pool and, where it is
    compressed, at page ``packed`` of the other."""

    pages: Pages
    exact: int
    packed: int | None
    table: PageTable | None = None

    def step(self, engine: Engine, tokens: Int32, start: int, outputs: int) -> Float64:
        """Computes ``tokens`` behind ``start`` of them; the logarithms of the probabilities of what follows
        the last ``outputs``, ``[outputs, vocabulary]``."""
        table = self.table = self.table or self.pages.open()
        self.pages.prepare(table, start, len(tokens), len(tokens))
        step = SequenceStep(
            tokens=tokens,
            start=start,
            accepted=len(tokens),
            sealed=table.sealed,
            exact=_moved(table.exact.places, self.exact),
            packed=None if self.packed is None else _moved(table.packed.places, self.packed),
            outputs=outputs,
        )
        logits = engine.step([step], logits=bool(outputs)).logits
        self.pages.commit(table, start + len(tokens))
        return log_softmax(np.empty((0, 1), np.float32) if not outputs or logits is None else logits)

    def close(self) -> None:
        if self.table is not None:
            self.pages.close(self.table)
            self.table = None


def _moved(places: Int32, first: int) -> Int32:
    return np.where(places == ABSENT, ABSENT, places + first).astype(np.int32)


@dataclass(slots=True)
class _Check:
    """An answer under way: ``done`` of its ``tokens``, the last of which nothing follows, are computed."""

    tokens: Int32
    prompt: int
    done: int = 0
    nats: float = 0.0

    @property
    def answer(self) -> int:
        return len(self.tokens) - self.prompt


@dataclass(slots=True)
class Shadow:
    """Checks the share ``fraction`` of the answers of ``engine``; for the engine's thread alone.

    Raises InferCompileError IC512 for an engine that was built without pages for it. A check that fails ends
    checking, and no answer.
    """

    engine: Engine
    fraction: float
    observer: CheckObserver
    _draw: random.Random = field(default_factory=random.Random)
    _waiting: deque[_Check] = field(default_factory=deque)
    _forms: tuple[_Form, ...] = ()

    def __post_init__(self) -> None:
        if not self.engine.program.limits.checked_tokens:
            raise InferCompileError(NO_PAGES)
        self._forms = tuple(_forms(self.engine))

    @property
    def pending(self) -> bool:
        """Whether there is an answer to check."""
        return bool(self._waiting)

    def ended(self, sequence: Sequence) -> None:
        """An answer ended; perhaps it is taken up. Its text and its owner are not kept, its tokens are until
        they are checked."""
        whole = sequence.ending in ("stop", "length") and sequence.answered and not sequence.evicted
        if not whole or self._draw.random() >= self.fraction:
            return
        if sequence.length > self.engine.program.limits.checked_tokens:
            self.observer.unchecked("too_long")
        elif len(self._waiting) == WAITING:
            self.observer.unchecked("busy")
        else:
            prompt = sequence.length - sequence.answered
            self._waiting.append(_Check(sequence.tokens.copy(), prompt))

    def advance(self) -> None:
        """The next few tokens of the answer under way, in both caches."""
        try:
            self._advance(self._waiting[0])
        except (InferCompileError, MemoryError) as error:
            log.error("no answer is checked any more: %s", error)
            self.fraction = 0.0
            self._waiting.clear()
            self._close()

    def _advance(self, check: _Check) -> None:
        limits, start = self.engine.program.limits, check.done
        most = min(CHECK_STEP, limits.max_batch_tokens, limits.max_outputs)
        end = min(start + most, len(check.tokens) - 1)
        outputs = min(end - start, max(0, end - (check.prompt - 1)))
        served, exact = (
            form.step(self.engine, check.tokens[start:end], start, outputs) for form in self._forms
        )
        check.nats += float(divergence(exact, served).sum())
        check.done = end
        if end == len(check.tokens) - 1:
            self._close()
            self._waiting.popleft()
            self.observer.checked(check.answer, check.nats)

    def _close(self) -> None:
        for form in self._forms:
            form.close()


def _forms(engine: Engine) -> list[_Form]:
    """The served cache and the exact one, in the pages behind those of the sequences."""
    program = engine.program
    layout, limits = program.cache, program.limits

    def pages(cache: Paging) -> Pages:
        tokens = limits.checked_tokens
        own = {
            "max_context": tokens,
            "exact_pages": cache.exact_pages(tokens, CHECK_STEP),
            "packed_pages": cache.packed_pages(tokens, CHECK_STEP),
            "overflow": "stop",
        }
        return Pages(cache, limits.model_copy(update=own))

    served = _Form(pages(layout), limits.exact_pages, limits.packed_pages)
    exact = _Form(pages(layout.unpacked), limits.exact_pages + served.pages.exact.size, None)
    return [served, exact]


NO_PAGES = Problem(
    "IC512",
    "answers cannot be checked against an exact cache",
    because="the bundle was built without pages for it",
    fix="build it with serving.shadow in the spec",
)
