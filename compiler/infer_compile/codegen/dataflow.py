"""Who reads and who writes the buffers of a Program."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.formats.program import (
    Activate,
    Attend,
    AttendLatent,
    Embed,
    ExpertLinear,
    Feed,
    Gate,
    HeadNorm,
    Linear,
    Norm,
    Operation,
    Quantize,
    Rotary,
)

Product = Linear | ExpertLinear | Quantize
"""A product of matrices, or what rounds for one."""


def product_of(buffer: str, operations: Sequence[Operation]) -> Linear | ExpertLinear | Quantize:
    """The first product of ``operations`` that reads what ``buffer`` holds before them, or what rounds it for
    that."""
    return next(op for op in readers_of(buffer, operations) if isinstance(op, Product))


def readers_of(buffer: str, operations: Sequence[Operation]) -> list[Operation]:
    """Of ``operations`` those that read what ``buffer`` holds before them."""
    found: list[Operation] = []
    for operation in operations:
        adds = isinstance(operation, Activate) or (isinstance(operation, Linear) and operation.add)
        if buffer in _sources(operation) or (adds and _output(operation) == buffer):
            found.append(operation)
        if _output(operation) == buffer:
            break
    return found


def rounded_before(buffer: str, operations: Sequence[Operation]) -> bool:
    """Whether what ``buffer`` holds behind ``operations`` was written rounded for the product that reads
    it."""
    last = next((op for op in reversed(operations) if _output(op) == buffer), None)
    return isinstance(last, Norm | Gate | Attend | AttendLatent | Quantize)


def _sources(operation: Operation) -> tuple[str, ...]:
    match operation:
        case HeadNorm() | Rotary():
            return (operation.buffer,)
        case AttendLatent():
            return operation.query, operation.latent
        case Embed() | Feed():
            return ()
    return (operation.input,)


def _output(operation: Operation) -> str:
    return operation.buffer if isinstance(operation, HeadNorm | Rotary) else operation.output
