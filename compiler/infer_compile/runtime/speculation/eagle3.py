"""Drafts from an EAGLE-3 layer, which runs in an engine and a cache of its own.

A slot of its cache holds what came of a token and of the model's features at the place before it; the last
slot guesses what follows the newest token. Each further pass takes the guess, and the layer's own state in
place of features that the model has not computed. What comes of guesses is overwritten by the next draft.

Features come with the model's steps. Those of a prefix that the model found in its cache do not, and a
sequence may outgrow what the layer was made for: its context then begins anew with what comes. Positions
count from where it begins, for the layer sees but distances.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..pages import PageTable
from ..step import Engine, Float32, Int32, SequenceStep
from .draft import NOTHING, Draft, likeliest
from .own_cache import OwnCache
from .proposer import Ask, Seen

NEAR = 16
"""Features of a sequence that are computed for a draft at most: those of the last step, of any plan."""
HELD = 64
"""Features of a sequence that wait for a draft; more are computed without one."""


@dataclass(slots=True)
class _Context:
    """What the cache holds of one sequence: its first slot is of the features of place ``first``, and
    ``computed`` slots are of the model's own. Features of the places behind are ``waiting``."""

    table: PageTable
    first: int
    computed: int = 0
    waiting: list[Float32] = field(default_factory=list)
    """A row for each place."""

    @property
    def end(self) -> int:
        """The place whose features come next."""
        return self.first + self.computed + len(self.waiting)


@dataclass(slots=True)
class _Drafting:
    """A sequence of ``tokens``, and what was drafted behind them; ``state`` is the layer's at the last
    guess."""

    key: Hashable
    tokens: Int32
    context: _Context
    most: int = 0
    width: int = 1
    guesses: list[int] = field(default_factory=list)
    siblings: list[Int32] = field(default_factory=list)
    """Of each guess; empty where only chains are asked for."""
    state: Float32 | None = None

    @property
    def draft(self) -> Draft:
        chain = np.array(self.guesses, np.int32)
        return Draft(chain, np.stack(self.siblings)) if self.siblings else Draft.line(chain)


