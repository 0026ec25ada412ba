"""How much is drafted for whom, by what drafts brought and took so far."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import numpy as np
from numpy.typing import NDArray

from .acceptance import Acceptance
from .draft import Draft, Verdict
from .times import StepTimes
from .widths import best_widths, full_widths

Widths = NDArray[np.int64]
REVIEW = 4
"""Steps with drafts for which widths stay while the same sequences run."""
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
    """At most ``tokens`` are drafted one behind the other for a sequence, of which the share ``acceptance``
    is expected to be kept, and up to ``width`` choices for each; ``beside`` is how often one of the others is
    expected to be drawn where the first is not. Whoever is drafted for has a window of ``window`` tokens
    computed as well.

    Steps are made to yield as many tokens per second as they can (``best_widths``), by the measured times of
    steps and drafts and each sequence's acceptance at each position. What is not tried is not known: the
    first steps of all, and that of fewer sequences than ever, are plain, and now and then one is a probe.
    """

    def __init__(
        self, tokens: int, acceptance: float, width: int = 1, beside: float = 0.0, window: int = 0
    ) -> None:
        self._tokens = tokens
        self._width = width
        self._window = window
        self._times = StepTimes()
        self._draft_times = StepTimes()
        """By sequences, for each token in depth: drafters take one after the other."""
        expected = np.full((tokens, width), (1 - acceptance) * beside / max(1, width - 1))
        expected[:, 0] = acceptance
        self._shared = Acceptance(expected, EXPECTED, SHARED_MEMORY)
        self._own: dict[Hashable, Acceptance] = {}
        self._keys: list[Hashable] = []
        self._widths: list[Widths] = []
        """Of ``_keys``, as decided; empty if nothing is drafted."""
        self._drafts = False
        """Whether that is anything."""
        self._age = 0
        """Steps with drafts since."""
        self._waited = PROBE - REVIEW
        """Steps since the last probe."""
        self._pause = PROBE
        self._probed = self._full = False

    def widths(self, keys: list[Hashable], total: int) -> list[Widths]:
        """For each sequence of the next step how many choices to draft at each depth, ``total`` tokens at
        most for all together; empty where nothing is drafted at all."""
        if self._times.least is None or len(keys) < self._times.least:
            return []
        self._waited += 1
        if self._waited >= self._pause:
            self._waited, self._probed = 0, True
            self._full = not (self._full and self._drafts)
            full = full_widths(total // len(keys) - self._window, self._tokens, self._width)
            return [full] * len(keys) if self._full and full.any() else []
        if self._draft_times.least is None:
            return []
        if self._probed or self._age >= REVIEW or keys != self._keys:
            self._decide(keys, total)
        self._age += self._drafts
        return self._widths

    def _decide(self, keys: list[Hashable], total: int) -> None:
        for key in keys:
            self._own.setdefault(key, Acceptance(self._shared.rates, EXPECTED, OWN_MEMORY))
        rates = np.stack([self._own[key].rates for key in keys])
        draft_seconds = float(self._draft_times.at(len(keys)))
        chosen = best_widths(rates, total, self._times, draft_seconds, self._window)
        self._keys, self._drafts = keys, bool(chosen.any())
        self._widths = list(chosen) if self._drafts else []
        if self._drafts:
            self._pause = PROBE
        elif self._probed:
            self._pause = min(2 * self._pause, LONGEST_PROBE)
        self._age, self._probed = 0, False

    def drafted(self, key: Hashable, draft: Draft, verdict: Verdict) -> None:
        """What became of a draft, of one token at least, of a sequence."""
        self._shared.observe(draft, verdict)
        if key in self._own:
            self._own[key].observe(draft, verdict)

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
