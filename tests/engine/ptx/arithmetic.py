"""Instructions that make numbers of numbers, each thread for itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import formulas
from .numbers import KINDS, ROUNDED, Array, Kind, convert, flush
from .operands import Number, Operand, Pair, Vector
from .statements import Statement, apply
from .text import Unknown
from .warps import Execute, Warps

_WORD, _PREDICATE, _COUNT = KINDS["b32"], KINDS["pred"], KINDS["u32"]


def formula(statement: Statement) -> Execute:
    kind, parts = statement.kind(), statement.parts[:-1]
    chosen = ".".join(part for part in parts if part in formulas.CHOOSING)
    if chosen == "rn" and (statement.head, chosen) not in formulas.FORMULAS:
        chosen = ""
    types, formula = formulas.FORMULAS.get((statement.head, chosen), ("", None))
    others = {part for part in parts if part not in formulas.CHOOSING}
    if formula is None or statement.parts[-1] not in types.split() or not others <= {"ftz"}:
        raise Unknown(statement.line.text)
    result = _COUNT if statement.head in ("popc", "clz") else kind
    target, *sources = statement.operands
    if len(sources) != formula_width(formula):
        raise Unknown(statement.line.text)
    return apply(formula, result, target, [(each, kind) for each in sources], "ftz" in others)


def formula_width(formula: Callable[..., Array]) -> int:
    """How many numbers a formula takes."""
    if isinstance(formula, np.ufunc):
        return int(formula.nin)
    return formula.__code__.co_argcount


def _same(values: Array) -> Array:
    return values


def move(statement: Statement) -> Execute:
    statement.modifiers("")
    kind = statement.kind()
    target, source = statement.operand(2)
    if isinstance(target, Vector):
        return _split(kind, target, source)
    if isinstance(source, Vector):
        return _joined(kind, target, source)
    return apply(_same, kind, target, [(source, kind)])


def _part(kind: Kind, vector: Vector) -> Kind:
    return KINDS[f"b{8 * kind.size // len(vector.parts)}"]


def _split(kind: Kind, target: Vector, source: Operand) -> Execute:
    part, read = _part(kind, target), source.reader(kind)
    writes = [each.writer(part) for each in target.parts]

    def execute(warps: Warps) -> None:
        whole = np.broadcast_to(read(warps), (warps.width,))
        pieces = np.ascontiguousarray(whole).view(part.words).reshape(warps.width, -1)
        for index, write in enumerate(writes):
            write(warps, pieces[:, index])

    return execute


def _joined(kind: Kind, target: Operand, source: Vector) -> Execute:
    part, write = _part(kind, source), target.writer(kind)
    reads = [each.reader(part) for each in source.parts]

    def execute(warps: Warps) -> None:
        pieces = np.empty((warps.width, len(reads)), part.words)
        for index, read in enumerate(reads):
            pieces[:, index] = read(warps)
        write(warps, pieces.view(kind.number)[:, 0])

    return execute


def convert_number(statement: Statement) -> Execute:
    if statement.parts[0] == "pack":
        return _pack(statement)
    allowed = " ".join((*ROUNDED, "rn rz ftz sat satfinite relu"))
    modifiers = statement.modifiers(allowed, types=2)
    result, kind = statement.kind(-2), statement.kind(-1)
    if kind.floats and not result.floats and len(modifiers & ROUNDED.keys()) != 1:
        raise Unknown(statement.line.text)
    if result.packed and not kind.packed:
        target, *sources = statement.operand(3)
        return _convert_pair(result, kind, target, sources, modifiers)
    target, source = statement.operand(2)
    return apply(lambda values: convert(values, result, modifiers), result, target, [(source, kind)])


def _convert_pair(
    result: Kind, kind: Kind, target: Operand, sources: list[Operand], modifiers: frozenset[str]
) -> Execute:
    """The first operand becomes the upper half."""
    write = target.writer(result)
    up, low = (each.reader(kind) for each in sources)

    def execute(warps: Warps) -> None:
        both = np.empty((warps.width, 2), kind.number)
        both[:, 0], both[:, 1] = low(warps), up(warps)
        write(warps, convert(both, result, modifiers).reshape(-1))

    return execute


def _pack(statement: Statement) -> Execute:
    """``cvt.pack.sat``: two integers held to fewer bits, before the lower half of a third."""
    if statement.parts not in [["pack", "sat", kind, "s32", "b32"] for kind in ("s8", "u8")]:
        raise Unknown(statement.line.text)
    narrow, kind = statement.kind(2), statement.kind(3)
    saturated = frozenset({"sat"})

    def formula(first: Array, second: Array, third: Array) -> Array:
        up, low = (
            convert(each, narrow, saturated).view(np.uint8).astype(np.uint32) for each in (first, second)
        )
        return np.asarray(third << 16 | up << 8 | low)

    target, *sources = statement.operand(4)
    return apply(formula, _WORD, target, list(zip(sources, (kind, kind, _WORD), strict=True)))


def multiply(statement: Statement) -> Execute:
    """``mul.wide`` and ``mad.wide``; the rest are formulas."""
    if "wide" not in statement.parts:
        return formula(statement)
    statement.modifiers("wide")
    kind = statement.kind()
    result = KINDS[f"{statement.parts[-1][0]}{16 * kind.size}"]
    target, first, second, *third = statement.operands
    if statement.head == "mul":
        return apply(formulas.wide, result, target, [(first, kind), (second, kind)])
    return apply(
        lambda a, b, c: formulas.wide(a, b) + c,
        result,
        target,
        [(first, kind), (second, kind), (third[0], result)],
    )


def shift(statement: Statement) -> Execute:
    statement.modifiers("")
    target, source, count = statement.operand(3)
    formula = formulas.shifted_left if statement.head == "shl" else formulas.shifted_right
    return apply(formula, statement.kind(), target, [(source, statement.kind()), (count, _COUNT)])


def field(statement: Statement) -> Execute:
    """``bfe`` and ``bfi``: places and counts are words whatever the type is."""
    statement.modifiers("")
    kind = statement.kind()
    target, *sources = statement.operands
    numbers, formula = (2, formulas.inserted) if statement.head == "bfi" else (1, formulas.extracted)
    kinds = [kind] * numbers + [_COUNT] * 2
    return apply(formula, kind, target, list(zip(sources, kinds, strict=True)))


def look_up(statement: Statement) -> Execute:
    statement.modifiers("")
    target, first, second, third, table = statement.operand(5)
    if not isinstance(table, Number):
        raise Unknown(statement.line.text)
    return apply(
        lambda a, b, c: formulas.looked_up(a, b, c, np.array(table.integer)),
        _WORD,
        target,
        [(each, _WORD) for each in (first, second, third)],
    )


def dot(statement: Statement) -> Execute:
    signs = {"s": "i1", "u": "u1"}
    if len(statement.parts) != 2 or not set(statement.parts) <= {"s32", "u32"}:
        raise Unknown(statement.line.text)
    left, right = (signs[part[0]] for part in statement.parts)
    result = KINDS["s32" if "s32" in statement.parts else "u32"]

    def formula(first: Array, second: Array, third: Array) -> Array:
        bytes_ = first.reshape(-1, 1).view(left).astype(np.int64), second.reshape(-1, 1).view(right)
        return np.asarray((bytes_[0] * bytes_[1]).sum(axis=1) + third).astype(result.number)

    target, *sources = statement.operand(4)
    return apply(formula, result, target, list(zip(sources, (_WORD, _WORD, result), strict=True)))


def compare(statement: Statement) -> Execute:
    """``setp``: the second target is the opposite; a third operand joins both."""
    kind, parts = statement.kind(), [part for part in statement.parts[:-1] if part != "ftz"]
    formula = formulas.comparison(parts[0], kind.floats) if parts else None
    joins = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    if formula is None or kind.packed or not set(parts[1:]) <= joins.keys():
        raise Unknown(statement.line.text)
    target, first, second, *third = statement.operands
    targets = [target.first, target.second] if isinstance(target, Pair) else [target]
    writes = [each.writer(_PREDICATE) for each in targets]
    reads = first.reader(kind), second.reader(kind)
    flushed = "ftz" in statement.parts
    join = joins[parts[1]] if parts[1:] else None
    other = third[0].reader(_PREDICATE) if join is not None else None

    def execute(warps: Warps) -> None:
        numbers = [flush(read(warps)) if flushed else read(warps) for read in reads]
        found = formula(*numbers)
        for write, each in zip(writes, (found, ~found), strict=False):
            write(warps, each if join is None or other is None else join(each, other(warps)))

    return execute


def select(statement: Statement) -> Execute:
    statement.modifiers("")
    kind = statement.kind()
    target, first, second, chosen = statement.operand(4)
    if kind.packed:
        raise Unknown(statement.line.text)
    return apply(_chosen, kind, target, [(first, kind), (second, kind), (chosen, _PREDICATE)])


def _chosen(first: Array, second: Array, wanted: Array) -> Array:
    return np.where(wanted, first, second)
