"""What operations cost, as coefficients: a planner multiplies them with arrays of candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cost:
    """Coefficients of one operation.

    Bytes and FLOPs are affine in batch, tokens, context and format:

    - weights: ``table_elements`` are stored and a step reads one row per token; ``weight_elements`` and
      ``head_elements`` are stored and read whole by every step; what an element of each takes is in
      ``storage.py``. ``vector_elements`` (with the small matrices that steer: see ``control.py``) are always
      bf16, ``single_elements`` float32. ``weight_rows`` are the outputs of the matrices of
      ``weight_elements``; of both, ``unfolding_elements`` and ``unfolding_rows`` belong to the matrices that
      latent attention applies itself. Of ``experts``, each of ``expert_elements`` and
      ``expert_vector_elements``, all are stored and a step reads those that its tokens hit:
      ``experts_per_token`` for one token, ``expected_experts`` for more; ``expert_rows`` are the outputs of
      an expert's matrices.
    - work: ``flops_per_token`` for each new token, ``flops_per_output`` for each token whose logits are
      asked for, ``attention_flops_per_token_context`` for each pair of a new token and a key that it sees.
      Matrix products alone are counted, a multiplication and an addition as two. Over a prompt, keys and
      values can be unfolded from a latent cache: ``prompt_flops_per_token_context`` (None: the same).
    - cache: ``cache_elements_per_token`` numbers are written per token, and read by each sequence for every
      key that it sees: ``min(context, window, selected)`` of them. What lies before a ``window`` is never
      seen again; with ``selected`` any of the context may be, as an index decides, whose own
      ``index_elements_per_token`` are read for the whole context. ``latent_elements_per_token`` is the part
      of the cache that belongs to no head: devices that share the heads each hold all of it.
    - state: ``state_bytes`` for each sequence, whatever its length, read and written by every step.
    """

    table_elements: int = 0
    weight_elements: int = 0
    head_elements: int = 0
    vector_elements: int = 0
    single_elements: int = 0
    flops_per_token: int = 0
    flops_per_output: int = 0
    attention_flops_per_token_context: int = 0
    cache_elements_per_token: int = 0
    window: int | None = None
    selected: int | None = None
    prompt_flops_per_token_context: int | None = None
    latent_elements_per_token: int = 0
    index_elements_per_token: int = 0
    index_flops_per_token_context: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_elements: int = 0
    expert_vector_elements: int = 0
    expert_rows: int = 0
    state_bytes: int = 0
    weight_rows: int = 0
    unfolding_elements: int = 0
    unfolding_rows: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of all layers that share a ``window`` (None sees everything) and how many keys are
    ``selected`` (None: all that the window leaves)."""

    window: int | None
    layers: int
    flops_per_token_context: int
    cache_elements_per_token: int
    selected: int | None = None
    prompt_flops_per_token_context: int | None = None
    latent_elements_per_token: int = 0


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of all ``layers`` that have equally many of one size; elements are those of one expert."""

    layers: int
    experts: int
    experts_per_token: int
    expert_elements: int
    expert_vector_elements: int
    expert_rows: int = 0


Tokens = TypeVar("Tokens", float, NDArray[np.float64])


def expected_experts(experts: int, experts_per_token: int, tokens: Tokens) -> Tokens:
    """Distinct experts of a layer that ``tokens`` tokens (a number, or an array of them) hit, if each chooses
    evenly and independently. Real routing is a little more uneven and hits fewer."""
    missed: Tokens = (1 - experts_per_token / experts) ** tokens
    return experts * (1 - missed)


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
    mixtures: tuple[Mixture, ...] = ()
    index_elements_per_token: int = 0
    index_flops_per_token_context: int = 0
    state_bytes: int = 0
    weight_rows: int = 0
    single_elements: int = 0
    unfolding_elements: int = 0
    unfolding_rows: int = 0

    @property
    def cache_elements_per_token(self) -> int:
        """Numbers that one token leaves in the cache, over all layers. What windows give back again is not
        counted here."""
        return sum(group.cache_elements_per_token for group in self.attention)

    @property
    def latent_elements_per_token(self) -> int:
        """The part of them that belongs to no head."""
        return sum(group.latent_elements_per_token for group in self.attention)

    @property
    def expert_elements(self) -> int:
        """Elements of the matrices of all experts."""
        return sum(group.layers * group.experts * group.expert_elements for group in self.mixtures)

    @property
    def expert_flops_per_token(self) -> int:
        """Operations of the experts that one token is sent to, part of ``flops_per_token``."""
        return sum(
            group.layers * group.experts_per_token * 2 * group.expert_elements for group in self.mixtures
        )

    @property
    def expert_vector_elements(self) -> int:
        """Elements of the biases of all experts."""
        return sum(group.layers * group.experts * group.expert_vector_elements for group in self.mixtures)


def total(costs: Iterable[Cost]) -> Totals:
    """Sums of ``costs``; attention apart for each window, the widest first, and experts for each size."""
    costs = tuple(costs)
    return Totals(
        table_elements=sum(cost.table_elements for cost in costs),
        weight_elements=sum(cost.weight_elements for cost in costs),
        head_elements=sum(cost.head_elements for cost in costs),
        vector_elements=sum(cost.vector_elements for cost in costs),
        flops_per_token=sum(cost.flops_per_token for cost in costs),
        flops_per_output=sum(cost.flops_per_output for cost in costs),
        attention=_attention(costs),
        mixtures=_mixtures(costs),
        index_elements_per_token=sum(cost.index_elements_per_token for cost in costs),
        index_flops_per_token_context=sum(cost.index_flops_per_token_context for cost in costs),
        state_bytes=sum(cost.state_bytes for cost in costs),
        weight_rows=sum(cost.weight_rows for cost in costs),
        single_elements=sum(cost.single_elements for cost in costs),
        unfolding_elements=sum(cost.unfolding_elements for cost in costs),
        unfolding_rows=sum(cost.unfolding_rows for cost in costs),
    )


def _attention(costs: tuple[Cost, ...]) -> tuple[Attention, ...]:
    groups: dict[tuple[int | None, int | None], list[Cost]] = {}
    for cost in costs:
        if cost.cache_elements_per_token:
            groups.setdefault((cost.window, cost.selected), []).append(cost)
    widest_first = sorted(groups.items(), key=lambda item: [-(size or 1 << 62) for size in item[0]])
    return tuple(
        Attention(
            window=window,
            layers=len(group),
            flops_per_token_context=sum(cost.attention_flops_per_token_context for cost in group),
            cache_elements_per_token=sum(cost.cache_elements_per_token for cost in group),
            selected=selected,
            prompt_flops_per_token_context=_prompt_flops(group),
            latent_elements_per_token=sum(cost.latent_elements_per_token for cost in group),
        )
        for (window, selected), group in widest_first
    )


def _prompt_flops(group: list[Cost]) -> int | None:
    if all(cost.prompt_flops_per_token_context is None for cost in group):
        return None
    return sum(
        cost.attention_flops_per_token_context
        if cost.prompt_flops_per_token_context is None
        else cost.prompt_flops_per_token_context
        for cost in group
    )


def _mixtures(costs: tuple[Cost, ...]) -> tuple[Mixture, ...]:
    groups: dict[tuple[int, int, int, int, int], int] = {}
    for cost in costs:
        if cost.experts:
            one = (cost.expert_elements, cost.expert_vector_elements, cost.expert_rows)
            size = (cost.experts, cost.experts_per_token, *one)
            groups[size] = groups.get(size, 0) + 1
    return tuple(Mixture(layers, *size) for size, layers in groups.items())
