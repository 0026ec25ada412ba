"""What a deployment keeps in memory, in bytes of one device. Numbers may be arrays, one per candidate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...catalog.engines import Activations, EngineKind
from ...catalog.target import Target
from ...graph.storage import FLOAT_BYTES
from ...runtime.formats.program import Limits
from ..units import GIB, MIB
from .cache import Cache, Floats, cache_layout, kept_bytes
from .layout import Ints, Layout
from .shape import Shape, Stored


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device. ``capacity`` is what the deployment may take of it."""

    weights: Floats
    kv: Floats
    activations: Floats
    draft: Floats
    overhead: Floats
    capacity: Floats

    @property
    def total(self) -> Floats:
        return self.weights + self.kv + self.activations + self.draft + self.overhead

    @property
    def free(self) -> Floats:
        """Negative where the deployment does not fit."""
        return self.capacity - self.total


@dataclass(frozen=True, slots=True)
class Held:
    """What a copy keeps: ``sequences`` in flight, of which one may be ``context`` tokens long and the others
    are of the ``typical`` length; steps of ``budget`` tokens; pages to check an answer of ``checked`` tokens
    against an exact cache (our own engine); and beside the model's own a draft of
    ``draft_bytes`` with ``draft_token_bytes`` of cache per token; our own engine keeps ``draft_token_values``
    floats for each token of its steps, and ``draft_output_values`` for each whose logits it computes.

    Sequences that grow beyond what is typical wait for one another; none is refused.
    """

    context: int
    typical: int
    sequences: Ints
    budget: Ints
    checked: int = 0
    draft_bytes: Floats = 0.0
    draft_token_bytes: Floats = 0.0
    draft_token_values: Floats = 0.0
    draft_output_values: Floats = 0.0


def memory(
    shape: Shape, stored: Stored, cache: Cache, layout: Layout, held: Held, target: Target, engine: EngineKind
) -> Memory:
    """The memory of the fullest of the devices that share the model."""
    tensor, stages = np.asarray(layout.tensor), np.asarray(layout.pipeline)
    weights = held_weights(stored, shape, layout)
    if engine.activations is None:
        activations = buffer_bytes(shape, stored, held)
        kv = pool_bytes(shape, cache, held, tensor)
    else:
        activations = activation_bytes(shape, engine.activations, held.budget, tensor)
        longest, others = (
            kept_bytes(shape, cache, tokens, tensor) for tokens in (held.context, held.typical)
        )
        kv = (longest + (np.asarray(held.sequences) - 1) * others) / stages
    draft = draft_bytes(cache, held) / tensor
    if engine.activations is None:
        draft = draft + row_bytes(held.draft_token_values, held.draft_output_values, held)
    overhead = engine.overhead_gib.value * GIB + engine.weight_overhead_fraction.value * weights
    return Memory(
        weights=weights,
        kv=kv,
        activations=activations,
        draft=draft,
        overhead=np.ceil(overhead),
        capacity=_capacity(engine, target.memory_gb * 1e9, weights + draft, activations + overhead),
    )


def held_weights(stored: Stored, shape: Shape, layout: Layout) -> Floats:
    """Bytes of weights on one device: its part of its layers, with the embedding and the head on the outer
    stages.

    Experts that are dealt lie once on all devices of a stage; others once on those of each copy.
    """
    tensor, stages = np.asarray(layout.tensor), np.asarray(layout.pipeline)
    experts = sum(
        group.layers * group.experts * one
        for group, one in zip(shape.totals.mixtures, stored.expert_bytes, strict=True)
    )
    shards = np.where(np.asarray(layout.expert) > 1, layout.stage, tensor)
    layers = (stored.shared_bytes - stored.head_bytes) / tensor + experts / shards
    outer = np.where(
        stages == 1, stored.table_bytes + stored.head_bytes, max(stored.table_bytes, stored.head_bytes)
    )
    held: Floats = np.ceil(layers / stages + outer / tensor)
    return held


