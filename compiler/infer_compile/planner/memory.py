"""What a deployment keeps in memory, in bytes of one device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..catalog.coefficients import EngineCoefficients
from ..catalog.target import Target
from ..graph.storage import FLOAT_BYTES
from ..runtime.formats.kv import LEVELS, CacheLayout
from ..runtime.formats.program import Limits
from .shape import Stored
from .units import GIB


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device. ``capacity`` is what the deployment may take of it."""

    weights: int
    kv: int
    activations: int
    overhead: int
    capacity: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.overhead

    @property
    def free(self) -> int:
        """Negative where the deployment does not fit."""
        return self.capacity - self.total


def memory(
    stored: Stored,
    layout: CacheLayout,
    limits: Limits,
    target: Target,
    coefficients: EngineCoefficients,
    tensor: int = 1,
) -> Memory:
    """The memory of each of ``tensor`` devices that share the model.

    Weights divide evenly; a device holds the cache of its own key heads, or of one where there are more
    devices than key heads; every device has all activations.
    """
    held = -(-stored.weight_bytes // tensor)
    return Memory(
        weights=held,
        kv=cache_bytes(per_device(layout, tensor), limits),
        activations=activation_bytes(stored, limits),
        overhead=overhead_bytes(held, coefficients),
        capacity=capacity_bytes(target, coefficients),
    )


def per_device(layout: CacheLayout, tensor: int) -> CacheLayout:
    """``layout`` with the key heads that one of ``tensor`` devices holds."""
    return layout.model_copy(update={"kv_heads": -(-layout.kv_heads // tensor)})


def cache_bytes(layout: CacheLayout, limits: Limits) -> int:
    """Both pools."""
    return limits.exact_pages * layout.exact_page_bytes + limits.packed_pages * layout.packed_page_bytes


def activation_bytes(stored: Stored, limits: Limits) -> int:
    """One row of every buffer for each token of the largest step, and for each row of logits."""
    values = stored.token_values * limits.max_batch_tokens + stored.output_values * limits.max_outputs
    return FLOAT_BYTES * values


def overhead_bytes(held: int, coefficients: EngineCoefficients) -> int:
    """What is neither weights nor cache nor activations; ``held`` bytes of weights bring their share."""
    fixed = coefficients.overhead_gib.value * GIB
    return math.ceil(fixed + coefficients.weight_overhead_fraction.value * held)


def capacity_bytes(target: Target, coefficients: EngineCoefficients) -> int:
    return math.floor(target.memory_gb * 1e9 * coefficients.memory_fraction.value)


def pool_limits(layout: CacheLayout, context: int, sequences: int, batch_tokens: int) -> Limits:
    """Pools for ``sequences`` sequences of ``context`` tokens in steps of ``batch_tokens`` new tokens.

    One sequence may be inside a prompt chunk of the whole step; the others gain a token at a time.
    """
    decoding = layout.exact_pages(context)
    prefilling = layout.exact_pages(context, batch_tokens)
    return Limits(
        max_context=context,
        max_sequences=sequences,
        max_batch_tokens=batch_tokens,
        exact_pages=prefilling + (sequences - 1) * decoding,
        packed_pages=sequences * layout.packed_pages(context),
    )


def visible(layout: CacheLayout, context: int, window: int | None = None) -> tuple[int, int]:
    """Exact and packed tokens that the last of ``context`` tokens sees, itself included.

    With a ``window`` it sees that many of the last ones alone.
    """
    first = max(0, context - window) if window else 0
    if not layout.compressed:
        return context - first, 0
    own_page = (context - 1) // layout.page_tokens
    sinks = min(context, layout.sink_pages * layout.page_tokens)
    recent = max(sinks, (own_page - layout.recent_pages) * layout.page_tokens)
    exact = max(0, sinks - first) + context - max(recent, first)
    return exact, context - first - exact


def read_bytes(
    layout: CacheLayout, context: int, window: int | None = None, layers: int | None = None
) -> tuple[int, int]:
    """Bytes of exact and of packed cache that the last of ``context`` tokens reads in ``layers`` layers."""
    exact, packed = visible(layout, context, window)
    count = layout.layers if layers is None else layers

    def token_bytes(level: str) -> int:
        return count * LEVELS[level].token_bytes(layout.head_dim, layout.kv_heads)

    return exact * token_bytes("bf16"), packed * token_bytes(layout.level)
