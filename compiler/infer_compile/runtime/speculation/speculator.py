"""Speculation in the life of a step: before it drafts, after it what became of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InferCompileError
from ..formats.program import Limits
from ..sequence import Sequence
from ..step import Engine
from .pace import Pace
from .proposer import Ask, Proposer, Seen

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the tokens that were ``drafted`` for a sequence the first ``accepted`` were drawn."""

    sequence: Sequence
    drafted: int
    accepted: int


class Speculator:
    """Drafts for the sequences of a loop: at most ``tokens`` for each, of which the share ``acceptance`` is
    expected to be kept. For the engine's thread alone.

    A drafter that fails ends speculation, and no answer.
    """

    def __init__(self, proposer: Proposer, tokens: int, acceptance: float, limits: Limits) -> None:
        self.proposer = proposer
        self.pace = Pace(tokens, acceptance)
        self._outputs = min(limits.max_outputs, limits.max_batch_tokens)
        self._known: list[Sequence] = []
        self._began = 0.0
        self._failed = False

    @property
    def engines(self) -> tuple[Engine, ...]:
        return self.proposer.engines

    @property
    def reads(self) -> bool:
        """Whether it wants the hidden states of the model's steps."""
        return self.proposer.reads and not self._failed

    def draft(self, running: list[Sequence]) -> None:
        """Gives those of ``running`` that draw a token in the next step what may come behind it."""
        self._keep(running)
        ready = [each for each in running if each.draftable]
        total = self._outputs - len(running)
        if ready and total > 0 and not self._failed:
            lengths = self.pace.lengths([*ready], total)
            if any(lengths):
                self._propose(ready, lengths)
        self._began = time.perf_counter()

    def _propose(self, ready: list[Sequence], lengths: list[int]) -> None:
        asked = [
            (sequence, Ask(sequence, sequence.tokens, most))
            for sequence, length in zip(ready, lengths, strict=True)
            # Behind the last token of an answer nothing is drawn.
            if (most := min(length, sequence.most - sequence.length - 1)) > 0
        ]
        asks = [ask for _, ask in asked]
        try:
            self.proposer.catch_up(asks)
            began = time.perf_counter()
            drafts = self.proposer.propose(asks)
            took = time.perf_counter() - began
        except (InferCompileError, MemoryError) as error:
            self._fail(error)
            return
        for (sequence, _), draft in zip(asked, drafts, strict=True):
            sequence.drafts = draft
        if asks:
            self.pace.proposed(len(asks), max(ask.most for ask in asks), took)

    def _fail(self, error: Exception) -> None:
        log.error("nothing is drafted any more: %s", error)
        self._failed = True
        self.proposer.keep(())

    def _keep(self, running: list[Sequence]) -> None:
        if self._known != running:
            self.pace.keep(running)
            self.proposer.keep(running)
            self._known = list(running)

    def stepped(self, outcomes: Iterable[Outcome], rows: int, decodes: bool) -> None:
        """The step is done, and what it drew handed out. It computed ``rows`` tokens, which drew one each if
        ``decodes``: none was of a prompt that is still computed."""
        if decodes:
            self.pace.stepped(rows, time.perf_counter() - self._began)
        for outcome in outcomes:
            self.pace.drafted(outcome.sequence, outcome.drafted, outcome.accepted)

    def read(self, seen: list[Seen]) -> None:
        """What a step told of the sequences that go on."""
        try:
            self.proposer.read(seen)
        except (InferCompileError, MemoryError) as error:
            self._fail(error)

    def idle(self) -> None:
        """Nothing runs: whatever was held for a sequence is given back. Raises IC505 if something is left."""
        self._keep([])
        # A sequence may have ended in its first step, before it was known.
        self.proposer.keep(())
        self.proposer.check()
