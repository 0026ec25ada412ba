"""Memory of the GPU, watched: arrays far apart, and shared memory that knows who wrote what and when.

Addresses are int64. Accesses hand over one address for each of some threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .numbers import Array, unsigned
from .watch import Flags, Places, Watch, refuse

REGION = 40
"""Each array has 2**40 bytes of addresses to itself."""
SHARED_WINDOW = 1 << 61
LOCAL_WINDOW = 1 << 62
"""Where generic addresses of shared and of local memory begin."""
_ALIGNMENT = 256
GARBAGE = 0xA5


@dataclass(frozen=True, slots=True)
class Threads:
    """Who accesses: for each its block, its warp, and its number among all."""

    blocks: Places
    warps: Places
    numbers: Places


class Memory:
    """``count`` numbers of ``size`` bytes each at each address."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(-(-size // _ALIGNMENT) * _ALIGNMENT, GARBAGE, np.uint8)

    def places(self, addresses: Places, size: int, threads: Threads) -> Places:
        """Of ``addresses`` in ``bytes``; ``size`` bytes from there on have to exist, and be aligned."""
        raise NotImplementedError

    def load(self, addresses: Places, size: int, count: int, threads: Threads) -> Array:
        """[threads, count], unsigned."""
        places = self.places(addresses, size * count, threads)
        self.on_read(places, size * count, threads)
        return np.asarray(self.words(size)[(places // size)[:, None] + np.arange(count)])

    def store(self, addresses: Places, values: Array, threads: Threads) -> None:
        """``values`` [threads, count], unsigned."""
        size, count = values.dtype.itemsize, values.shape[1]
        places = self.places(addresses, size * count, threads)
        self.put(places, np.ascontiguousarray(values).view(np.uint8), threads)

    def put(self, places: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        """``values`` [threads, bytes]."""
        self.bytes[_touched(places, values.shape[1])] = values

    def words(self, size: int) -> Array:
        return self.bytes.view(unsigned(size))

    def on_read(self, places: Places, size: int, threads: Threads) -> None:
        """Nothing is watched here."""


class Global(Memory):
    """A launch's arrays. Blocks know nothing of each other: two of them at one byte, one of them changing it
    other than by atoms, is an offence."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        sizes = [array.nbytes for array in arrays]
        room = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        super().__init__(sum(room))
        self._watch = Watch(len(self.bytes), "another block {} here")
        self.first_block = 0
        self._sizes = np.array([*sizes, 0], np.int64)
        self._starts = np.cumsum([0, *room])[: len(sizes) + 1]
        for array, start in zip(arrays, self._starts, strict=False):
            self.bytes[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    @staticmethod
    def address(index: int) -> int:
        return (index + 1) << REGION

    def on_read(self, places: Places, size: int, threads: Threads) -> None:
        self._watch.read(_touched(places, size), self.first_block + threads.blocks)

    def put(self, places: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        touched, blocks = _touched(places, values.shape[1]), self.first_block + threads.blocks
        self._watch.write(touched, blocks, self.bytes[touched] != values)
        self._watch.put(self.bytes, touched, values, blocks)

    def copy_back(self, index: int, array: Array) -> None:
        start = int(self._starts[index])
        held = self.bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        if array.flags.writeable:
            array[...] = held
        elif array.tobytes() != held.tobytes():
            raise ValueError("a kernel wrote to an array that is read-only")

    def places(self, addresses: Places, size: int, threads: Threads) -> Places:
        regions = (addresses >> REGION) - 1
        inside = addresses & (1 << REGION) - 1
        none = (regions < 0) | (regions >= len(self._sizes) - 1)
        regions = np.where(none, -1, regions)
        refuse(inside % size != 0, f"an address that is no multiple of {size}")
        refuse(none | (inside + size > self._sizes[regions]), f"{size} bytes outside of every array")
        return np.asarray(self._starts[regions] + inside)


class Local(Memory):
    """``stride`` bytes for each thread or block."""

    def __init__(self, count: int, stride: int) -> None:
        self.stride = -(-stride // 16) * 16
        super().__init__(count * self.stride)

    def places(self, addresses: Places, size: int, threads: Threads) -> Places:
        outside = (addresses < 0) | (addresses + size > self.stride)
        refuse(outside, f"{size} bytes outside of the {self.stride} there are")
        refuse(addresses % size != 0, f"an address that is no multiple of {size}")
        return self._owners(threads) * self.stride + addresses

    def _owners(self, threads: Threads) -> Places:
        return threads.numbers


class Shared(Local):
    """Reading what was never written is an offence, and so are two warps at one byte, one of them writing,
    without a barrier of the block in between, and two threads of a warp without a barrier of the warp."""

    def __init__(self, blocks: int, stride: int) -> None:
        super().__init__(blocks, stride)
        self.written = np.zeros(len(self.bytes), bool)
        self._watch = Watch(len(self.bytes), "another warp {} here since the barrier")
        self._inner = Watch(len(self.bytes), "another thread of the warp {} here since the warp's barrier")

    def _owners(self, threads: Threads) -> Places:
        return threads.blocks

    def settle(self, block: int) -> None:
        """All threads of a block have come to a barrier."""
        own = slice(block * self.stride, (block + 1) * self.stride)
        self._watch.settle(own)
        self._inner.settle(own)

    def settle_warps(self, warps: Flags, size: int) -> None:
        """All ``size`` threads of some warps have come to one."""
        self._inner.settle_groups(warps, size)

    def on_read(self, places: Places, size: int, threads: Threads) -> None:
        touched = _touched(places, size)
        refuse(~self.written[touched], "shared memory that was never written, or is still being copied to")
        self._watch.read(touched, threads.warps)
        self._inner.read(touched, threads.numbers, threads.warps)

    def put(self, places: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        touched = _touched(places, values.shape[1])
        changed = ~self.written[touched] | (self.bytes[touched] != values)
        self._watch.write(touched, threads.warps, changed)
        self._inner.write(touched, threads.numbers, changed)
        self.written[touched] = True
        self._watch.put(self.bytes, touched, values, threads.warps)

    def begin_copy(self, addresses: Places, size: int, threads: Threads) -> None:
        """From now on until ``end_copy`` the bytes may be anything."""
        touched = _touched(self.places(addresses, size, threads), size)
        for watch, by in ((self._watch, threads.warps), (self._inner, threads.numbers)):
            watch.write(touched, by, np.ones(touched.shape, bool))
        self.written[touched] = False

    def end_copy(self, addresses: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        self.put(self.places(addresses, values.shape[1], threads), values, threads)


def _touched(places: Places, size: int) -> Places:
    return places[:, None] + np.arange(size)
