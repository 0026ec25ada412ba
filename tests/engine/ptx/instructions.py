"""From the text of an instruction to what it does to some blocks' threads."""

from __future__ import annotations

from collections.abc import Callable

from . import arithmetic, carries, crossing, transfers
from .numbers import KINDS
from .operands import Names, Negated, Read, Register
from .statements import Statement
from .text import Kernel, Line, Unknown
from .warps import Barrier, Branch, Execute, Exit, Instruction, Plain

_PREDICATE, _WORD = KINDS["pred"], KINDS["b32"]


def instruction(line: Line, kernel: Kernel, names: Names) -> Instruction:
    """Raises Unknown with the line's text."""
    guard = None
    if line.guard:
        predicate = names.operand(line.guard)
        if not isinstance(predicate, Register | Negated):
            raise Unknown(line.text)
        guard = predicate.reader(_PREDICATE)
    text, opcode = line.text, line.opcode
    match opcode.split("."):
        case ["bra", *rest] if rest in ([], ["uni"]) and len(line.operands) == 1:
            return Branch(text, opcode, kernel.labels[line.operands[0]], guard)
        case ["ret" | "exit"]:
            return Exit(text, opcode, guard)
        case ["bar" | "barrier", "sync"] | ["barrier", "sync", "aligned"] | ["barrier", "cta", "sync"]:
            if len(line.operands) == 1:
                return Barrier(text, opcode, int(line.operands[0], 0), guard)
    try:
        statement = Statement(line, tuple(names.operand(each) for each in line.operands))
        execute, named = _built(statement)
    except (Unknown, IndexError) as error:
        raise Unknown(f"{text}: {error}" if str(error) != text else text) from None
    return Plain(text, opcode, execute, guard, named)


def _built(statement: Statement) -> tuple[Execute, Read | None]:
    if carries.carries(statement):
        return carries.add(statement), None
    builder = _BUILDERS.get(statement.head)
    if builder is not None:
        return builder(statement), None
    together = _TOGETHER.get(statement.head)
    if together is not None:
        return together(statement)
    return arithmetic.formula(statement), None


def _nothing(statement: Statement) -> Execute:
    """Order of memory, as all threads see at once what others wrote, and hints."""
    return lambda warps: None


def _here(statement: Statement) -> Execute:
    """``activemask``."""
    (target,) = statement.operand(1)
    write = target.writer(_WORD)
    return lambda warps: write(warps, warps.mask.bits)


_BUILDERS: dict[str, Callable[[Statement], Execute]] = {
    "mov": arithmetic.move,
    "cvt": arithmetic.convert_number,
    "mul": arithmetic.multiply,
    "mad": arithmetic.multiply,
    "shl": arithmetic.shift,
    "shr": arithmetic.shift,
    "bfe": arithmetic.field,
    "bfi": arithmetic.field,
    "lop3": arithmetic.look_up,
    "dp4a": arithmetic.dot,
    "setp": arithmetic.compare,
    "selp": arithmetic.select,
    "membar": _nothing,
    "fence": _nothing,
    "prefetch": _nothing,
    "activemask": _here,
    "ld": transfers.load,
    "st": transfers.store,
    "atom": transfers.atom,
    "red": transfers.atom,
    "cvta": transfers.convert_address,
    "cp": transfers.copy,
    "trap": transfers.trap,
}
_TOGETHER: dict[str, Callable[[Statement], tuple[Execute, Read]]] = {
    "mma": crossing.multiply,
    "ldmatrix": crossing.matrices,
    "stmatrix": crossing.matrices,
    "shfl": crossing.shuffle,
    "vote": crossing.vote,
    "redux": crossing.reduce,
    "bar": crossing.wait,
}
