"""A graph in a few numbers: summed once, so that every candidate is a handful of products."""

from __future__ import annotations

from dataclasses import dataclass

from ...catalog.formats import WeightScheme
from ...graph.cost import Totals
from ...graph.graph import Graph
from ...graph.latent import LatentAttend
from ...graph.storage import (
    head_bytes,
    native_scheme,
    one_expert_bytes,
    output_buffers,
    shared_bytes,
    table_bytes,
    token_buffers,
    weight_bytes,
)
from ...runtime.formats.weights import BF16, WeightFormat


@dataclass(frozen=True, slots=True)
class Heads:
    """What the caches of the layers of one ``Attention`` of the totals share: ``kv_heads`` heads (1 for a
    latent cache, which devices do not divide) with vectors of ``width`` numbers; of a latent cache ``rotary``
    of them are a key that was turned. ``layers``: which of the layers with a cache they are."""

    kv_heads: int
    width: int
    layers: tuple[int, ...] = ()
    rotary: int | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """``heads`` has an entry for each of ``totals.attention``; ``query_heads`` is what the heads of all
    layers divide by. ``token_values`` and ``output_values`` are the float values of all buffers for each
    token of a step and for each row of logits."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    active_parameters: int
    max_context: int
    totals: Totals
    heads: tuple[Heads, ...]
    query_heads: int
    token_values: int
    output_values: int

    @property
    def experts(self) -> int:
        """Experts that devices can be dealt: those that every mixture divides into; 0 without any."""
        counts = [group.experts for group in self.totals.mixtures]
        return min(counts, default=0)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a model takes in one weight format, in bytes: all of it; the embedding, 0 where a tied head is it;
    the head; what every step reads whatever its batch, the head among it; one expert of each mixture of the
    totals. ``token_values`` are as the shape's, with those that the format adds; 0 in other engines than
    ours, which have rules of their own."""

    scheme: WeightScheme
    weight_bytes: int
    table_bytes: float
    head_bytes: float
    shared_bytes: float
    expert_bytes: tuple[float, ...]
    token_values: int


def shape(graph: Graph) -> Shape:
    """The sums of ``graph``."""
    totals = graph.totals
    attends = graph.attention
    heads = []
    for group in totals.attention:
        here = {
            layer: one
            for layer, one in enumerate(attends)
            if (one.cost.window, one.cost.selected) == (group.window, group.selected)
        }
        latent = [one for one in here.values() if isinstance(one, LatentAttend)]
        if latent:
            widest = max(latent, key=lambda one: one.key_dim)
            heads.append(Heads(1, widest.key_dim, tuple(here), widest.rotary_dim))
        else:
            kv_heads = min(one.kv_heads for one in here.values() if not isinstance(one, LatentAttend))
            width = group.cache_elements_per_token // (2 * group.layers * kv_heads)
            heads.append(Heads(kv_heads, width, tuple(here)))
    query_heads = [one.heads for one in attends]
    return Shape(
        layers=graph.layers,
        hidden=graph.hidden,
        vocabulary=graph.vocabulary,
        parameters=graph.parameters,
        active_parameters=graph.active_parameters,
        max_context=graph.max_context,
        totals=totals,
        heads=tuple(heads),
        query_heads=min(query_heads, default=1),
        token_values=sum(token_buffers(graph, BF16).values()),
        output_values=sum(output_buffers(graph).values()),
    )


def stored(graph: Graph, scheme: WeightScheme) -> Stored:
    """``graph`` as an engine other than ours stores it."""
    return _stored(graph, scheme, 0)


def native_stored(graph: Graph, weights: WeightFormat) -> Stored:
    """``graph`` as our own engine stores it; the bytes are exact."""
    return _stored(graph, native_scheme(weights), sum(token_buffers(graph, weights).values()))


def _stored(graph: Graph, scheme: WeightScheme, token_values: int) -> Stored:
    totals = graph.totals
    return Stored(
        scheme=scheme,
        weight_bytes=weight_bytes(graph, scheme),
        table_bytes=table_bytes(graph, scheme),
        head_bytes=head_bytes(graph, scheme),
        shared_bytes=shared_bytes(totals, scheme),
        expert_bytes=tuple(one_expert_bytes(group, scheme) for group in totals.mixtures),
        token_values=token_values,
    )
