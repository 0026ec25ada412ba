"""Which of the feasible candidates becomes the plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .block import Block
from .deployment import Deployment
from .survey import Survey


def choose(survey: Survey) -> int:
    """The best by objective; a lossier or more intricate choice has to win by a margin.

    A cache is compressed where it has to be (no plan with a bf16 cache keeps the limits) or where that wins
    by the larger margin, and to fewer than eight bits only as far as it has to be, or where a stated budget
    of loss or the objective asks for it (``shallow``); tokens are drafted where that wins by more than
    acceptance varies with the text. An engine that this version builds bundles for is taken before one that
    it only plans for; of engines that are as good as their calibration can tell, the first of the catalog.
    Among equals the candidate that loses less, then the one that ends a request sooner, then the one that
    takes less memory, then the first. A lossier level of the cache than another has to win by the margin of
    lossier formats.
    """
    asked, margins = survey.asked, survey.asked.facts.choices.margins
    among = survey.feasible
    built = survey.of_blocks(lambda block: _built(asked, block))[among]
    among = shallow(survey, among[built == built.max()])
    lossy = survey.of_blocks(lambda block: block.loss_of_weights.high > 0)[among]
    compressed = survey.of_blocks(lambda block: block.cache.scheme.name != "bf16")[among]
    gain = (
        survey.gain[among]
        / margins.lossy_gain.value**lossy
        / margins.compressed_gain.value**compressed
        / margins.speculation_gain.value ** (survey.drafted[among] > 0)
    )
    rank = survey.of_blocks(lambda block: asked.facts.engines.names.index(block.engine.name))[among]
    first = rank[gain >= gain.max() / margins.engine_gain.value].min()
    mine = np.flatnonzero(rank == first)
    at, gain = among[mine], gain[mine]
    order = np.lexsort((at, survey.memory[at], _steps(survey.e2e[at]), survey.loss[at], -_steps(gain)))
    best = at[order[0]]
    scheme = survey.block(int(best)).stored.scheme
    same = survey.of_blocks(lambda block: block.stored.scheme == scheme)[at] > 0
    same &= survey.drafted[at] == survey.drafted[best]
    near = order[(same & (gain >= gain[order[0]] / margins.lossy_gain.value))[order]]
    return int(at[near[np.argmin(survey.loss[at[near]])]])


def shallow(survey: Survey, among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of ``among`` whose cache has as many bits as the planner goes down to by itself, or the most that
    any of them has; all, where a stated budget of loss or the objective asks for fewer."""
    asked = survey.asked
    if goes_deep(asked):
        return among
    bits = survey.of_blocks(lambda block: block.cache.scheme.narrowest)[among]
    kept: NDArray[np.int64] = among[bits >= min(asked.facts.choices.cache.least_bits.value, bits.max())]
    return kept


def goes_deep(asked: Deployment) -> bool:
    """Whether what is asked lets the cache have fewer bits than it has to have."""
    return asked.budget_stated or asked.spec.objective == "capacity"


def _steps(figure: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences below half a percent are none: of equals the smaller deployment is taken."""
    steps: NDArray[np.float64] = np.round(np.log(figure) / np.log(1.005))
    return steps


def nearest(survey: Survey, among: NDArray[np.int64] | None = None) -> int:
    """The candidate that misses by least."""
    indices = np.arange(len(survey)) if among is None else among
    order = np.lexsort((indices, survey.memory[indices], survey.excess[indices]))
    return int(indices[order[0]])


def _built(asked: Deployment, block: Block) -> bool:
    return block.engine.builds_for(asked.target.kind, asked.devices)
