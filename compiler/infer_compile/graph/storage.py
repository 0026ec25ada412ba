"""What is stored in which format: one rule, for the planner who counts and for the lowering that obeys.

A format belongs to the matrices of the layers. The embedding and all vectors are bf16. The head is bf16 with
bf16 weights and int8 with rounded ones (its errors reach the logits unaveraged); a tied head that is rounded
is a tensor of its own, one that is not shares the embedding's table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

from ..runtime.formats.weights import BF16, WeightFormat, weight_format
from .cost import Totals
from .graph import Graph
from .operations import Attend, Embed, Gate, Linear, Norm, Operation, Select

QUANTIZED = "quantized"
"""The buffer of activations rounded for the next product."""

Role = Literal["table", "matrix", "head", "vector"]

FLOAT_BYTES = 4
"""Every value between operations is float32."""


def stored_format(role: Role, weights: WeightFormat) -> WeightFormat:
    """The format of a tensor when the layers' matrices are in ``weights``."""
    if role == "matrix":
        return weights
    if role == "head" and weights.group:
        return weight_format("int8", weights.group)
    return BF16


def stores_head(tied: bool, weights: WeightFormat) -> bool:
    """Whether the head is a tensor of its own."""
    return not tied or stored_format("head", weights) != BF16


def weight_bytes(graph: Graph, weights: WeightFormat) -> int:
    """Bytes of all weights of the engine."""
    totals = graph.totals
    head = totals.head_elements if stores_head(graph.tied, weights) else 0
    return (
        _bytes(totals.table_elements, stored_format("table", weights))
        + _bytes(totals.weight_elements, stored_format("matrix", weights))
        + _bytes(head, stored_format("head", weights))
        + _bytes(totals.vector_elements, stored_format("vector", weights))
    )


def streamed_bytes(totals: Totals, weights: WeightFormat) -> int:
    """Bytes of weights that every step reads: all but the embedding, of which it reads a row per token."""
    return (
        _bytes(totals.weight_elements, stored_format("matrix", weights))
        + _bytes(totals.head_elements, stored_format("head", weights))
        + _bytes(totals.vector_elements, stored_format("vector", weights))
    )


def _bytes(elements: int, form: WeightFormat) -> int:
    # Groups lie along rows and divide them (``misfits``), so bytes depend on the number of elements alone.
    return form.bytes(1, elements)


def misfits(graph: Graph, weights: WeightFormat) -> tuple[Linear, ...]:
    """The matrices whose inputs do not divide into whole groups; with any, ``weights`` is not possible."""
    return tuple(
        matrix for matrix in graph.matrices if not stored_format(matrix.role, weights).fits(matrix.cols)
    )


def token_buffers(graph: Graph, weights: WeightFormat) -> dict[str, int]:
    """Float values held for each token of a step: name to elements, as wide as the widest written there."""
    written = _widths(itertools.takewhile(_before_select, graph.operations))
    if weights.activation != "none":
        written[QUANTIZED] = max(matrix.cols for matrix in graph.matrices)
    return written


def output_buffers(graph: Graph) -> dict[str, int]:
    """Float values held for each token whose logits are asked for: name to elements."""
    return _widths(itertools.dropwhile(_before_select, graph.operations))


def _before_select(operation: Operation) -> bool:
    return not isinstance(operation, Select)


def _widths(operations: Iterable[Operation]) -> dict[str, int]:
    widths: dict[str, int] = {}
    for operation in operations:
        if isinstance(operation, Embed | Norm | Linear | Attend | Gate | Select):
            widths[operation.output] = max(operation.width, widths.get(operation.output, 0))
    return widths
