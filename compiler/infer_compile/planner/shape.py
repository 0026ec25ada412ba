"""A graph in a few numbers: summed once, so that every candidate is a handful of products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph.cost import Totals
from ..graph.graph import Graph
from ..graph.storage import misfits, output_buffers, streamed_bytes, token_buffers, weight_bytes
from ..runtime.formats.weights import GROUPS, NAMES, WeightFormat, weight_format


@dataclass(frozen=True, slots=True)
class Stored:
    """What a model takes in one weight format: bytes of all weights, bytes that every step reads, and values
    of all buffers for each token and for each row of logits."""

    weight_bytes: int
    streamed_bytes: int
    token_values: int
    output_values: int


@dataclass(frozen=True, slots=True)
class Shape:
    """``stored`` holds the formats whose groups divide every matrix."""

    layers: int
    hidden: int
    totals: Totals
    stored: Mapping[WeightFormat, Stored]


def shape(graph: Graph) -> Shape:
    """The sums of ``graph``, in every format that fits it."""
    totals = graph.totals
    outputs = sum(output_buffers(graph).values())
    forms = [weight_format(name, group) for name in NAMES for group in GROUPS]
    return Shape(
        layers=graph.layers,
        hidden=graph.hidden,
        totals=totals,
        stored={
            form: Stored(
                weight_bytes=weight_bytes(graph, form),
                streamed_bytes=streamed_bytes(totals, form),
                token_values=sum(token_buffers(graph, form).values()),
                output_values=outputs,
            )
            for form in dict.fromkeys(forms)
            if not misfits(graph, form)
        },
    )
