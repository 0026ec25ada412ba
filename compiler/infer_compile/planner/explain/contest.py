"""The chosen candidate against the best of others: a comparison is a reduction over the survey's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..block import Block, Solved
from ..candidate import Candidate
from ..choose import nearest
from ..deployment import Deployment
from ..survey import Survey
from . import words

Mask = NDArray[np.bool_]
"""An entry for each candidate of the survey."""


@dataclass(frozen=True)
class Contest:
    """``chosen`` is one of the candidates of ``survey``."""

    survey: Survey
    chosen: Candidate

    @property
    def asked(self) -> Deployment:
        return self.survey.asked

    @cached_property
    def _feasible(self) -> Mask:
        kept: Mask = self.survey.excess == 0
        return kept

    def blocks(self, has: Callable[[Block], bool]) -> Mask:
        """Candidates whose engine, weight format and cache level ``has`` holds for."""
        return self.survey.of_blocks(has).astype(np.bool_)

    def each(self, has: Callable[[Solved], Mask]) -> Mask:
        """Candidates for which ``has`` holds, asked block by block."""
        return self.survey.column(lambda solved: has(solved).astype(np.float64)).astype(np.bool_)

    @cached_property
    def engine(self) -> Mask:
        """Those of the chosen engine."""
        return self.blocks(lambda block: block.engine.name == self.chosen.engine.name)

    @cached_property
    def formats(self) -> Mask:
        """Those of the chosen engine, weight format and cache level."""
        return self.engine & self.blocks(
            lambda block: (
                block.stored.scheme == self.chosen.scheme and block.cache.scheme == self.chosen.cache.scheme
            )
        )

    @cached_property
    def layout(self) -> Mask:
        """Those that are spread over the devices as the chosen one is."""
        mine = self.chosen.layout
        ways = ("tensor", "pipeline", "expert", "data")
        return self.each(
            lambda solved: np.all(
                [np.asarray(getattr(solved.block.layout, way)) == getattr(mine, way) for way in ways], axis=0
            )
        )

    @cached_property
    def drafting(self) -> Mask:
        """Those that draft as the chosen one does."""
        return self.each(
            lambda solved: np.array([one == self.chosen.drafting for one in solved.block.draftings])[
                solved.block.drafted
            ]
        )

    @cached_property
    def index(self) -> int:
        """Where the chosen candidate stands in the survey."""
        same = self.formats & self.layout & self.drafting
        budget = self.survey.column(lambda solved: solved.block.budget.astype(np.float64))
        return int(np.flatnonzero(same & (budget == self.chosen.budget))[0])

    def best(self, among: Mask) -> int | None:
        """Of the feasible of ``among`` the one that gains most; None where there is none."""
        indices = np.flatnonzero(among & self._feasible)
        return int(indices[np.argmax(self.survey.gain[indices])]) if len(indices) else None

    def nearest(self, among: Mask) -> int | None:
        """Of ``among`` the one that misses the limits by least; None where there is none."""
        indices = np.flatnonzero(among)
        return nearest(self.survey, indices) if len(indices) else None

    def gain(self, index: int) -> float:
        """What the candidate gains over what the chosen one does: above 1 it would be better by objective."""
        return float(self.survey.gain[index] / self.survey.gain[self.index])

    def figure(self, index: int) -> str:
        """What the objective asks for, of a candidate."""
        return figure(self.asked, self.survey.candidate(index))

    def against(self, index: int) -> str:
        """What the objective asks for, of the chosen candidate and of another."""
        mine, noun = _figure(self.asked, self.chosen)
        other, _ = _figure(self.asked, self.survey.candidate(index))
        return f"{mine} against {other} {noun}"


def figure(asked: Deployment, one: Candidate) -> str:
    """What the objective asks for, in words."""
    return " ".join(_figure(asked, one))


def _figure(asked: Deployment, one: Candidate) -> tuple[str, str]:
    if asked.spec.objective == "capacity":
        return f"{one.sequences:,}", "sequences"
    if asked.spec.objective == "latency" or asked.rate is not None:
        return words.whole(float(one.forecast.e2e)), "s per answer"
    return words.whole(float(one.forecast.tokens_per_second)), "tokens/s"


def broken(one: Candidate) -> str:
    """The limits that a candidate breaks."""
    return " and ".join(words.broken(each.limit, each.value, each.allowed) for each in one.violations)