def activation_bytes(shape: Shape, rule: Activations, budget: Ints, tensor: Ints) -> Floats:
    """What an engine with ``rule`` keeps for a step of ``budget`` tokens."""
    factors = rule.mixture_factor if shape.experts else rule.factor
    sizes = sorted(factors)
    # The entry of the largest size that is not above the devices that share a layer.
    index = np.searchsorted(sizes, np.asarray(tensor), side="right") - 1
    factor = np.array([factors[size] for size in sizes])[np.maximum(index, 0)]
    taken: Floats = np.maximum(2 * np.asarray(budget) * shape.hidden * factor, rule.least_mib * MIB)
    return taken


def draft_bytes(cache: Cache, held: Held) -> Floats:
    """The draft's weights, and its cache in pages as the model's own."""
    longest, others = (-(-tokens // cache.page_tokens) for tokens in (held.context, held.typical))
    tokens = (longest + (np.asarray(held.sequences) - 1) * others) * cache.page_tokens
    return held.draft_bytes + tokens * held.draft_token_bytes


def buffer_bytes(shape: Shape, stored: Stored, held: Held) -> Floats:
    """In our own engine, a row of every buffer for each token of the largest step and each row of logits."""
    return row_bytes(stored.token_values, shape.output_values, held)


def row_bytes(token_values: Floats, output_values: Floats, held: Held) -> Floats:
    """Rows of buffers that are so many values wide together, for each token of the largest step and each row
    of logits."""
    budget = np.asarray(held.budget)
    outputs = np.minimum(budget, 8 * np.asarray(held.sequences))
    values: Floats = token_values * budget + output_values * outputs
    return FLOAT_BYTES * values


def pool_bytes(shape: Shape, cache: Cache, held: Held, tensor: Ints) -> Floats:
    """Both pools of our own engine and the tables of its calibrated levels; a device holds its own key heads,
    or a copy of one."""
    layout = cache_layout(shape, cache)
    budgets, others = np.unique(held.budget), np.asarray(held.sequences) - 1
    # Few budgets, many candidates: the pages of each budget once.
    budget = np.searchsorted(budgets, held.budget)
    exact, packed = (
        np.array([most(held.context, int(tokens)) for tokens in budgets])[budget]
        + others * most(held.typical)
        for most in (layout.exact_pages, layout.packed_pages)
    )
    kv_heads = shape.heads[0].kv_heads
    share = np.ceil(kv_heads / np.asarray(tensor)) / kv_heads
    check = layout.check_pages(held.checked)
    exact, packed = exact + cache.spare_pages + check[0], packed + check[1]
    pools: Floats = exact * layout.exact_page_bytes + packed * layout.packed_page_bytes
    return (pools + cache.table_bytes) * share


def pool_limits(shape: Shape, cache: Cache, held: Held) -> Limits:
    """The pools of our own engine, and what its steps carry, for one candidate.

    The longest sequence may be inside a prompt chunk of the whole step; the others gain a token at a time.
    """
    layout = cache_layout(shape, cache)
    sequences, budget = int(held.sequences), int(held.budget)
    others = sequences - 1
    longest, typical = layout.exact_pages(held.context, budget), layout.exact_pages(held.typical)
    return Limits(
        max_context=held.context,
        max_sequences=sequences,
        max_batch_tokens=budget,
        exact_pages=longest + others * typical + cache.spare_pages,
        packed_pages=layout.packed_pages(held.context, budget) + others * layout.packed_pages(held.typical),
        checked_tokens=held.checked,
    )


def _capacity(engine: EngineKind, whole: float, resident: Floats, beside: Floats) -> Floats:
    """Bytes that weights (``resident``), cache, and what is ``beside`` them may take of ``whole``."""
    fraction = engine.memory_fraction.value
    if engine.share == "static":
        return np.floor(np.minimum(fraction * whole + beside, whole))
    if engine.share == "cache":
        rest = resident + beside
        return np.floor(np.minimum(rest + fraction * (whole - rest), whole))
    return np.floor(np.full_like(np.asarray(resident, dtype=np.float64), fraction * whole))
