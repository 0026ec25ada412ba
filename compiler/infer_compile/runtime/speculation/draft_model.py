"""Drafts from a smaller model, which runs in an engine and a cache of its own.

Its computed tokens chase the sequence's as the model's own do: a first pass computes what was drawn since the
last and drafts a token, every further pass the one after. Drafts that were computed and then drawn need not
be computed again; those that were not are overwritten, since nothing that is only drafted is ever committed.

Drafts are the likeliest tokens, however the sequence is sampled, and siblings the likeliest beside them.
Drawing them with the sequence's own random numbers would be lossless too, and is accepted less
(docs/speculation.md).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from ..pages import PageTable
from ..step import Engine, Int32, SequenceStep
from .draft import NOTHING, Draft, likeliest
from .own_cache import OwnCache
from .proposer import Ask, Seen

NEAR = 16
"""Tokens that drafting itself computes of a sequence at most: those that the last step drew, of any plan."""


@dataclass(slots=True)
class _Chase:
    """One sequence in the cache: its first ``computed`` tokens, and behind them ``guessed`` ones."""

    table: PageTable
    computed: int = 0
    guessed: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.computed + len(self.guessed)


@dataclass(slots=True)
class _Drafting:
    """What a step asks for one sequence, and what was drafted of it."""

    ask: Ask
    chase: _Chase
    drafts: list[int] = field(default_factory=list)
    siblings: list[Int32] = field(default_factory=list)
    """Of each draft; empty where only chains are asked for."""

    @property
    def behind(self) -> int:
        return len(self.ask.tokens) - self.chase.computed

    @property
    def draft(self) -> Draft:
        chain = np.array(self.drafts, np.int32)
        return Draft(chain, np.stack(self.siblings)) if self.siblings else Draft.line(chain)


class DraftModel:
    """``engine`` runs a model of the target's vocabulary; a sequence that finds no pages left goes without
    drafts from then on."""

    reads = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache = OwnCache(engine)
        self.pages = self._cache.pages
        self._chases: dict[Hashable, _Chase | None] = {}
        """None for a sequence that found no pages left."""

    @property
    def engines(self) -> tuple[Engine, ...]:
        return (self._engine,)

    def read(self, seen: Sequence[Seen]) -> None:
        """Tokens are all that it reads."""

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """Raises InferCompileError as the engine's step does."""
        self._compute([one for one in self._found(asks) if one.behind > NEAR], but=1)

    def _found(self, asks: Sequence[Ask]) -> list[_Drafting]:
        return [_Drafting(ask, chase) for ask in asks if (chase := self._chase(ask)) is not None]

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """Raises InferCompileError as the engine's step does."""
        found = [one for one in self._found(asks) if one.behind <= NEAR]
        drafting = self._compute(found, but=0)
        while drafting := [one for one in drafting if len(one.drafts) < one.ask.most]:
            drafting = self._next(drafting)
        drafts = {one.ask.key: one.draft for one in found}
        return [drafts.get(ask.key, NOTHING) for ask in asks]

    def _chase(self, ask: Ask) -> _Chase | None:
        """The sequence of ``ask``, with its guesses that came true computed and the others dropped."""
        if ask.key not in self._chases:
            self._chases[ask.key] = _Chase(self.pages.open())
        chase = self._chases[ask.key]
        if chase is not None:
            drawn = ask.tokens[chase.computed : -1].tolist()
            pairs = zip(chase.guessed, drawn, strict=False)
            kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            chase.guessed.clear()
            if kept:
                chase.computed += kept
                # The step in which they were guesses sealed none of their pages.
                self.pages.commit(chase.table, chase.computed, kept)
        return chase

    def _compute(self, found: list[_Drafting], but: int) -> list[_Drafting]:
        """Computes what the sequences are behind, but the last ``but`` tokens, those that are least behind
        first and as far as a step goes; returns those that caught up, which have a draft."""
        budget, batch, steps = self._cache.limits.max_batch_tokens, [], []
        for one in sorted(found, key=lambda one: one.behind):
            if not budget:
                break
            self.pages.evict(one.chase.table, one.chase.computed)
            count = self._cache.room(one.chase.table, one.chase.computed, min(one.behind - but, budget))
            if not count:
                self._give_up(one)
                continue
            tokens = one.ask.tokens[one.chase.computed : one.chase.computed + count]
            steps.append(self._step(one, tokens, certain=count, outputs=int(count == one.behind)))
            batch.append(one)
            budget -= count
        self._run(batch, steps)
        for one, step in zip(batch, steps, strict=True):
            one.chase.computed += len(step.tokens)
            self.pages.commit(one.chase.table, one.chase.computed)
        return [one for one, step in zip(batch, steps, strict=True) if step.outputs]

    def _next(self, drafting: list[_Drafting]) -> list[_Drafting]:
        """Computes the last draft of each, for the one after; returns those that had pages for it."""
        batch = [
            one
            for one in drafting
            if self._cache.room(one.chase.table, one.chase.computed, len(one.drafts)) == len(one.drafts)
        ]
        steps = [self._step(one, np.array(one.drafts[-1:], np.int32), certain=0, outputs=1) for one in batch]
        for one in batch:
            one.chase.guessed.append(one.drafts[-1])
        self._run(batch, steps)
        return batch

    def _give_up(self, one: _Drafting) -> None:
        self.pages.close(one.chase.table)
        self._chases[one.ask.key] = None

    def _step(self, one: _Drafting, tokens: Int32, certain: int, outputs: int) -> SequenceStep:
        return self._cache.step(one.chase.table, one.chase.end, tokens, certain, outputs)

    def _run(self, batch: list[_Drafting], steps: list[SequenceStep]) -> None:
        """One pass; appends what it drew, and what is likeliest beside it."""
        if not batch:
            return
        result = self._engine.step(steps, logits=any(one.ask.width > 1 for one in batch))
        drawing = []
        for one, tokens in zip(batch, result.tokens, strict=True):
            one.drafts += tokens.tolist()
            drawing += [one] * len(tokens)
        if result.logits is not None:
            for one, row in zip(drawing, result.logits, strict=True):
                one.siblings.append(likeliest(row, one.drafts[-1], one.ask.width - 1))

    def keep(self, keys: Collection[Hashable]) -> None:
        for key in self._chases.keys() - set(keys):
            chase = self._chases.pop(key)
            if chase is not None:
                self.pages.close(chase.table)

    def check(self) -> None:
        self._cache.check()
