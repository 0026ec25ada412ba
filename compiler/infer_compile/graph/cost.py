"""What operations cost, as coefficients: a planner multiplies them with arrays of candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Coefficients of one operation (or of a sum of operations that share a ``window``).

    Bytes and FLOPs are affine in batch, tokens, context and format:

    - weights: ``table_elements`` are stored and a step reads one row per token; ``weight_elements`` and
      ``head_elements`` are stored and read whole by every step; what an element of each takes is in
      ``storage.py``. ``vector_elements`` are always bf16.
    - work: ``flops_per_token`` for each new token, ``flops_per_output`` for each token whose logits are
      asked for, ``attention_flops_per_token_context`` for each pair of a new token and a key that it sees.
      Matrix products alone are counted, a multiplication and an addition as two.
    - cache: ``cache_elements_per_token`` numbers are written per token, and read by each sequence for every
      key that it sees: ``min(context, window)`` of them.
    """

    table_elements: int = 0
    weight_elements: int = 0
    head_elements: int = 0
    vector_elements: int = 0
    flops_per_token: int = 0
    flops_per_output: int = 0
    attention_flops_per_token_context: int = 0
    cache_elements_per_token: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of all layers that share a ``window`` (None sees everything)."""

    window: int | None
    layers: int
    flops_per_token_context: int
    cache_elements_per_token: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The coefficients of a whole graph: a handful of numbers, whatever the depth of the model."""

    table_elements: int
    weight_elements: int
    head_elements: int
    vector_elements: int
    flops_per_token: int
    flops_per_output: int
    attention: tuple[Attention, ...]

    @property
    def cache_elements_per_token(self) -> int:
        """Numbers that one token leaves in the cache, over all layers. Pages hold every layer, so a window
        shortens what is read and not what is kept."""
        return sum(group.cache_elements_per_token for group in self.attention)


def total(costs: Iterable[Cost]) -> Totals:
    """Sums of ``costs``; attention apart for each window, the widest first."""
    costs = tuple(costs)
    windows: dict[int | None, list[Cost]] = {}
    for cost in costs:
        if cost.cache_elements_per_token:
            windows.setdefault(cost.window, []).append(cost)
    attention = tuple(
        Attention(
            window=window,
            layers=len(group),
            flops_per_token_context=sum(cost.attention_flops_per_token_context for cost in group),
            cache_elements_per_token=sum(cost.cache_elements_per_token for cost in group),
        )
        for window, group in sorted(windows.items(), key=lambda item: -(item[0] or 1 << 62))
    )
    return Totals(
        table_elements=sum(cost.table_elements for cost in costs),
        weight_elements=sum(cost.weight_elements for cost in costs),
        head_elements=sum(cost.head_elements for cost in costs),
        vector_elements=sum(cost.vector_elements for cost in costs),
        flops_per_token=sum(cost.flops_per_token for cost in costs),
        flops_per_output=sum(cost.flops_per_output for cost in costs),
        attention=attention,
    )
