"""What is stored in which format: one rule, for the planner who counts and for the lowering that obeys.

A format belongs to the matrices of the layers. The embedding and all vectors are bf16. The head is bf16 with
bf16 weights and int8 with rounded ones (its errors reach the logits unaveraged); a tied head that is rounded
is a tensor of its own, one that is not shares the embedding's table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.weights import BF16, WeightFormat, weight_format
from .cost import Totals, expected_experts
from .experts import Experts
from .graph import Graph
from .latent import LatentAttend
from .operations import Attend, Embed, Gate, LayerNorm, Linear, Norm, Operation, Select
from .state import StateMix

QUANTIZED = "quantized"
"""The buffer of activations rounded for the next product."""

Written = Embed | Norm | LayerNorm | Linear | Attend | LatentAttend | StateMix | Experts | Gate | Select
"""The operations that write values of their own."""

Role = Literal["table", "matrix", "head", "vector"]

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
        + _bytes(totals.weight_elements + totals.expert_elements, stored_format("matrix", weights))
        + _bytes(head, stored_format("head", weights))
        + _bytes(totals.vector_elements + totals.expert_vector_elements, stored_format("vector", weights))
    )


def streamed_bytes(totals: Totals, weights: WeightFormat) -> int:
    """Bytes of weights that every step reads: all but the embedding, of which it reads a row per token.

    Raises InferCompileError: IC116 for a mixture of experts, where it depends on the batch; there it is
    ``shared_bytes`` and ``expert_bytes``.
    """
    if totals.mixtures:
        raise InferCompileError(
            Problem(
                "IC116",
                "what a step reads of a mixture of experts depends on its batch",
                because="each token passes through a few experts, and this reckoning has one figure for all",
                fix="choose a model without experts",
            )
        )
    return shared_bytes(totals, weights)


def shared_bytes(totals: Totals, weights: WeightFormat) -> int:
    """Bytes of weights that every step reads whatever its batch: all but the embedding and the experts."""
    return (
        _bytes(totals.weight_elements, stored_format("matrix", weights))
        + _bytes(totals.head_elements, stored_format("head", weights))
        + _bytes(totals.vector_elements, stored_format("vector", weights))
    )


def expert_bytes(totals: Totals, weights: WeightFormat, tokens: float) -> float:
    """Bytes of the experts that a step of ``tokens`` tokens is expected to read (an array does too)."""
    return sum(
        group.layers
        * expected_experts(group.experts, group.experts_per_token, tokens)
        * (
            _bytes(group.expert_elements, stored_format("matrix", weights))
            + _bytes(group.expert_vector_elements, stored_format("vector", weights))
        )
        for group in totals.mixtures
    )


def _bytes(elements: int, form: WeightFormat) -> int:
    # Groups lie along rows and divide them (``misfits``), so bytes depend on the number of elements alone.
    return form.bytes(1, elements)


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
        if isinstance(operation, Written):
            widths[operation.output] = max(operation.width, widths.get(operation.output, 0))
    return widths
