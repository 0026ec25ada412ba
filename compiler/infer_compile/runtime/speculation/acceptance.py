"""How often drafts are kept, position by position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]


class Acceptance:
    """The chance that the draft at each position is kept if all before it were: what was expected, as if it
    had been seen ``weight`` times, and what was seen since, the newest counting most.

    ``memory``: how much of the past stays with each draft.
    """

    def __init__(self, expected: Rates, weight: float, memory: float) -> None:
        self._tried: Rates = np.full(len(expected), weight, np.float64)
        self._kept: Rates = expected * weight
        self._memory = memory

    @property
    def rates(self) -> Rates:
        return np.asarray(self._kept / self._tried)

    def observe(self, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens the first ``accepted`` were kept: those behind the next one say nothing."""
        reached = min(drafted, accepted + 1)
        for counts, seen in ((self._tried, reached), (self._kept, accepted)):
            counts[:reached] *= self._memory
            counts[:seen] += 1
