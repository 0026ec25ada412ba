"""How often drafts are kept, position by position and choice by choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .draft import Draft, Verdict

Rates = NDArray[np.float64]


class Acceptance:
    """The chance that each choice at each position is what is drawn there if the chain's tokens before it
    were, [positions, width]; the first choice is the chain's token. It is what was expected, as if that had
    been seen ``weight`` times, and what was seen since, the newest counting most.

    ``memory``: how much of the past stays with each draft.
    """

    def __init__(self, expected: Rates, weight: float, memory: float) -> None:
        self._tried: Rates = np.full(expected.shape, weight, np.float64)
        self._kept: Rates = expected * weight
        self._memory = memory

    @property
    def rates(self) -> Rates:
        return np.asarray(self._kept / self._tried)

    def observe(self, draft: Draft, verdict: Verdict) -> None:
        """What became of ``draft``; choices behind the first token of its chain that was not drawn say
        nothing."""
        reached = min(len(draft.chain), verdict.accepted + 1)
        widths = draft.widths[:reached, None]
        tried = np.arange(self._tried.shape[1]) < widths
        kept = np.zeros(tried.shape)
        kept[: verdict.accepted, 0] = 1
        if verdict.choice:
            kept[verdict.accepted, verdict.choice] = 1
        for counts, seen in ((self._tried, tried), (self._kept, kept)):
            own = counts[:reached]
            own[tried] = own[tried] * self._memory + seen[tried]
