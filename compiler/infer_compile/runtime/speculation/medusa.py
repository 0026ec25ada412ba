"""Drafts from Medusa heads: each guesses one position from the hidden state that drew the newest token.

One pass of a small engine guesses all positions of all sequences. It keeps no cache, so that nothing of a
sequence is held but its last state.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from ..formats.program import Linear
from ..step import Engine, Float32, Int32, SequenceStep
from .draft import NOTHING, Draft, likeliest
from .proposer import Ask, Seen

NO_PAGES: Int32 = np.empty(0, np.int32)
ANY_TOKEN: Int32 = np.zeros(1, np.int32)
"""Heads read no tokens, but a step is made of some."""


class Medusa:
    """``engine`` runs a program that is fed hidden states and gives the logits of all heads side by side."""

    reads = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heads = _heads(engine)
        self._states: dict[Hashable, tuple[int, Float32]] = {}
        """By sequence: the last state, and how many tokens there were up to its own."""

    @property
    def engines(self) -> tuple[Engine, ...]:
        return (self._engine,)

    def read(self, seen: Sequence[Seen]) -> None:
        for one in seen:
            self._states[one.key] = (one.end, one.hidden[-1].copy())

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """The last state is all that it reads."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """Raises InferCompileError as the engine's step does."""
        # A state of an earlier place guesses other positions.
        found = [ask for ask in asks if self._states.get(ask.key, (0,))[0] == len(ask.tokens) - 1]
        if not found:
            return [NOTHING for _ in asks]
        logits = self._engine.step([self._step(ask) for ask in found], logits=True).logits
        if logits is None:
            raise ValueError("an engine gives the logits that are asked for")
        drafts = {ask.key: self._draft(ask, row) for ask, row in zip(found, logits, strict=True)}
        return [drafts.get(ask.key, NOTHING) for ask in asks]

    def _draft(self, ask: Ask, logits: Float32) -> Draft:
        heads = [logits[head] for head in self._heads[: ask.most]]
        chain = np.array([row.argmax() for row in heads], np.int32)
        beside = [likeliest(row, token, ask.width - 1) for row, token in zip(heads, chain, strict=True)]
        return Draft(chain, np.stack(beside))

    def _step(self, ask: Ask) -> SequenceStep:
        _, state = self._states[ask.key]
        return SequenceStep(ANY_TOKEN, 0, 1, 0, NO_PAGES, NO_PAGES, features=state[None])

    def keep(self, keys: Collection[Hashable]) -> None:
        for key in self._states.keys() - set(keys):
            del self._states[key]

    def check(self) -> None:
        """Nothing is held but states."""


def _heads(engine: Engine) -> list[slice]:
    """Where the logits of each head lie."""
    program = engine.program
    rows = {tensor.name: tensor.rows for tensor in program.tensors}
    return [
        slice(op.first, op.first + rows[op.weight])
        for op in program.operations
        if isinstance(op, Linear) and op.output == "logits"
    ]
