"""How many tokens are drafted for whom, by what drafts brought and took so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence

import numpy as np

from .acceptance import Acceptance
from .lengths import best_lengths
from .times import StepTimes

REVIEW = 4
"""Steps for which lengths stay while the same sequences run."""
PROBE = 32
"""Steps after which one drafts all it may, whatever was decided."""
LONGEST_PROBE = 1024
"""While drafts do not pay, that pause doubles with every such step up to so many."""
EXPECTED = 8.0
"""Drafts that what is expected of them weighs as much as."""
SHARED_MEMORY, OWN_MEMORY = 0.99, 0.95
"""What stays of the past with each draft, in the acceptance of all sequences and of one."""


class Pace:
    """At most ``tokens`` are drafted for a sequence, of which the share ``acceptance`` is expected to be
    kept; ``draft_seconds(sequences, tokens)`` is what drafting takes.

    Steps are made to yield as many tokens per second as they can (``best_lengths``), by the measured times of
    steps and each sequence's acceptance at each position. What is not tried is not known: the first step of
    fewer sequences than ever is a plain one, and now and then a step drafts all it may.
    """

    def __init__(self, tokens: int, acceptance: float, draft_seconds: Callable[[int, int], float]) -> None:
        self._tokens = tokens
        self._draft_seconds = draft_seconds
        self._times = StepTimes()
        self._shared = Acceptance(np.full(tokens, acceptance), EXPECTED, SHARED_MEMORY)
        self._own: dict[Hashable, Acceptance] = {}
        self._lengths: dict[Hashable, int] = {}
        self._age = 0
        """Steps since lengths were decided on."""
        self._waited = 0
        """Steps since all was drafted that could be."""
        self._pause = PROBE
        self._probed = False

    def lengths(self, keys: Sequence[Hashable], total: int) -> list[int]:
        """Tokens to draft for each sequence of the next step, ``total`` at most for all together."""
        if self._times.least is None or len(keys) < self._times.least:
            return [0] * len(keys)
        self._age += 1
        self._waited += 1
        if self._waited >= self._pause:
            self._waited, self._probed = 0, True
            return [min(self._tokens, total // len(keys))] * len(keys)
        if self._probed or self._age >= REVIEW or not self._lengths.keys() >= set(keys):
            self._decide(keys, total)
        return [self._lengths[key] for key in keys]

    def _decide(self, keys: Sequence[Hashable], total: int) -> None:
        for key in keys:
            self._own.setdefault(key, Acceptance(self._shared.rates, EXPECTED, OWN_MEMORY))
        rates = np.stack([self._own[key].rates for key in keys])
        chosen = best_lengths(
            rates, total, self._times, lambda tokens: self._draft_seconds(len(keys), tokens)
        )
        self._lengths = dict(zip(keys, chosen.tolist(), strict=True))
        if chosen.any():
            self._pause = PROBE
        elif self._probed:
            self._pause = min(2 * self._pause, LONGEST_PROBE)
        self._age, self._probed = 0, False

    def drafted(self, key: Hashable, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens, one at least, of a sequence the first ``accepted`` were kept."""
        self._shared.observe(drafted, accepted)
        if key in self._own:
            self._own[key].observe(drafted, accepted)

    def stepped(self, rows: int, seconds: float) -> None:
        """A step that computed ``rows`` tokens, drafts among them, and no prompt took ``seconds``."""
        self._times.observe(rows, seconds)

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forgets every sequence but these."""
        for key in self._own.keys() - set(keys):
            del self._own[key]
            self._lengths.pop(key, None)
