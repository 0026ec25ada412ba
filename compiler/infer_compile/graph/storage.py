"""What is stored in which format: one rule, for the planner who counts and for the lowering that obeys.

Of our own engine, a format belongs to the matrices of the layers. The embedding and all vectors are bf16, and
so is the matrix that unfolds latent vectors, which kernels multiply head by head. The head is bf16 with bf16
and fp8 weights and int8 with integers (its errors reach the logits unaveraged); a tied head that is rounded
is a tensor of its own, one that is not shares the embedding's table. What other engines store is in
``catalog/formats.yaml``; bytes are counted by one rule for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..catalog.formats import Bits, WeightScheme
from ..runtime.formats.weights import BF16, F32, WeightFormat, weight_format
from .cost import Mixture, Totals, expected_experts
from .experts import Experts, Route, Score
from .features import Activate, Feed, Place
from .graph import Graph
from .latent import LatentAttend
from .operations import Attend, Embed, Gate, LayerNorm, Linear, Norm, Operation, Select
from .state import StateMix

QUANTIZED = "quantized"
"""The buffer of activations rounded for the next product."""

Written = (
    Embed
    | Feed
    | Place
    | Norm
    | LayerNorm
    | Linear
    | Attend
    | LatentAttend
    | StateMix
    | Score
    | Route
    | Experts
    | Gate
    | Activate
    | Select
)
"""The operations that write values of their own."""

Role = Literal["table", "matrix", "unfolding", "head", "vector", "single"]

FLOAT_BYTES = 4
"""Every value between operations is float32."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A matrix (or the experts' matrices of a layer) whose ``cols`` inputs are not whole groups."""

    name: str
    cols: int


def stored_format(role: Role, weights: WeightFormat) -> WeightFormat:
    """The format of a tensor when the layers' matrices are in ``weights``."""
    if role == "matrix":
        return weights
    if role == "head" and weights.group:
        return weight_format("int8", weights.group)
    return F32 if role == "single" else BF16


def native_scheme(weights: WeightFormat) -> WeightScheme:
    """What our own engine stores when the layers' matrices are in ``weights``."""
    head = stored_format("head", weights)
    matrix = stored_format("matrix", weights).bits_per_weight
    return WeightScheme(
        name=weights.name,
        bits=Bits(
            table=stored_format("table", weights).bits_per_weight,
            matrix=matrix,
            expert=matrix,
            head=head.bits_per_weight,
            row=stored_format("matrix", weights).bits_per_row,
            unfolding=stored_format("unfolding", weights).bits_per_weight,
        ),
        products="bf16" if weights.activation == "none" else weights.activation,
        group=weights.group,
        own_head=head != BF16,
        source="runtime/formats/weights.py",
    )


def stores_head(tied: bool, weights: WeightFormat) -> bool:
    """Whether the head of our own engine is a tensor of its own."""
    return not tied or native_scheme(weights).own_head


def weight_bytes(graph: Graph, scheme: WeightScheme) -> int:
    """Bytes of all weights of the engine."""
    totals = graph.totals
    every = sum(group.layers * group.experts * one_expert_bytes(group, scheme) for group in totals.mixtures)
    return round(table_bytes(graph, scheme) + shared_bytes(totals, scheme) + every)


def table_bytes(graph: Graph, scheme: WeightScheme) -> float:
    """Bytes of the embedding; 0 where a tied head is it."""
    shared = graph.tied and not scheme.own_head
    return 0.0 if shared else _bytes(graph.totals.table_elements, scheme.bits.table)


def head_bytes(graph: Graph, scheme: WeightScheme) -> float:
    """Bytes of the head."""
    return _bytes(graph.totals.head_elements, scheme.bits.head)


def shared_bytes(totals: Totals, scheme: WeightScheme) -> float:
    """Bytes of weights that every step reads whatever its batch: all but the embedding and the experts."""
    bits, matrices, rows = scheme.bits, totals.weight_elements, totals.weight_rows
    matrix = 16.0 if scheme.experts_only and totals.mixtures else bits.matrix
    apart = 0.0
    if bits.unfolding is not None:
        matrices, rows = matrices - totals.unfolding_elements, rows - totals.unfolding_rows
        apart = _bytes(totals.unfolding_elements, bits.unfolding)
    return (
        apart
        + _bytes(matrices, matrix)
        + _bytes(rows, bits.row)
        + _bytes(totals.head_elements, scheme.bits.head)
        + _bytes(totals.vector_elements, BF16.bits)
        + _bytes(totals.single_elements, F32.bits)
    )


def one_expert_bytes(group: Mixture, scheme: WeightScheme) -> float:
    """Bytes of one expert of one layer."""
    return (
        _bytes(group.expert_elements, scheme.bits.expert)
        + _bytes(group.expert_rows, scheme.bits.row)
        + _bytes(group.expert_vector_elements, BF16.bits)
    )


def expert_bytes(totals: Totals, scheme: WeightScheme, tokens: float) -> float:
    """Bytes of the experts that a step of ``tokens`` tokens is expected to read (an array does too)."""
    return sum(
        group.layers
        * expected_experts(group.experts, group.experts_per_token, tokens)
        * one_expert_bytes(group, scheme)
        for group in totals.mixtures
    )


def _bytes(elements: int, bits: float) -> float:
    # Groups lie along rows and divide them (``misfits``), so bytes depend on the number of elements alone;
    # bits with the scales of a group are dyadic, so that of our own formats none is lost to rounding.
    return elements * bits / 8


def misfits(graph: Graph, weights: WeightFormat) -> tuple[Misfit, ...]:
    """The matrices whose inputs do not divide into whole groups; with any, ``weights`` is not possible."""
    inputs = [(matrix.name, matrix.cols, matrix.role) for matrix in graph.matrices]
    for experts in graph.experts:
        inputs += [(experts.name, cols, "matrix") for cols in (experts.inputs, experts.inner)]
    return tuple(
        Misfit(name, cols) for name, cols, role in inputs if not stored_format(role, weights).fits(cols)
    )


def token_buffers(graph: Graph, weights: WeightFormat) -> dict[str, int]:
    """Float values held for each token of a step: name to elements, as wide as the widest written there."""
    written = _widths(itertools.takewhile(_before_select, graph.operations))
    if weights.activation != "none":
        written[QUANTIZED] = max(
            *(matrix.cols for matrix in graph.matrices),
            *(width for experts in graph.experts for width in (experts.inputs, experts.gated_width)),
        )
    return written


def output_buffers(graph: Graph) -> dict[str, int]:
    """Float values held for each token whose logits are asked for: name to elements."""
    return _widths(itertools.dropwhile(_before_select, graph.operations))


def _before_select(operation: Operation) -> bool:
    return not isinstance(operation, Select)


def _widths(operations: Iterable[Operation]) -> dict[str, int]:
    widths: dict[str, int] = {}
    for operation in operations:
        # Nobody writes what is unfolded: latent attention does not need it.
        if isinstance(operation, Linear) and operation.role == "unfolding":
            continue
        if isinstance(operation, Written):
            widths[operation.output] = max(operation.width, widths.get(operation.output, 0))
        if isinstance(operation, Experts):
            widths[operation.gated] = max(operation.gated_width, widths.get(operation.gated, 0))
    return widths
