"""What else was possible: feasible plans that are better in something, and the near misses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .candidate import Candidate
from .cost import cost
from .deployment import Deployment
from .plan import Alternative, Choice, Parallelism, Rejected, significant
from .survey import Survey
from .units import GIB, size

MOST = 12
"""Alternatives and near misses that a plan tells of."""


def alternatives(asked: Deployment, chosen: Candidate, survey: Survey) -> tuple[Alternative, ...]:
    """The feasible candidates that no other one beats in everything and that give more than the chosen one of
    something, the best by objective first.

    Of those that differ in layout, draft length and token budget alone, the best by objective stands for all.
    """
    front = _front(survey, _representatives(survey, survey.feasible, -survey.gain))
    ranked = front[np.argsort(-survey.gain[front], kind="stable")]
    found: list[Alternative] = []
    mine = choice(asked, chosen)
    for index in ranked:
        one = survey.candidate(int(index))
        if choice(asked, one) != mine and _gives_more(one, chosen) and len(found) < MOST:
            found.append(_alternative(asked, one, chosen))
    return tuple(found)


def rejected(asked: Deployment, survey: Survey) -> tuple[Rejected, ...]:
    """Each limit that a candidate breaks, the nearest miss of each engine, format and level first."""
    broken = np.flatnonzero(survey.excess > 0)
    ranked = _representatives(survey, broken, survey.excess)
    found = []
    for index in ranked[np.argsort(survey.excess[ranked], kind="stable")][:MOST]:
        one = survey.candidate(int(index))
        named = choice(asked, one).model_dump()
        found += [
            Rejected(**named, limit=each.limit, value=each.value, allowed=each.allowed)
            for each in one.violations
        ]
    return tuple(found)


def choice(asked: Deployment, one: Candidate) -> Choice:
    """A candidate in names."""
    return Choice(
        target=asked.target.id,
        engine=one.engine.name,
        weights=label(one),
        kv=one.level,
        speculation=drafting(one),
        parallelism=Parallelism(
            tensor=int(one.layout.tensor),
            pipeline=int(one.layout.pipeline),
            expert=int(one.layout.expert),
            data=int(one.layout.data),
        ),
    )


def label(one: Candidate) -> str:
    """The weight format, with its group where there is one."""
    group = one.scheme.group
    return f"{one.scheme.name}/{group}" if group else one.scheme.name


def drafting(one: Candidate) -> str:
    """Method, tokens and width of speculation."""
    return drafts(one.drafting.method, one.drafting.tokens, one.drafting.width)


def drafts(method: str, tokens: int, width: int) -> str:
    """``draft:4``, or ``draft:3x2`` with two choices for each token."""
    beside = f"x{width}" if width > 1 else ""
    return f"{method}:{tokens}{beside}" if tokens else method


def _representatives(
    survey: Survey, among: NDArray[np.int64], badness: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Of each block, with and without drafts, the one of ``among`` with the least ``badness``."""
    if not len(among):
        return among
    block = np.repeat(np.arange(len(survey.solved)), [len(each.block) for each in survey.solved])
    group = 2 * block[among] + (survey.drafted[among] > 0)
    order = np.lexsort((among, badness[among], group))
    first = np.r_[True, np.diff(group[order]) != 0]
    best: NDArray[np.int64] = among[order][first]
    return best


def _front(survey: Survey, among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those that no other is at least as good as in everything and better than in something."""
    measures = np.stack(
        [
            survey.ttft[among],
            survey.itl[among],
            1 / survey.tokens_per_second[among],
            survey.memory[among],
            survey.loss[among],
        ]
    )
    mine, others = measures[:, :, None], measures[:, None, :]
    beaten = np.all(others <= mine, axis=0) & np.any(others < mine, axis=0)
    front: NDArray[np.int64] = among[~beaten.any(axis=1)]
    return front


def _alternative(asked: Deployment, one: Candidate, chosen: Candidate) -> Alternative:
    seen = one.forecast
    return Alternative(
        **choice(asked, one).model_dump(),
        ttft_ms=significant(float(seen.ttft) * 1e3),
        itl_ms=significant(float(seen.itl) * 1e3),
        tokens_per_second=significant(float(seen.tokens_per_second)),
        memory_gib=significant(float(one.memory.total) / GIB),
        quality_loss_percent=one.loss.expected,
        usd_per_million_tokens=cost(asked, one).usd_per_million_tokens,
        gives_up=_gives_up(one, chosen),
    )


def _gives_more(one: Candidate, chosen: Candidate) -> bool:
    """Whether ``one`` is better than ``chosen`` in something, by more than rounding."""
    pairs = zip(_measures(one), _measures(chosen), strict=True)
    return any(mine < 0.999 * other for mine, other in pairs)


def _measures(one: Candidate) -> tuple[float, ...]:
    """What one wants less of: as the rows of ``_front``."""
    seen = one.forecast
    figures = (seen.ttft, seen.itl, 1 / seen.tokens_per_second, one.memory.total)
    return (*map(float, figures), one.loss.expected)


def _gives_up(one: Candidate, chosen: Candidate) -> str:
    """What the chosen plan has that ``one`` has not."""
    parts = []
    seen, best = one.forecast, chosen.forecast
    for slower, noun in (
        (float(seen.ttft) / float(best.ttft), "to the first token"),
        (float(seen.itl) / float(best.itl), "between tokens"),
    ):
        if slower > 1.01:
            parts.append(f"{slower:.2f}x {noun}")
    fewer = float(best.tokens_per_second) / float(seen.tokens_per_second)
    if fewer > 1.01:
        parts.append(f"{100 - 100 / fewer:.0f} % of tokens/s")
    if one.sequences < chosen.sequences:
        parts.append(f"{chosen.sequences - one.sequences} sequences in flight")
    more = float(one.memory.total) - float(chosen.memory.total)
    if more > 0.01 * float(chosen.memory.total):
        parts.append(f"{size(more)} of memory")
    loss = one.loss.expected - chosen.loss.expected
    if loss > 0:
        parts.append(f"{loss:.2g} % more loss")
    return ", ".join(parts) or "nothing that counts"
