"""Money: what the spec says an hour costs, over what an hour gives."""

from __future__ import annotations

from ..spec.spec import Spec
from .plan import Cost, significant


def cost(spec: Spec, tokens_per_second: float) -> Cost | None:
    """US dollars per million generated tokens at full concurrency; None where the spec states no price."""
    hourly = spec.cost.usd_per_hour
    if hourly is None:
        return None
    return Cost(
        usd_per_hour=hourly,
        usd_per_million_tokens=significant(usd_per_million_tokens(hourly, tokens_per_second)),
    )


def usd_per_million_tokens(usd_per_hour: float, tokens_per_second: float) -> float:
    return usd_per_hour / (3600 * tokens_per_second) * 1e6
