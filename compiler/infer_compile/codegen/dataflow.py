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


def rounded_before(reader: Linear | Quantize, operations: Sequence[Operation]) -> bool:
    """Whether what ``reader`` takes behind ``operations`` was written rounded for it, and nothing else over
    that."""
    for operation in reversed(operations):
        if _output(operation) == reader.input:
            return isinstance(operation, Norm | Gate | Attend | AttendLatent | Quantize)
        if isinstance(reader, Quantize) and _rounds_over(operation, reader.input):
            return False
    return False


def read_as_it_is(buffer: str, operations: Sequence[Operation]) -> bool:
    """Whether one of ``operations`` reads what ``buffer`` holds before them, and not what was written of it
    rounded for a product; nobody reading it counts too."""
    rounded, readers = True, readers_of(buffer, operations)
    for operation in operations:
        if any(operation is reader for reader in readers):
            if not isinstance(operation, Product) or (isinstance(operation, Quantize) and not rounded):
                return True
        elif _rounds_over(operation, buffer):
            rounded = False
    return not readers


def _rounds_over(operation: Operation, buffer: str) -> bool:
    """All numbers that are rounded to bytes go to one place."""
    return isinstance(operation, Quantize) and operation.input != buffer


def _sources(operation: Operation) -> tuple[str, ...]:
    match operation:
        case HeadNorm() | Rotary():
            return (operation.buffer,)
        case AttendLatent():
            return operation.query, operation.latent
        case Gate() if operation.portion is not None:
            return operation.input, operation.portion
        case Embed() | Feed():
            return ()
    return (operation.input,)


def _output(operation: Operation) -> str:
    return operation.buffer if isinstance(operation, HeadNorm | Rotary) else operation.output
