"""How many tokens are drafted for whom, by what drafts brought and took so far."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import numpy as np

from .acceptance import Acceptance
from .lengths import best_lengths
from .times import StepTimes

REVIEW = 4
"""Steps with drafts for which lengths stay while the same sequences run."""
PROBE = 32
"""Steps after which one is a probe, whatever was decided: it drafts all it may or, where drafts are verified
anyhow, by turns nothing at all."""
LONGEST_PROBE = 1024
"""While drafts do not pay, that pause doubles with every probe up to so many."""
EXPECTED = 8.0
"""Drafts that what is expected of them weighs as much as."""
SHARED_MEMORY, OWN_MEMORY = 0.99, 0.95
"""What stays of the past with each draft, in the acceptance of all sequences and of one."""


class Pace:
    """At most ``tokens`` are drafted for a sequence, of which the share ``acceptance`` is expected to be
    kept.

    Steps are made to yield as many tokens per second as they can (``best_lengths``), by the measured times of
    steps and drafts and each sequence's acceptance at each position. What is not tried is not known: the
    first steps of all, and that of fewer sequences than ever, are plain, and now and then one is a probe.
    """

    def __init__(self, tokens: int, acceptance: float) -> None:
        self._tokens = tokens
        self._times = StepTimes()
        self._draft_times = StepTimes()
        """By sequences, for each token in depth: drafters take one after the other."""
        self._shared = Acceptance(np.full(tokens, acceptance), EXPECTED, SHARED_MEMORY)
        self._own: dict[Hashable, Acceptance] = {}
        self._keys: list[Hashable] = []
        self._lengths: list[int] = []
        """Of ``_keys``, as decided."""
        self._age = 0
        """Steps with drafts since."""
        self._waited = PROBE - REVIEW
        """Steps since the last probe."""
        self._pause = PROBE
        self._probed = self._full = False

    def lengths(self, keys: list[Hashable], total: int) -> list[int]:
        """Tokens to draft for each sequence of the next step, ``total`` at most for all together."""
        if self._times.least is None or len(keys) < self._times.least:
            return [0] * len(keys)
        self._waited += 1
        if self._waited >= self._pause:
            self._waited, self._probed = 0, True
            self._full = not (self._full and any(self._lengths))
            return [min(self._tokens, total // len(keys)) if self._full else 0] * len(keys)
        if self._draft_times.least is None:
            return [0] * len(keys)
        if self._probed or self._age >= REVIEW or keys != self._keys:
            self._decide(keys, total)
        self._age += any(self._lengths)
        return self._lengths

    def _decide(self, keys: list[Hashable], total: int) -> None:
        for key in keys:
            self._own.setdefault(key, Acceptance(self._shared.rates, EXPECTED, OWN_MEMORY))
        rates = np.stack([self._own[key].rates for key in keys])
        draft_seconds = float(self._draft_times.at(len(keys)))
        chosen = best_lengths(rates, total, self._times, draft_seconds)
        self._keys, self._lengths = keys, chosen.tolist()
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

    def proposed(self, sequences: int, depth: int, seconds: float) -> None:
        """It took ``seconds`` to draft up to ``depth`` tokens for so many sequences."""
        self._draft_times.observe(sequences, seconds / depth)

    def stepped(self, rows: int, seconds: float) -> None:
        """A step that computed ``rows`` tokens, drafts among them, and no prompt took ``seconds``."""
        self._times.observe(rows, seconds)

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forgets every sequence but these."""
        for key in self._own.keys() - set(keys):
            del self._own[key]
