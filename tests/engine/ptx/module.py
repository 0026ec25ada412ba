"""PTX as a compiler wrote it, and its kernels launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .instructions import instruction
from .memory import Global
from .numbers import KINDS, Array
from .operands import Names, register
from .text import Kernel, Unknown, Variable, parse
from .warps import Dim, Instruction, Warps


@dataclass(frozen=True, slots=True)
class Inside:
    """A pointer to byte ``offset`` of an array."""

    array: Array
    offset: int


Argument = Array | Inside | np.generic | int | float | bytes | None
_TOGETHER = 1024
"""Threads that run in lockstep."""
_MOST_THREADS = 1024
"""Of a block."""


@dataclass(frozen=True, slots=True)
class Entry:
    """``places`` are of parameters, in bytes; ``shared`` and ``local`` bytes are the kernel's own."""

    kernel: Kernel
    code: Sequence[Instruction]
    kinds: Sequence[np.dtype[Any]]
    places: Sequence[int]
    shared: int
    local: int


class Module:
    """Raises ``Unknown`` for text that is not understood, with the text."""

    def __init__(self, text: str) -> None:
        found = parse(text)
        self._constants: list[Array] = []
        places = {}
        dynamic = []
        shared = 0
        for variable in found.variables:
            if variable.space == "shared":
                if variable.count:
                    places[variable.name] = shared = _aligned(shared, variable.align)
                    shared += _size(variable)
                else:
                    dynamic.append(variable)
            elif variable.space in ("global", "const"):
                places[variable.name] = Global.address(len(self._constants))
                self._constants.append(_initial(variable))
            else:
                raise Unknown(variable.name)
        self._entries = {
            kernel.name: _entry(kernel, dict(places), dynamic, shared) for kernel in found.kernels
        }

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def run(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Argument],
        shared: int = 0,
    ) -> Counter[str]:
        """Instructions that warps issued, by opcode. Arrays are device memory, and changed; None is no
        pointer; numbers are of their parameter's type; ``shared`` bytes are dynamic.

        Raises Fault for what must not be done, with the instruction and the thread that did it.
        """
        own = self._entries[entry]
        if len(arguments) != len(own.kernel.parameters):
            raise ValueError(f"{entry} takes {len(own.kernel.parameters)} arguments, not {len(arguments)}")
        if prod(block) > (own.kernel.threads or _MOST_THREADS):
            raise ValueError(f"{entry} takes blocks of {own.kernel.threads or _MOST_THREADS} threads at most")
        arrays: list[Array] = list(self._constants)
        parameters = bytearray(_aligned(own.places[-1] + 64, 16)) if own.places else bytearray(16)
        for variable, place, argument in zip(own.kernel.parameters, own.places, arguments, strict=True):
            data = _bytes(variable, argument, arrays)
            parameters[place : place + len(data)] = data
        memory, counts = Global(arrays), Counter[str]()
        width, height, depth = _three(block)
        each = max(1, _TOGETHER // (width * height * depth))
        with np.errstate(all="ignore"):
            blocks = list(_blocks(_three(grid)))
            for first in range(0, len(blocks), each):
                memory.first_block = first
                warps = Warps(
                    own.code,
                    own.kinds,
                    blocks[first : first + each],
                    _three(grid),
                    (width, height, depth),
                    bytes(parameters),
                    memory,
                    own.shared + shared,
                    own.local,
                )
                warps.run()
                counts += warps.counted()
        for index, array in enumerate(arrays):
            memory.copy_back(index, array)
        return counts


def _entry(kernel: Kernel, places: dict[str, int], dynamic: list[Variable], shared: int) -> Entry:
    local, parameters, offset = 0, [], 0
    for variable in kernel.variables:
        if variable.space == "local":
            places[variable.name] = local = _aligned(local, variable.align)
            local += _size(variable)
        elif variable.space == "shared" and variable.count:
            places[variable.name] = shared = _aligned(shared, variable.align)
            shared += _size(variable)
        else:
            raise Unknown(variable.name)
    shared = _aligned(shared, max((each.align for each in dynamic), default=1))
    places |= {each.name: shared for each in dynamic}
    for variable in kernel.parameters:
        offset = _aligned(offset, variable.align)
        parameters.append(offset)
        places[variable.name] = offset
        offset += _size(variable)
    registers = {name: register(slot, kind) for slot, (name, kind) in enumerate(kernel.registers.items())}
    names = Names(registers, places)
    code = [instruction(line, kernel, names) for line in kernel.lines]
    return Entry(kernel, code, [each.dtype for each in registers.values()], parameters, shared, local)


def _bytes(variable: Variable, argument: Argument, arrays: list[Array]) -> bytes:
    """An argument as it lies among the parameters; an array joins ``arrays``, once."""
    kind = KINDS[variable.kind]
    if isinstance(argument, np.ndarray):
        argument = Inside(argument, 0)
    if isinstance(argument, Inside):
        if kind.size != 8 or not argument.array.flags.c_contiguous:
            raise ValueError(f"{variable.name}: an array has to be contiguous, and its parameter a pointer")
        return (_address(argument.array, arrays) + argument.offset).to_bytes(8, "little")
    if isinstance(argument, bytes):
        if len(argument) != _size(variable):
            raise ValueError(f"{variable.name} has {_size(variable)} bytes, not {len(argument)}")
        return argument
    number = np.dtype(kind.number)
    if isinstance(argument, float | np.floating) and kind.size == 4:
        number = np.dtype(np.float32)
    return np.array(0 if argument is None else argument).astype(number).tobytes()


def _address(array: Array, arrays: list[Array]) -> int:
    for index, other in enumerate(arrays):
        if np.may_share_memory(array, other):
            if array.ctypes.data != other.ctypes.data or array.nbytes != other.nbytes:
                raise ValueError("arrays overlap")
            return Global.address(index)
    arrays.append(array)
    return Global.address(len(arrays) - 1)


def _initial(variable: Variable) -> Array:
    found = np.zeros(variable.count, KINDS[variable.kind].words)
    wrapped = [number % (1 << 8 * found.itemsize) for number in variable.values]
    found[: len(wrapped)] = wrapped
    return found


def _size(variable: Variable) -> int:
    return variable.count * KINDS[variable.kind].size


def _aligned(place: int, align: int) -> int:
    return -(-place // align) * align


def _three(dim: Sequence[int]) -> Dim:
    x, y, z = (*dim, 1, 1, 1)[:3]
    return x, y, z


def _blocks(grid: Dim) -> Iterator[Dim]:
    return ((x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0]))
