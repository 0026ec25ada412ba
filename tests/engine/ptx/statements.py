"""An instruction taken apart, for those who build what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .numbers import KINDS, Array, Kind, flush
from .operands import Operand
from .text import Line, Unknown
from .warps import Execute


@dataclass(frozen=True, slots=True)
class Statement:
    """A line with its operands resolved."""

    line: Line
    operands: tuple[Operand, ...]

    @property
    def head(self) -> str:
        return self.line.opcode.split(".")[0]

    @property
    def parts(self) -> list[str]:
        """What stands behind the head."""
        return self.line.opcode.split(".")[1:]

    def kind(self, place: int = -1) -> Kind:
        """A type among the parts."""
        if not self.parts or self.parts[place] not in KINDS:
            raise Unknown(self.line.text)
        return KINDS[self.parts[place]]

    def modifiers(self, allowed: str, types: int = 1) -> frozenset[str]:
        """The parts before the types at the end, all of which have to be ``allowed``."""
        found = frozenset(self.parts[: len(self.parts) - types])
        if not found <= set(allowed.split()):
            raise Unknown(self.line.text)
        return found

    def operand(self, count: int) -> tuple[Operand, ...]:
        if len(self.operands) != count:
            raise Unknown(self.line.text)
        return self.operands


def apply(
    formula: Callable[..., Array],
    result: Kind,
    target: Operand,
    sources: list[tuple[Operand, Kind]],
    flushed: bool = False,
) -> Execute:
    write, reads = target.writer(result), [operand.reader(kind) for operand, kind in sources]
    if flushed:
        return lambda warps: write(warps, flush(formula(*(flush(read(warps)) for read in reads))))
    match reads:
        case [one]:
            return lambda warps: write(warps, formula(one(warps)))
        case [one, two]:
            return lambda warps: write(warps, formula(one(warps), two(warps)))
    return lambda warps: write(warps, formula(*(read(warps) for read in reads)))
