"""Memory of the GPU, watched: arrays far apart, and shared memory that knows who wrote what and when.

Addresses are int64. Accesses hand over one address for each of some threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .numbers import Array, unsigned

Places = NDArray[np.int64]
Flags = NDArray[np.bool_]
REGION = 40
"""Each array has 2**40 bytes of addresses to itself."""
SHARED_WINDOW = 1 << 61
LOCAL_WINDOW = 1 << 62
"""Where generic addresses of shared and of local memory begin."""
_ALIGNMENT = 256
_NOBODY, _SEVERAL = -1, -2
GARBAGE = 0xA5


class Offence(Exception):
    """``why`` thread number ``index`` of an access must not do what it does."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index, self.why = index, why


def refuse(wrong: Flags, why: str) -> None:
    if wrong.any():
        raise Offence(int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))[0]), why)


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
    """A launch's arrays."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        sizes = [array.nbytes for array in arrays]
        room = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        super().__init__(sum(room))
        self._sizes = np.array([*sizes, 0], np.int64)
        self._starts = np.cumsum([0, *room])[: len(sizes) + 1]
        for array, start in zip(arrays, self._starts, strict=False):
            self.bytes[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    @staticmethod
    def address(index: int) -> int:
        return (index + 1) << REGION

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
    without a barrier of the block in between. Writing what is there already is not."""

    def __init__(self, blocks: int, stride: int) -> None:
        super().__init__(blocks, stride)
        self.written = np.zeros(len(self.bytes), bool)
        self._writer = np.full(len(self.bytes), _NOBODY, np.int32)
        self._reader = np.full(len(self.bytes), _NOBODY, np.int32)

    def _owners(self, threads: Threads) -> Places:
        return threads.blocks

    def settle(self, block: int) -> None:
        """All threads of a block have come to a barrier."""
        own = slice(block * self.stride, (block + 1) * self.stride)
        self._writer[own] = self._reader[own] = _NOBODY

    def on_read(self, places: Places, size: int, threads: Threads) -> None:
        touched, warps = _touched(places, size), threads.warps[:, None]
        refuse(~self.written[touched], "shared memory that was never written, or is still being copied to")
        writer = self._writer[touched]
        refuse((writer != _NOBODY) & (writer != warps), "a race: another warp wrote here since the barrier")
        reader = self._reader[touched]
        self._reader[touched] = np.where((reader == _NOBODY) | (reader == warps), warps, _SEVERAL)
        # Of several warps that read one byte in one instruction the last one remains.
        several = self._reader[touched] != warps
        self._reader[touched[several]] = _SEVERAL

    def put(self, places: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        touched, warps = _touched(places, values.shape[1]), threads.warps[:, None]
        self._claim(touched, warps, ~self.written[touched] | (self.bytes[touched] != values))
        self.bytes[touched], self.written[touched] = values, True
        if (self.bytes[touched] != values).any():
            self._agree(touched, values, threads.warps)

    def _agree(self, touched: Places, values: NDArray[np.uint8], warps: Places) -> None:
        """Of a warp's threads one that writes to a byte succeeds; all warps have to come to the same."""
        found = np.empty_like(values)
        for warp in np.unique(warps):
            own = warps == warp
            self.bytes[touched[own]] = values[own]
            found[own] = self.bytes[touched[own]]
        refuse(self.bytes[touched] != found, "a race: another warp writes something else here")

    def _claim(self, touched: Places, warps: Places, changed: Flags) -> None:
        for others, did in ((self._reader[touched], "read"), (self._writer[touched], "wrote")):
            raced = changed & (others != _NOBODY) & (others != warps)
            refuse(raced, f"a race: another warp {did} here since the barrier")
        self._writer[touched] = np.broadcast_to(warps, touched.shape)

    def begin_copy(self, addresses: Places, size: int, threads: Threads) -> None:
        """From now on until ``end_copy`` the bytes may be anything."""
        touched = _touched(self.places(addresses, size, threads), size)
        self._claim(touched, threads.warps[:, None], np.ones(touched.shape, bool))
        self.written[touched] = False

    def end_copy(self, addresses: Places, values: NDArray[np.uint8], threads: Threads) -> None:
        self.put(self.places(addresses, values.shape[1], threads), values, threads)


def _touched(places: Places, size: int) -> Places:
    return places[:, None] + np.arange(size)
