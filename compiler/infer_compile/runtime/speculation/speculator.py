"""Speculation in the life of a step: before it drafts, after it what became of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..errors import InferCompileError
from ..formats.program import Limits
from ..sequence import Sequence
from ..step import Engine, Int32
from .draft import NO_TOKENS, Draft, Verdict
from .pace import Pace, Widths
from .proposer import Ask, Proposer, Seen

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a draft that a step verified; ``looked`` was sampled behind the tokens of its window."""

    sequence: Sequence
    draft: Draft
    verdict: Verdict
    looked: Int32 = field(default_factory=lambda: NO_TOKENS)


class Speculator:
    """Drafts for the sequences of a loop: at most ``tokens`` one behind the other for each and ``width``
    choices for each of these, expected to be kept as ``Pace`` says, and a window of so many tokens beside
    them. For the engine's thread alone.

    A drafter that fails ends speculation, and no answer.
    """

    def __init__(
        self,
        proposer: Proposer,
        tokens: int,
        acceptance: float,
        limits: Limits,
        width: int = 1,
        beside: float = 0.0,
        window: int = 0,
    ) -> None:
        self.proposer = proposer
        self.pace = Pace(tokens, acceptance, width, beside, window)
        self._looked: dict[Sequence, Int32] = {}
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
        may = ready and total > 0 and not self._failed
        if may and (widths := self.pace.widths([*ready], total)):
            self._propose(ready, widths)
        self._began = time.perf_counter()

    def _propose(self, ready: list[Sequence], widths: list[Widths]) -> None:
        asked = [
            # Behind the last token of an answer nothing is drawn.
            (sequence, wanted[: sequence.most - sequence.length - 1])
            for sequence, wanted in zip(ready, widths, strict=True)
            if wanted[0] > 0
        ]
        asks = [
            Ask(
                sequence,
                sequence.tokens,
                int(np.count_nonzero(wanted)),
                int(wanted.max()),
                self._looked.pop(sequence, NO_TOKENS),
            )
            for sequence, wanted in asked
        ]
        try:
            self.proposer.catch_up(asks)
            began = time.perf_counter()
            drafts = self.proposer.propose(asks)
            took = time.perf_counter() - began
        except (InferCompileError, MemoryError) as error:
            self._fail(error)
            return
        for (sequence, wanted), draft in zip(asked, drafts, strict=True):
            sequence.draft = draft.shaped(wanted)
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
            self._looked = {each: found for each, found in self._looked.items() if each in running}

    def stepped(self, outcomes: Iterable[Outcome], rows: int, decodes: bool) -> None:
        """The step is done, and what it drew handed out. It computed ``rows`` tokens, which drew one each if
        ``decodes``: none was of a prompt that is still computed."""
        if decodes:
            self.pace.stepped(rows, time.perf_counter() - self._began)
        for outcome in outcomes:
            if len(outcome.draft.chain):
                self.pace.drafted(outcome.sequence, outcome.draft, outcome.verdict)
            if len(outcome.looked):
                self._looked[outcome.sequence] = outcome.looked

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
