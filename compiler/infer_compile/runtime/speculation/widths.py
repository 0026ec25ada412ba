"""How many choices to draft at each depth for each sequence of a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .acceptance import Rates
from .times import StepTimes

LEAST_GAIN = 1.02
"""A step with drafts that is expected to be less better is not told from one without."""


def best_widths(
    rates: Rates, total: int, times: StepTimes, draft_seconds: float, window: int = 0
) -> NDArray[np.int64]:
    """Choices at each depth for each sequence, [sequences, depth], so that a step yields most tokens per
    second: 1 is the chain's token alone, 0 nothing; all 0 where drafts do not pay.

    ``rates`` [sequences, depth, width] are chances of acceptance, ``total`` is how many tokens may be
    drafted together, ``times`` tells how long steps take by their rows, ``draft_seconds`` how long it takes
    to draft one token deeper for all. A choice is worth the chance that it is drawn and all of the chain
    before it was; a sibling that is drawn is a row of the next step once more, and the first choice for a
    sequence brings a window of ``window`` rows with it, which are worth nothing themselves. The most valuable
    come first, and of that order the best beginning is taken.
    """
    sequences, depth, width = rates.shape
    before = np.cumprod(rates[:, :, 0], axis=1)
    before = np.concatenate([np.ones((sequences, 1)), before[:, :-1]], axis=1)
    # A choice is never asked for without the likelier ones.
    worths = before[:, :, None] * np.minimum.accumulate(rates, axis=2)
    rows = np.ones(rates.shape)
    rows[:, 0, 0] += window
    again = worths * (np.arange(width) > 0)
    # Stable: of equals the earlier depth and choice, so that any beginning of the order is made of drafts.
    worth, taken, cost = (each.transpose(1, 2, 0).ravel() for each in (worths, rows, rows + again))
    order = np.argsort(-worth, kind="stable")
    order = order[np.cumsum(taken[order]) <= total]
    yields = sequences + np.concatenate([[0.0], np.cumsum(worth[order])])
    seconds = times.at(sequences + np.concatenate([[0.0], np.cumsum(cost[order])]))
    seconds[1:] += draft_seconds * (np.maximum.accumulate(order // (width * sequences)) + 1)
    speeds = yields / seconds
    count = int(np.argmax(speeds))
    if speeds[count] < LEAST_GAIN * speeds[0]:
        count = 0
    place = order[:count] % sequences * depth + order[:count] // (width * sequences)
    return np.bincount(place, minlength=sequences * depth).reshape(sequences, depth)


def full_widths(total: int, depth: int, width: int) -> NDArray[np.int64]:
    """As many choices as there are in a draft of ``total`` tokens at most, the chain first, [depth]."""
    chain = max(0, min(depth, total))
    beside = np.clip(total - chain - np.arange(chain) * (width - 1), 0, width - 1)
    return np.concatenate([1 + beside, np.zeros(depth - chain, np.int64)])
