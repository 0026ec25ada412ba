"""The pages of one pool, and those of it that a sequence holds.

Pages are counted, since sequences with a beginning in common hold some of them together. A page that is full
may be given a name, which tells what it holds. A page that nobody holds is free, but keeps its content and
its name until it is handed out again: the free pages are the cache of prefixes, and there is no other. Pages
without a name are handed out first, then those that were not used for longest.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

import numpy as np

from .errors import InferCompileError, Problem
from .step import Int32

ABSENT = -1
ALL = sys.maxsize


def broken(message: str) -> InferCompileError:
    """The page accounting contradicts itself: a defect of this program, never of a request."""
    return InferCompileError(
        Problem(
            "IC505", message, because="the page accounting is broken", fix="restart and report this message"
        )
    )


class Pool:
    """How many sequences hold each page of one pool, which are free, and which have a name."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))
        """In the order in which they are handed out."""
        self.holders = [0] * size
        self._names: list[bytes | None] = [None] * size
        self._places: dict[bytes, int] = {}

    @property
    def used(self) -> int:
        return self.size - len(self.free)

    def take(self) -> int:
        """A free page for one sequence; what it held is forgotten."""
        if not self.free:
            raise broken(f"the {self.name} pool of {self.size} pages ran out")
        place, _ = self.free.popitem(last=False)
        name = self._names[place]
        if name is not None:
            del self._places[name]
            self._names[place] = None
        self.holders[place] = 1
        return place

    def share(self, place: int) -> None:
        """One more sequence holds ``place``."""
        if not self.holders[place]:
            del self.free[place]
        self.holders[place] += 1

    def give(self, place: int) -> None:
        """A sequence no longer holds ``place``."""
        self.holders[place] -= 1
        if not self.holders[place]:
            self.free[place] = None
            if self._names[place] is None:
                self.free.move_to_end(place, last=False)

    def call(self, place: int, name: bytes) -> int:
        """The page with ``name``: ``place`` from now on, unless another has it."""
        found = self._places.setdefault(name, place)
        if found == place:
            self._names[place] = name
        return found

    def find(self, name: bytes) -> int | None:
        """The page with ``name``, if it still holds what the name tells."""
        return self._places.get(name)

    def check(self, held: Iterable[int]) -> None:
        """``held`` has each place as often as sequences hold it. Raises IC505 unless every page is free or
        held, as often as it is counted, and names lead to the pages that bear them."""
        found = Counter(held)
        if len(self.free) + len(found) != self.size or not found.keys().isdisjoint(self.free):
            count = len(self.free) + len(found)
            raise broken(f"the {self.name} pool has {self.size} pages, but {count} are free or held")
        counted = all(self.holders[place] == count for place, count in found.items())
        if not counted or sum(self.holders) != found.total():
            raise broken(f"the {self.name} pool counts other holders of its pages than there are")
        named = sum(name is not None for name in self._names)
        if named != len(self._places) or any(
            self._names[place] != name for name, place in self._places.items()
        ):
            raise broken(f"the {self.name} pool has pages by other names than their own")


class Holding:
    """The pages of one form that a sequence holds: its page p lies at ``places[p]``, or -1."""

    __slots__ = ("held", "places", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.places: Int32 = np.empty(0, np.int32)
        self.held = 0

    def has(self, page: int) -> bool:
        return page < len(self.places) and bool(self.places[page] != ABSENT)

    def reach(self, pages: int) -> None:
        """Makes the table at least so long."""
        missing = pages - len(self.places)
        if missing > 0:
            more = np.full(max(missing, len(self.places)), ABSENT, np.int32)
            self.places = np.concatenate([self.places, more])

    def take(self, page: int) -> None:
        if self.places[page] == ABSENT:
            self.places[page] = self.pool.take()
            self.held += 1

    def share(self, page: int, place: int) -> None:
        """Holds ``place``, which others may hold too, as its page ``page``."""
        self.pool.share(place)
        self.places[page] = place
        self.held += 1

    def call(self, page: int, name: bytes) -> None:
        """``page`` is full and bears ``name``; a page of that name that others wrote replaces it."""
        own = int(self.places[page])
        place = self.pool.call(own, name)
        if place != own:
            self.pool.share(place)
            self.pool.give(own)
            self.places[page] = place

    def give(self, page: int) -> None:
        if self.has(page):
            self.pool.give(int(self.places[page]))
            self.places[page] = ABSENT
            self.held -= 1

    def pages(self) -> list[int]:
        """The pages that are held, in order."""
        return np.flatnonzero(self.places != ABSENT).tolist()

    def held_places(self) -> Iterator[int]:
        return iter(self.places[self.places != ABSENT].tolist())
