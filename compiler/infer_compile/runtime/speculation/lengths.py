"""How many tokens to draft for each sequence of a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .acceptance import Rates
from .times import StepTimes

LEAST_GAIN = 1.02
"""A step with drafts that is expected to be less better is not told from one without."""


def best_lengths(rates: Rates, total: int, times: StepTimes, draft_seconds: float) -> NDArray[np.int64]:
    """Tokens to draft for each sequence, so that a step yields most tokens per second; all 0 where drafts do
    not pay.

    ``rates`` [sequences, positions] are chances of acceptance, ``total`` is how many may be drafted together,
    ``times`` tells how long steps take by their rows, ``draft_seconds`` how long it takes to draft one token
    more for all. A token is worth the chance that it and all before it are kept. The most valuable come
    first, and of that order the best beginning is taken.
    """
    sequences = len(rates)
    worth = np.cumprod(rates, axis=1).T.ravel()
    # Stable: of equals the earlier position, so that every beginning of the order is made of whole chains.
    order = np.argsort(-worth, kind="stable")[:total]
    yields = sequences + np.concatenate([[0.0], np.cumsum(worth[order])])
    seconds = times.at(sequences + np.arange(len(order) + 1))
    seconds[1:] += draft_seconds * (np.maximum.accumulate(order // sequences) + 1)
    speeds = yields / seconds
    count = int(np.argmax(speeds))
    if speeds[count] < LEAST_GAIN * speeds[0]:
        count = 0
    return np.bincount(order[:count] % sequences, minlength=sequences)
