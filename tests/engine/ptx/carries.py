"""Sums and products of numbers longer than a register: each thread has a carry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formulas import high, times, wrapped
from .numbers import Array
from .statements import Statement
from .text import Unknown
from .warps import Execute, Warps

_PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {"lo": times, "hi": high}


def carries(statement: Statement) -> bool:
    """``add.cc``, ``addc``, and the same of ``sub`` and ``mad``."""
    return statement.head in ("addc", "subc", "madc") or "cc" in statement.parts


def add(statement: Statement) -> Execute:
    """What is subtracted carries what it borrows."""
    head, kind = statement.head, statement.kind()
    takes, gives = head.endswith("c"), "cc" in statement.parts
    chosen = statement.modifiers("cc lo hi") - {"cc"}
    product = _PRODUCTS[min(chosen)] if head.startswith("mad") and len(chosen) == 1 else None
    if kind.floats or kind.packed or (product is None) != (len(statement.operands) == 3 and not chosen):
        raise Unknown(statement.line.text)
    target, *sources = statement.operands
    write, reads = target.writer(kind), [each.reader(kind) for each in sources]
    sign = -1 if head.startswith("sub") else 1

    def execute(warps: Warps) -> None:
        *factors, addend = (read(warps) for read in reads)
        first = factors[0] if product is None else product(*factors)
        words = [np.asarray(each).view(kind.words).astype(object) for each in (first, addend)]
        total = words[0] + sign * words[1] + (sign * warps.carry.astype(object) if takes else 0)
        result = wrapped(total, kind.number)
        if gives:
            over = np.broadcast_to(total != result.view(kind.words), (warps.width,)).astype(np.int64)
            warps.carry = np.where(warps.mask.flags, over, warps.carry)
        write(warps, result)

    return execute
