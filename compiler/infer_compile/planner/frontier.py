"""What else was possible: feasible plans that are better in something, and the near misses."""

from __future__ import annotations

from .candidate import Candidate
from .deployment import Deployment
from .plan import Alternative, Rejected, significant
from .units import GIB, size


def alternatives(
    asked: Deployment, chosen: Candidate, candidates: tuple[Candidate, ...]
) -> tuple[Alternative, ...]:
    """The feasible candidates that no other one beats in everything, the chosen one aside."""
    feasible = [one for one in candidates if one.feasible]
    front = [one for one in feasible if not any(_beats(other, one) for other in feasible)]
    return tuple(
        Alternative(
            target=asked.target.id,
            weights=label(one),
            kv=one.layout.level,
            itl_ms=significant(one.forecast.itl * 1e3),
            tokens_per_second=significant(one.forecast.tokens_per_second),
            memory_gib=significant(one.memory.total / GIB),
            quality_loss_percent=one.loss.expected,
            gives_up=_gives_up(one, chosen),
        )
        for one in front
        if one is not chosen
    )


def rejected(asked: Deployment, candidates: tuple[Candidate, ...]) -> tuple[Rejected, ...]:
    """Each limit that a candidate breaks, the nearest miss first."""
    return tuple(
        Rejected(
            target=asked.target.id,
            weights=label(one),
            kv=one.layout.level,
            limit=violation.limit,
            value=violation.value,
            allowed=violation.allowed,
        )
        for one in sorted(candidates, key=lambda one: one.excess)
        for violation in one.violations
    )


def label(one: Candidate) -> str:
    """The weight format with its group."""
    return f"{one.weights.name}/{one.weights.group}" if one.weights.group else one.weights.name


def _measures(one: Candidate) -> tuple[float, float, float, float]:
    """What one wants less of: seconds per token, seconds per token of all, bytes, loss."""
    seen = one.forecast
    return seen.itl, 1 / seen.tokens_per_second, float(one.memory.total), one.loss.expected


def _beats(one: Candidate, other: Candidate) -> bool:
    """At least as good in everything, and better in something."""
    first, second = _measures(one), _measures(other)
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def _gives_up(one: Candidate, chosen: Candidate) -> str:
    """What the chosen plan has that ``one`` has not."""
    parts = []
    slower = one.forecast.itl / chosen.forecast.itl
    if slower > 1.01:
        parts.append(f"{slower:.2f} x the time between tokens")
    fewer = chosen.forecast.tokens_per_second / one.forecast.tokens_per_second
    if fewer > 1.01:
        parts.append(f"{100 - 100 / fewer:.0f} % of the tokens per second")
    more = one.memory.total - chosen.memory.total
    if more > 0.01 * chosen.memory.total:
        parts.append(size(more))
    loss = one.loss.expected - chosen.loss.expected
    if loss > 0:
        parts.append(f"{loss:.2g} % more loss expected")
    return ", ".join(parts) or "nothing that counts"
