"""Who touched which byte of a memory: races."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Flags = NDArray[np.bool_]
_NOBODY, _SEVERAL = -1, -2


class Offence(Exception):
    """``why`` thread number ``index`` of an access must not do what it does."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index, self.why = index, why


def refuse(wrong: Flags, why: str) -> None:
    if wrong.any():
        raise Offence(int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))[0]), why)


class Watch:
    """Who read and who wrote each byte of a memory: two of them at one byte, one of them changing it, is an
    offence, for who is first is chance. ``race`` tells of it with a gap for what the other one did."""

    def __init__(self, size: int, race: str) -> None:
        self._race = race
        self._writer = np.full(size, _NOBODY, np.int32)
        self._reader = np.full(size, _NOBODY, np.int32)

    def settle(self, own: slice) -> None:
        """Whatever was done there was before what will be."""
        self._writer[own] = self._reader[own] = _NOBODY

    def settle_groups(self, groups: Flags, size: int) -> None:
        """The same for all that some groups of ``size`` neighbours did."""
        # Nobody is of no group.
        chosen = np.append(groups, False)
        for touched in (self._writer, self._reader):
            group = np.where(touched >= 0, touched // size, _SEVERAL - touched)
            touched[chosen[group]] = _NOBODY

    def read(self, touched: Places, by: Places, groups: Places | None = None) -> None:
        """Bytes [threads, bytes] by whom [threads], and of what groups."""
        by = by[:, None]
        many = np.broadcast_to(_SEVERAL if groups is None else _SEVERAL - groups[:, None], touched.shape)
        self._refuse(self._writer[touched], by, True, "wrote")
        reader = self._reader[touched]
        self._reader[touched] = np.where((reader == _NOBODY) | (reader == by), by, many)
        # Of several that read one byte in one instruction the last one remains.
        several = self._reader[touched] != by
        self._reader[touched[several]] = many[several]

    def write(self, touched: Places, by: Places, changed: Flags) -> None:
        by = by[:, None]
        self._refuse(self._reader[touched], by, changed, "read")
        self._refuse(self._writer[touched], by, changed, "wrote")
        self._writer[touched] = np.broadcast_to(by, touched.shape)

    def put(self, bytes_: NDArray[np.uint8], touched: Places, values: NDArray[np.uint8], by: Places) -> None:
        """Of one writer's threads that write to a byte one succeeds; all writers have to come to the same."""
        bytes_[touched] = values
        if not (bytes_[touched] != values).any():
            return
        found = np.empty_like(values)
        for writer in np.unique(by):
            own = by == writer
            bytes_[touched[own]] = values[own]
            found[own] = bytes_[touched[own]]
        refuse(bytes_[touched] != found, self._said("writes something else"))

    def _refuse(self, others: NDArray[np.int32], by: Places, changed: Flags | bool, did: str) -> None:
        refuse(changed & (others != _NOBODY) & (others != by), self._said(did))

    def _said(self, did: str) -> str:
        return "a race: " + self._race.format(did)
