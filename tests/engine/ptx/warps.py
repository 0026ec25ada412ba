"""Some blocks' threads, run in lockstep: of those that can go on, always the ones furthest behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .mask import WARP, Mask
from .memory import Global, Local, Shared, Threads
from .numbers import Array
from .operands import Read
from .watch import Flags, Offence, Places

MOST_STEPS = 2_000_000
Dim = tuple[int, int, int]


class Fault(Exception):
    """A thread did what it must not, or none can go on."""


Execute: TypeAlias = "Callable[[Warps], None]"


@dataclass(frozen=True, slots=True)
class Plain:
    """An instruction after which its threads go on. ``named`` are those of each thread's warp, as bits, that
    have to do it together."""

    text: str
    opcode: str
    execute: Execute
    guard: Read | None = None
    named: Read | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    text: str
    opcode: str
    target: int
    guard: Read | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    text: str
    opcode: str
    guard: Read | None = None


@dataclass(frozen=True, slots=True)
class Barrier:
    """All threads of a block come here or to another one of this ``name``."""

    text: str
    opcode: str
    name: int
    guard: Read | None = None


Instruction = Plain | Branch | Exit | Barrier


@dataclass(slots=True)
class Copy:
    """``cp.async`` on its way: of each thread the bytes, where they go to, and as whose group."""

    lanes: Places
    groups: Places
    addresses: Places
    values: NDArray[np.uint8]


class Warps:
    """``registers`` are unsigned words or bools of every thread, which nobody changes in place."""

    def __init__(
        self,
        code: Sequence[Instruction],
        kinds: Sequence[np.dtype[np.generic]],
        blocks: Sequence[Dim],
        grid: Dim,
        block: Dim,
        parameters: bytes,
        memory: Global,
        shared: int,
        local: int,
    ) -> None:
        threads = int(np.prod(block))
        self.block_width = -(-threads // WARP) * WARP
        self.width = len(blocks) * self.block_width
        self.code, self.blocks, self.block, self.parameters = code, blocks, block, parameters
        self.memory, self.shared = memory, Shared(len(blocks), shared)
        self.local = Local(self.width, local)
        self.registers: list[Array] = [_garbage(kind, self.width) for kind in kinds]
        numbers = np.arange(self.width)
        self.numbers, self.lane = numbers, numbers % WARP
        self.threads = Threads(numbers // self.block_width, numbers // WARP, numbers)
        self.alive: Flags = numbers % self.block_width < threads
        self.special = self._special(grid)
        self.mask = Mask(self.alive)
        self.pending: dict[int, Flags] = {0: self.alive}
        self.parked: dict[int, Flags] = {}
        self.arrived: dict[int, dict[int, Flags]] = {}
        self.copies: list[Copy] = []
        self.groups = np.zeros(self.width, np.int64)
        self.carry = np.zeros(self.width, np.int64)
        self.counts = np.zeros(len(code), np.int64)

    def _special(self, grid: Dim) -> Mapping[str, Array]:
        inside = self.numbers % self.block_width
        x, y, _ = self.block
        lane = self.lane.astype(np.uint64)
        one = np.uint64(1)
        found = {
            "%tid.x": inside % x,
            "%tid.y": inside // x % y,
            "%tid.z": inside // (x * y),
            "%laneid": self.lane,
            "%warpid": inside // WARP,
            "%nwarpid": np.full(self.width, self.block_width // WARP),
            "%lanemask_eq": one << lane,
            "%lanemask_lt": (one << lane) - one,
            "%lanemask_le": (one << lane + one) - one,
            "%lanemask_gt": ~((one << lane + one) - one),
            "%lanemask_ge": ~((one << lane) - one),
        }
        places = np.repeat(np.array(self.blocks), self.block_width, axis=0)
        for axis, letter in enumerate("xyz"):
            found[f"%ctaid.{letter}"] = places[:, axis]
            found[f"%nctaid.{letter}"] = np.full(self.width, grid[axis])
            found[f"%ntid.{letter}"] = np.full(self.width, self.block[axis])
        return {name: values.astype(np.uint32) for name, values in found.items()}

    def put(self, slot: int, words: Array) -> None:
        """``words`` of every thread, or one for all, into the register of those that do something."""
        if not self.mask.full:
            words = np.where(self.mask.flags, words, self.registers[slot])
        elif words.ndim == 0:
            words = np.full(self.width, words)
        self.registers[slot] = words

    def spread(self, values: Array) -> Array:
        """``values`` of those that do something as values of all."""
        if self.mask.full:
            return values
        found = np.zeros((self.width, *values.shape[1:]), values.dtype)
        found[self.mask.lanes] = values
        return found

    def who(self) -> Threads:
        if self.mask.full:
            return self.threads
        lanes = self.mask.lanes
        return Threads(self.threads.blocks[lanes], self.threads.warps[lanes], lanes)

    @contextmanager
    def only(self, flags: Flags) -> Iterator[None]:
        """Some of those that do something. What is raised keeps them."""
        outer, self.mask = self.mask, Mask(flags)
        yield
        self.mask = outer

    def run(self) -> None:
        """To the end. Raises Fault."""
        steps = 0
        while self.pending:
            place = min(self.pending)
            self.mask = Mask(self._together(place, self.pending.pop(place)))
            ahead = [other for other in (*self.pending, *self.parked) if other > place]
            limit = min(ahead, default=len(self.code))
            while True:
                steps += 1
                following = self._step(place)
                if following is None:
                    break
                if not place < following < limit:
                    self._later(following, self.mask.flags)
                    break
                place = following
            if steps > MOST_STEPS:
                raise Fault(f"no end after {steps} steps, at {self.code[place].text}")
        stuck = [*self.parked, *(place for each in self.arrived.values() for place in each)]
        if stuck:
            raise Fault("nobody comes to: " + "; ".join(self.code[place].text for place in stuck))

    def _together(self, place: int, flags: Flags) -> Flags:
        return flags | self.parked.pop(place) if place in self.parked else flags

    def _later(self, place: int, flags: Flags) -> None:
        if flags.any():
            self.pending[place] = self.pending[place] | flags if place in self.pending else flags

    def _step(self, place: int) -> int | None:
        """Where all threads go on, if they do so together."""
        instruction = self.code[place]
        self.counts[place] += self.mask.warps
        try:
            match instruction:
                case Plain():
                    return place + 1 if self._plain(instruction, place) else None
                case Branch():
                    return self._branch(instruction, place)
                case Exit():
                    taken = self._taken(instruction.guard)
                    self._later(place + 1, self.mask.flags & ~taken)
                case Barrier():
                    self._arrive(instruction, place)
        except Offence as offence:
            lane = int(self.mask.lanes[offence.index])
            raise Fault(f"{self._name(lane)}: {instruction.text}: {offence.why}") from None
        return None

    def _name(self, lane: int) -> str:
        thread = tuple(int(self.special[f"%tid.{letter}"][lane]) for letter in "xyz")
        return f"thread {thread} of block {self.blocks[lane // self.block_width]}"

    def _taken(self, guard: Read | None) -> Flags:
        return self.mask.flags if guard is None else self.mask.flags & guard(self)

    def _plain(self, instruction: Plain, place: int) -> bool:
        """Whether all threads go on together."""
        together = instruction.named is None or self.mask.full or self._gathered(instruction.named, place)
        if instruction.guard is None:
            instruction.execute(self)
            return together
        with self.only(self._taken(instruction.guard)):
            if len(self.mask.lanes):
                if instruction.named is not None and not self._complete(instruction.named).all():
                    raise Offence(0, "threads that it names have another guard")
                instruction.execute(self)
        return together

    def _gathered(self, named: Read, place: int) -> bool:
        """Leave those whose warp lacks a thread; whether none was left."""
        complete = self._complete(named).reshape(-1, WARP).all(axis=1)
        if complete.all():
            return True
        here = np.repeat(complete, WARP)
        self.parked[place] = self.mask.flags & ~here
        self.counts[place] -= np.count_nonzero(~complete)
        self.mask = Mask(self.mask.flags & here)
        self._later(place + 1, self.mask.flags)
        return False

    def _complete(self, named: Read) -> Flags:
        missing = named(self) & ~self.mask.bits
        return np.asarray(~self.mask.flags | (missing == 0))

    def _branch(self, instruction: Branch, place: int) -> int | None:
        taken = self._taken(instruction.guard)
        count = np.count_nonzero(taken)
        if count == 0:
            return place + 1
        if count == len(self.mask.lanes):
            return instruction.target
        self._later(instruction.target, taken)
        self._later(place + 1, self.mask.flags & ~taken)
        return None

    def _arrive(self, instruction: Barrier, place: int) -> None:
        taken = self._taken(instruction.guard)
        self._later(place + 1, self.mask.flags & ~taken)
        places = self.arrived.setdefault(instruction.name, {})
        places[place] = places[place] | taken if place in places else taken
        here = np.logical_or.reduce(list(places.values())).reshape(-1, self.block_width)
        whole = (here == self.alive.reshape(-1, self.block_width)).all(axis=1)
        for index in np.flatnonzero(whole):
            self.shared.settle(int(index))
        released = np.repeat(whole, self.block_width)
        for at, flags in list(places.items()):
            self._later(at + 1, flags & released)
            places[at] = flags & ~released
            if not places[at].any():
                del places[at]

    def counted(self) -> Counter[str]:
        """Instructions that warps issued, by opcode."""
        found: Counter[str] = Counter()
        for instruction, count in zip(self.code, self.counts.tolist(), strict=True):
            if count:
                found[instruction.opcode] += count
        return found


def _garbage(kind: np.dtype[np.generic], width: int) -> Array:
    if kind.kind == "b":
        return np.ones(width, bool)
    return np.full(width, np.frombuffer(b"\xa5" * kind.itemsize, kind)[0])
