"""Products and transfers of matrices by whole warps: mma.sync, ldmatrix and stmatrix.

Registers hold a matrix as the PTX manual draws it: lane 4g + t has row g, and of it the columns of word t."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mask import WARP
from .numbers import FLOAT64, KINDS, Array, Kind
from .operands import Read
from .text import Unknown
from .warps import Warps
from .watch import Places

_LANES = np.arange(WARP)
_GROUP, _INSIDE = _LANES // 4, _LANES % 4
_ROW_BYTES = 16
_WORD = KINDS["b32"]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A matrix in registers: of word ``[register, lane]`` its numbers' ``rows`` and ``columns``, both
    [registers, lanes, numbers]."""

    kind: Kind
    shape: tuple[int, int]
    rows: Places
    columns: Places

    def gather(self, words: Sequence[Array]) -> Array:
        """[warps, rows, columns], float64."""
        stacked = np.stack(words).reshape(len(words), -1, WARP, 1).view(self.kind.number)
        found = np.zeros((stacked.shape[1], *self.shape), FLOAT64)
        found[:, self.rows, self.columns] = stacked.swapaxes(0, 1)
        return found

    def scatter(self, matrix: Array) -> list[Array]:
        """``matrix`` as words of registers."""
        parts = np.ascontiguousarray(matrix[:, self.rows, self.columns].swapaxes(0, 1))
        return [part.reshape(-1).view(_WORD.words) for part in parts]


def _first(kind: Kind, depth: int) -> Fragment:
    """16 rows by ``depth``: the upper and the lower eight rows in turn."""
    each = _WORD.size // kind.number.itemsize
    registers = np.arange(2 * depth // (4 * each))[:, None, None]
    inside = np.arange(each)
    rows = _GROUP[:, None] + 8 * (registers & 1) + 0 * inside
    columns = _INSIDE[:, None] * each + inside + 4 * each * (registers >> 1)
    return Fragment(kind, (16, depth), rows, columns)


def _second(kind: Kind, depth: int) -> Fragment:
    """``depth`` rows by 8 columns."""
    each = _WORD.size // kind.number.itemsize
    registers = np.arange(depth // (4 * each))[:, None, None]
    inside = np.arange(each)
    rows = _INSIDE[:, None] * each + inside + 4 * each * registers
    columns = _GROUP[:, None] + 0 * inside + 0 * registers
    return Fragment(kind, (depth, 8), rows, columns)


def _sums(kind: Kind) -> Fragment:
    """16 rows by 8 columns."""
    each = _WORD.size // kind.number.itemsize
    registers = np.arange(4 // each)[:, None, None]
    inside = np.arange(each)
    rows = _GROUP[:, None] + 8 * (registers * each // 2) + 0 * inside
    columns = _INSIDE[:, None] * 2 + (inside if each == 2 else registers & 1)
    return Fragment(kind, (16, 8), rows, np.broadcast_to(columns, rows.shape))


_MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col(\.satfinite)?\.(f32|f16|s32)\.(\w+)\.(\w+)\.(f32|f16|s32)"
)
_DEPTHS = {"bf16": (8, 16), "f16": (8, 16), "s8": (16, 32), "u8": (16, 32), "e4m3": (32,), "e5m2": (32,)}


@dataclass(frozen=True, slots=True)
class Product:
    """``mma``: products are exact and summed, with what they are added to, in float64, which is rounded
    once. Hardware keeps fewer digits of a sum, and cuts them off. Sums of integers wrap, or are held to the
    ends of int32 if it ``saturates``."""

    first: Fragment
    second: Fragment
    sums: Fragment
    saturates: bool

    def run(self, first: Sequence[Array], second: Sequence[Array], third: Sequence[Array]) -> list[Array]:
        total = self.first.gather(first) @ self.second.gather(second) + self.sums.gather(third)
        if self.sums.kind.floats:
            return self.sums.scatter(total.astype(self.sums.kind.number))
        if self.saturates:
            limits = np.iinfo(self.sums.kind.number)
            total = np.clip(total, limits.min, limits.max)
        return self.sums.scatter(total.astype(np.int64).astype(self.sums.kind.number))


def product(opcode: str) -> Product:
    found = _MMA.fullmatch(opcode)
    if found is None:
        raise Unknown(opcode)
    depth, saturates, result, first, second, addend = int(found[1]), *found.groups()[1:]
    floats = KINDS[result].floats
    known = depth in _DEPTHS.get(first, ()) and KINDS[first].floats == KINDS[second].floats == floats
    known &= not (floats and saturates)
    if not known or result != addend or depth not in _DEPTHS.get(second, ()):
        raise Unknown(opcode)
    return Product(
        _first(KINDS[first], depth), _second(KINDS[second], depth), _sums(KINDS[result]), bool(saturates)
    )


def _rows(warps: Warps, addresses: Read, count: int) -> tuple[Places, NDArray[np.bool_]]:
    """The addresses of the rows of ``count`` matrices, and whose they are."""
    return addresses(warps), warps.mask.flags & (warps.lane < 8 * count)


def load_matrices(warps: Warps, addresses: Read, count: int, transposed: bool) -> list[Array]:
    """``count`` words of every thread."""
    every, chosen = _rows(warps, addresses, count)
    found = np.zeros((warps.width, _ROW_BYTES // _WORD.size), _WORD.words)
    with warps.only(chosen):
        found[chosen] = warps.shared.load(every[chosen], _WORD.size, found.shape[1], warps.who())
    matrices = found.reshape(-1, WARP, found.shape[1])[:, : 8 * count].reshape(-1, count, 8, found.shape[1])
    if transposed:
        matrices = _transposed(matrices)
    return [matrices[:, index, _GROUP, _INSIDE].reshape(-1) for index in range(count)]


def store_matrices(warps: Warps, addresses: Read, words: Sequence[Array], transposed: bool) -> None:
    """The inverse of ``load_matrices``."""
    matrices = np.stack([word.reshape(-1, 8, 4) for word in words], axis=1)
    if transposed:
        matrices = _transposed(matrices)
    every, chosen = _rows(warps, addresses, len(words))
    rows = np.zeros((warps.width // WARP, WARP, 4), _WORD.words)
    rows[:, : 8 * len(words)] = matrices.reshape(-1, 8 * len(words), 4)
    with warps.only(chosen):
        warps.shared.store(every[chosen], rows.reshape(-1, 4)[chosen], warps.who())


def _transposed(matrices: Array) -> Array:
    """Of [..., 8, 4] words, which are 8 by 8 halves."""
    halves = np.ascontiguousarray(matrices).view(np.uint16)
    return np.ascontiguousarray(halves.swapaxes(-1, -2)).view(_WORD.words)
