"""Which threads do something."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .watch import Flags, Places

WARP = 32


class Mask:
    """Which threads do something."""

    def __init__(self, flags: Flags) -> None:
        self.flags, self.full = flags, bool(flags.all())

    @cached_property
    def lanes(self) -> Places:
        return np.flatnonzero(self.flags)

    @cached_property
    def warps(self) -> int:
        """How many have a thread that does."""
        return int(np.count_nonzero(self.flags.reshape(-1, WARP).any(axis=1)))

    @cached_property
    def bits(self) -> NDArray[np.uint32]:
        """Of each thread's warp, who does."""
        words = self.flags.reshape(-1, WARP) @ (np.uint64(1) << np.arange(WARP, dtype=np.uint64))
        return np.repeat(words.astype(np.uint32), WARP)
