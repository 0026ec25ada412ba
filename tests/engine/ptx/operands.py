"""What instructions read and write: registers, numbers, addresses, and vectors of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .numbers import BOOL, Array, Kind, unsigned
from .text import Unknown, split

if TYPE_CHECKING:
    from .warps import Warps

Read = Callable[["Warps"], Array]
Write = Callable[["Warps", Array], None]
SPECIAL = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid)\.[xyz]|laneid|warpid|nwarpid|lanemask_(?:eq|lt|le|gt|ge)|clock(?:64)?)"
)


class Operand:
    """Reads and writes numbers of a kind, one for each thread (two for each if it is packed)."""

    def reader(self, kind: Kind) -> Read:
        raise Unknown(f"{self} cannot be read as {kind.number}")

    def writer(self, kind: Kind) -> Write:
        raise Unknown(f"{self} cannot be written to as {kind.number}")


@dataclass(frozen=True, slots=True)
class Register(Operand):
    """A wide register read as something narrow yields its lower part; something narrow is extended by its
    sign if it has one."""

    slot: int
    dtype: np.dtype[Any]

    def reader(self, kind: Kind) -> Read:
        slot, number, words = self.slot, kind.number, kind.words
        if self._wider(kind):
            return lambda warps: warps.registers[slot].astype(words).view(number)
        if number == self.dtype:
            return lambda warps: warps.registers[slot]
        return lambda warps: warps.registers[slot].view(number)

    def writer(self, kind: Kind) -> Write:
        slot, number, words, own = self.slot, kind.number, kind.words, self.dtype
        if self._wider(kind):
            extended = np.dtype(f"i{own.itemsize}") if kind.signed else own

            def write_wider(warps: Warps, values: Array) -> None:
                narrow = np.asarray(values, number)
                narrow = narrow if kind.signed else narrow.view(words)
                warps.put(slot, narrow.astype(extended).view(own))

            return write_wider
        return lambda warps, values: warps.put(slot, np.asarray(values, number).view(own))

    def _wider(self, kind: Kind) -> bool:
        if (self.dtype == BOOL) != (kind.words == BOOL) or self.dtype.itemsize < kind.size:
            raise Unknown(f"a register of {self.dtype} holds no {kind.number}")
        return self.dtype.itemsize > kind.size


@dataclass(frozen=True, slots=True)
class Negated(Operand):
    predicate: Register

    def reader(self, kind: Kind) -> Read:
        read = self.predicate.reader(kind)
        return lambda warps: ~read(warps)


@dataclass(frozen=True, slots=True)
class Number(Operand):
    """A literal: an integer, ``0f`` or ``0d`` and the bits of a float, or decimals."""

    text: str

    def reader(self, kind: Kind) -> Read:
        value = self._value(kind)
        if kind.packed:
            return lambda warps: np.full(warps.width, value).view(kind.number)
        return lambda warps: value

    def _value(self, kind: Kind) -> Array:
        if kind.number == BOOL:
            return np.array(int(self.text, 0) != 0)
        if bits := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", self.text):
            word = int(bits[1], 16)
            if len(bits[1]) != 2 * kind.size:
                raise Unknown(f"{self.text} for a number of {kind.size} bytes")
        elif re.fullmatch(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?", self.text):
            return np.array(float(self.text), kind.number)
        else:
            word = self.integer & (1 << 8 * kind.size) - 1
        value = np.array(word, kind.words)
        return value if kind.packed else value.view(kind.number)

    @property
    def integer(self) -> int:
        return int(self.text.rstrip("uU"), 0)


@dataclass(frozen=True, slots=True)
class Special(Operand):
    name: str

    def reader(self, kind: Kind) -> Read:
        name, number, words = self.name, kind.number, kind.words
        return lambda warps: warps.special[name].astype(words).view(number)


@dataclass(frozen=True, slots=True)
class Sink(Operand):
    """``_``: what nobody wants to know."""

    def writer(self, kind: Kind) -> Write:
        return lambda warps, values: None


@dataclass(frozen=True, slots=True)
class Vector(Operand):
    parts: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair(Operand):
    """``d|p``: a result and a second one."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Address(Operand):
    """Of memory: a register or a variable, and bytes behind it."""

    base: Operand
    offset: int

    def bytes(self) -> Read:
        """int64."""
        if isinstance(self.base, Register):
            slot, offset = self.base.slot, self.offset
            return lambda warps: warps.registers[slot].astype(np.int64) + offset
        if not isinstance(self.base, Number):
            raise Unknown(f"{self.base} is no address")
        place = np.array(self.base.integer + self.offset, np.int64)
        return lambda warps: np.full(warps.width, place)


@dataclass(frozen=True, slots=True)
class Names:
    """What names in a kernel's text stand for."""

    registers: Mapping[str, Register]
    places: Mapping[str, int]
    """Variables."""

    def operand(self, text: str) -> Operand:
        if text.startswith("["):
            base, offset = text.strip("[] "), 0
            if sum_ := re.fullmatch(r"(.+?)\s*([-+])\s*(-?\w+)", base):
                base, offset = sum_[1], int(sum_[3], 0) * (-1 if sum_[2] == "-" else 1)
            return Address(self.operand(base), offset)
        if text.startswith("{"):
            return Vector(tuple(self.operand(each) for each in split(text.strip("{} "))))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        if text == "_":
            return Sink()
        if text in self.registers:
            return self.registers[text]
        if text.startswith("!") and text[1:] in self.registers:
            return Negated(self.registers[text[1:]])
        if SPECIAL.fullmatch(text):
            return Special(text)
        if text == "WARP_SZ":
            return Number("32")
        if text in self.places:
            return Number(str(self.places[text]))
        if re.fullmatch(r"[-+]?[\d.][\w.]*", text):
            return Number(text)
        raise Unknown(text)


def register(slot: int, kind: str) -> Register:
    return Register(slot, BOOL if kind == "pred" else unsigned(int(re.sub(r"\D", "", kind)) // 8))
