"""How long steps take, by what they compute."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLOWER, FASTER = 0.2, 0.5
"""Weight of a new time that is above or below what was known: what disturbs a step makes it slower."""
OUTLIER = 2.0
"""A time counts as so many times what was known at most."""


class StepTimes:
    """Usual seconds of steps by their rows. Fewer rows never take longer. Between what was measured runs a
    straight line; before it time stands still, behind it goes the line through the last two."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._seconds: list[float] = []

    @property
    def least(self) -> int | None:
        """The smallest number of rows that was measured."""
        return self._rows[0] if self._rows else None

    def observe(self, rows: int, seconds: float) -> None:
        """A step of ``rows`` rows took ``seconds``, more than none."""
        at = bisect_left(self._rows, rows)
        if at == len(self._rows) or self._rows[at] != rows:
            self._rows.insert(at, rows)
            self._seconds.insert(at, seconds)
        else:
            known = self._seconds[at]
            counted = min(seconds, OUTLIER * known)
            self._seconds[at] += (SLOWER if counted > known else FASTER) * (counted - known)

    def at(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Expected seconds of steps of so many rows; 0 while nothing was measured."""
        wanted = np.asarray(rows, np.float64)
        if not self._rows:
            return np.zeros(wanted.shape)
        seconds = np.minimum.accumulate(self._seconds[::-1])[::-1]
        within = np.interp(wanted, self._rows, seconds)
        if len(self._rows) == 1:
            return within
        (first, last), (early, late) = self._rows[-2:], seconds[-2:]
        slope = (late - early) / (last - first)
        return np.asarray(within + slope * np.maximum(0.0, wanted - last))