class Eagle3:
    """``engine`` runs a program that is fed the model's features and a state, and tells the state of its
    outputs. ``ids`` are the model's tokens that its logits stand for. A sequence that finds no pages left
    goes without drafts from then on."""

    reads = True

    def __init__(self, engine: Engine, ids: Int32) -> None:
        program = engine.program
        self._engine = engine
        self._ids = ids
        self._cache = OwnCache(engine)
        self.pages = self._cache.pages
        self._state = program.buffers[program.hidden]
        self._fused = program.features - self._state
        self._contexts: dict[Hashable, _Context | None] = {}
        """None for a sequence that found no pages left."""

    @property
    def engines(self) -> tuple[Engine, ...]:
        return (self._engine,)

    def read(self, seen: Sequence[Seen]) -> None:
        """Raises InferCompileError as the engine's step does."""
        self._reduce(
            [_Drafting(one.key, one.tokens, context) for one in seen if (context := self._take(one))], HELD
        )

    def _reduce(self, behind: list[_Drafting], most: int) -> None:
        """Computes what waits where that is more than ``most``, all but the last."""
        while behind := [one for one in behind if self._lives(one) and len(one.context.waiting) > most]:
            self._compute(behind, outputs=0)

    def _take(self, seen: Seen) -> _Context | None:
        begin = seen.end - len(seen.hidden)
        if seen.key not in self._contexts:
            self._contexts[seen.key] = _Context(self.pages.open(), begin)
        context = self._contexts[seen.key]
        if context is not None:
            if context.end < begin:
                context.waiting.clear()
                self._begin(context, begin)
            # What a sibling told is told again once it is in its place.
            # Copied: a row that waits must not keep a whole prompt's.
            context.waiting += [row.copy() for row in seen.hidden[context.end - begin :]]
        return context

    def _begin(self, context: _Context, first: int) -> None:
        """An empty cache for what comes from place ``first`` on."""
        self.pages.close(context.table)
        context.table, context.first, context.computed = self.pages.open(), first, 0

    def _lives(self, one: _Drafting) -> bool:
        return self._contexts[one.key] is not None

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """Raises InferCompileError as the engine's step does."""
        self._reduce(self._known(asks), NEAR)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """Raises InferCompileError as the engine's step does."""
        known = self._known(asks)
        drafting = self._compute(known, outputs=1)
        while drafting := [one for one in drafting if len(one.guesses) < one.most]:
            drafting = self._guess(drafting)
        drafts = {one.key: one.draft for one in known}
        return [drafts.get(ask.key, NOTHING) for ask in asks]

    def _known(self, asks: Sequence[Ask]) -> list[_Drafting]:
        """Those of which all but the newest token has its features, and some of these wait."""
        return [
            _Drafting(ask.key, ask.tokens, context, ask.most, ask.width)
            for ask in asks
            if (context := self._contexts.get(ask.key)) is not None
            and context.waiting
            and context.end == len(ask.tokens) - 1
        ]

    def _compute(self, found: list[_Drafting], outputs: int) -> list[_Drafting]:
        """Computes what waits, of those with least of it first and as far as a step goes: all with one of
        ``outputs``, which is drawn, else all but the last. Returns those of which nothing waits any more."""
        limits = self._cache.limits
        budget, batch, steps = limits.max_batch_tokens, [], []
        for one in sorted(found, key=lambda one: len(one.context.waiting)):
            if not budget:
                break
            context, waiting = one.context, len(one.context.waiting)
            if limits.overflow == "stop" and context.computed + waiting > limits.max_context:
                self._begin(context, context.first + context.computed)
            self.pages.evict(context.table, context.computed)
            count = self._cache.room(context.table, context.computed, min(waiting - 1 + outputs, budget))
            if not count:
                self.pages.close(context.table)
                self._contexts[one.key] = None
                continue
            tokens = one.tokens[context.first + context.computed + 1 :][:count]
            states = np.zeros((count, self._state), np.float32)
            features = np.concatenate([np.stack(context.waiting[:count]), states], axis=1)
            drawn = outputs if count == waiting else 0
            steps.append(self._cache.step(context.table, context.computed, tokens, count, drawn, features))
            batch.append(one)
            budget -= count
        self._run(batch, steps)
        for one, step in zip(batch, steps, strict=True):
            one.context.computed += step.accepted
            del one.context.waiting[: step.accepted]
            self.pages.commit(one.context.table, one.context.computed)
        return [one for one in batch if not one.context.waiting]

    def _guess(self, drafting: list[_Drafting]) -> list[_Drafting]:
        """Computes the last guess of each, for the one after; returns those that had pages for it."""
        batch, steps = [], []
        for one in drafting:
            table, slot, count = one.context.table, one.context.computed, len(one.guesses)
            if one.state is not None and self._cache.room(table, slot, count) == count:
                features = np.concatenate([np.zeros(self._fused, np.float32), one.state])[None]
                tokens = np.array(one.guesses[-1:], np.int32)
                steps.append(self._cache.step(table, slot + count - 1, tokens, 0, 1, features))
                batch.append(one)
        self._run(batch, steps)
        return batch

    def _run(self, batch: list[_Drafting], steps: list[SequenceStep]) -> None:
        """One pass; appends what it drew, and what is likeliest beside it, and keeps the states."""
        if not batch:
            return
        result = self._engine.step(steps, logits=any(one.width > 1 for one in batch), hidden=True)
        row = 0
        for one, tokens in zip(batch, result.tokens, strict=True):
            for token in tokens.tolist():
                one.guesses.append(int(self._ids[token]))
                one.state = None if result.hidden is None else result.hidden[row]
                if result.logits is not None:
                    beside = likeliest(result.logits[row], token, one.width - 1)
                    one.siblings.append(self._ids[beside])
                row += 1

    def keep(self, keys: Collection[Hashable]) -> None:
        for key in self._contexts.keys() - set(keys):
            context = self._contexts.pop(key)
            if context is not None:
                self.pages.close(context.table)

    def check(self) -> None:
        self._cache.check()
