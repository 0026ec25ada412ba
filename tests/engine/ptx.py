"""A few instructions of PTX on words, as the PTX manual defines them."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = 0xFFFFFFFF


def run(text: str, inputs: Sequence[int], outputs: int) -> list[int]:
    """Operands ``$0`` to ``${outputs - 1}`` after ``text``; ``inputs`` come behind them. ``mov {a, b}, c``
    takes a word apart into halves."""
    registers = {f"${outputs + index}": value for index, value in enumerate(inputs)}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    for line in text.strip().strip("{}").split(";"):
        line = line.strip()
        if not line or line.startswith(".reg"):
            continue
        name, rest = line.split(maxsplit=1)
        if halves := re.match(r"\{(\$\d+), (\$\d+)\}, (\w+)", rest):
            word = value(halves[3])
            registers[halves[1]], registers[halves[2]] = word & 0xFFFF, word >> 16
            continue
        target, *operands = (part.strip() for part in rest.split(","))
        registers[target] = _result(name, [value(operand) for operand in operands]) & MASK
    return [registers[f"${index}"] for index in range(outputs)]


def _result(name: str, operands: Sequence[int]) -> int:
    match name:
        case "mov.b32":
            return operands[0]
        case "not.b32":
            return ~operands[0]
        case "and.b32":
            return operands[0] & operands[1]
        case "or.b32":
            return operands[0] | operands[1]
        case "xor.b32":
            return operands[0] ^ operands[1]
        case "sub.u32":
            return operands[0] - operands[1]
        case "shl.b32":
            return operands[0] << operands[1]
        case "shr.u32":
            return operands[0] >> operands[1]
        case "prmt.b32":
            return _permuted(*operands)
    raise ValueError(f"{name} is not known here")


def _permuted(first: int, second: int, selectors: int) -> int:
    """Bytes of both words; a selector's upper bit spreads the sign of its byte."""
    source = (second << 32 | first).to_bytes(8, "little")
    out = bytearray()
    for index in range(4):
        selector = selectors >> 4 * index & 15
        byte = source[selector & 7]
        out.append((0xFF if byte & 0x80 else 0) if selector & 8 else byte)
    return int.from_bytes(out, "little")
