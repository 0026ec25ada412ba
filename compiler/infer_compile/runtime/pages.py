"""Pages: two pools of fixed-size pages, and the page table of each sequence.

A sequence reserves its worst case when it is admitted, so that it never runs out later: every page of its
compressed form, and the exact pages that a single new token needs at any point. A prefill chunk may need
more exact pages for the length of one step; it takes them from what nobody has reserved, and is cut to that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .errors import InferCompileError, Problem
from .formats.kv import CacheLayout
from .formats.program import Limits
from .step import Int32

ABSENT = -1


def broken(message: str) -> InferCompileError:
    """The page accounting contradicts itself: a defect of this program, never of a request."""
    return InferCompileError(
        Problem(
            "IC505", message, because="the page accounting is broken", fix="restart and report this message"
        )
    )


class Pool:
    """The free pages of one pool."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.free = list(range(size - 1, -1, -1))

    @property
    def used(self) -> int:
        return self.size - len(self.free)

    def take(self) -> int:
        if not self.free:
            raise broken(f"the {self.name} pool of {self.size} pages ran out")
        return self.free.pop()

    def give(self, page: int) -> None:
        self.free.append(page)

    def check(self, held: Iterable[int]) -> None:
        """Every page is free or held exactly once; raises IC505."""
        pages = sorted([*self.free, *held])
        if pages != list(range(self.size)):
            raise broken(f"the {self.name} pool has {self.size} pages, but {len(pages)} are free or held")


class PageTable:
    """Where one sequence's pages lie; entry p is the pool page of its page p, or -1."""

    __slots__ = (
        "exact",
        "exact_held",
        "exact_reserved",
        "packed",
        "packed_held",
        "packed_reserved",
        "passed",
        "sealed",
    )

    def __init__(self, pages: int, exact_reserved: int, packed_reserved: int, first_released: int) -> None:
        self.exact: Int32 = np.full(pages, ABSENT, np.int32)
        self.packed: Int32 = np.full(pages, ABSENT, np.int32)
        self.exact_reserved = exact_reserved
        self.packed_reserved = packed_reserved
        self.exact_held = 0
        self.packed_held = 0
        self.sealed = 0
        """Pages whose tokens are all cached and accepted."""
        self.passed = first_released
        """Exact pages before this one, sinks aside, are given back."""


class Pages:
    """Both pools of an engine and every open page table."""

    def __init__(self, layout: CacheLayout, limits: Limits) -> None:
        self.layout = layout
        self.exact = Pool("exact", limits.exact_pages)
        self.packed = Pool("packed", limits.packed_pages)
        self.tables: set[PageTable] = set()

    def _exact_need(self, tokens: int) -> int:
        """Exact pages that a sequence of ``tokens`` holds at most while it gains one token per step."""
        pages = self.layout.pages(tokens)
        if not self.layout.compressed:
            return pages
        return min(pages, self.layout.sink_pages + self.layout.recent_pages + 1)

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that fits when it is alone."""
        layout = self.layout
        all_exact = self.exact.size * layout.page_tokens
        if not layout.compressed:
            return all_exact
        all_packed = (self.packed.size + layout.sink_pages + 1) * layout.page_tokens - 1
        moving = self.exact.size > layout.sink_pages + layout.recent_pages
        return all_packed if moving else min(all_packed, all_exact)

    @property
    def usage(self) -> float:
        """Share of the cache's bytes that is handed out, 0 to 1."""
        sizes = ((self.exact, self.layout.exact_page_bytes), (self.packed, self.layout.packed_page_bytes))
        total = sum(pool.size * size for pool, size in sizes)
        return sum(pool.used * size for pool, size in sizes) / total if total else 0.0

    def _unreserved(self) -> tuple[int, int]:
        """Exact and packed pages that no open table has claim to."""
        exact = sum(max(table.exact_reserved, table.exact_held) for table in self.tables)
        packed = sum(table.packed_reserved for table in self.tables)
        return self.exact.size - exact, self.packed.size - packed

    def open(self, tokens: int) -> PageTable | None:
        """A table for a sequence that caches up to ``tokens`` tokens; None while others hold its pages."""
        exact, packed = self._exact_need(tokens), self.layout.packed_pages(tokens)
        free_exact, free_packed = self._unreserved()
        if exact > free_exact or packed > free_packed:
            return None
        table = PageTable(self.layout.pages(tokens), exact, packed, self.layout.sink_pages)
        self.tables.add(table)
        return table

    def room(self, table: PageTable, start: int, count: int) -> int:
        """How many of ``count`` new tokens at ``start`` can be cached in this step; at least one page's."""
        spare, _ = self._unreserved()
        claim = max(0, table.exact_reserved - table.exact_held) + spare
        fresh = self.layout.pages(start)
        return min(count, (fresh + claim) * self.layout.page_tokens - start)

    def prepare(self, table: PageTable, start: int, count: int, accepted: int) -> None:
        """Hands out what a step writes: ``count`` new tokens at ``start``, ``accepted`` of them certain."""
        layout = self.layout
        for page in range(start // layout.page_tokens, layout.pages(start + count)):
            if table.exact[page] == ABSENT:
                table.exact[page] = self.exact.take()
                table.exact_held += 1
        for page in range(table.sealed, (start + accepted) // layout.page_tokens):
            if layout.packs(page) and table.packed[page] == ABSENT:
                table.packed[page] = self.packed.take()
                table.packed_held += 1

    def commit(self, table: PageTable, tokens: int) -> None:
        """``tokens`` tokens are cached and accepted: seals their full pages, and gives back the exact pages
        that no later query sees exactly."""
        table.sealed = tokens // self.layout.page_tokens
        while table.passed < table.sealed and not self.layout.exact(table.sealed, table.passed):
            self.exact.give(int(table.exact[table.passed]))
            table.exact[table.passed] = ABSENT
            table.exact_held -= 1
            table.passed += 1

    def close(self, table: PageTable) -> None:
        """Gives everything back."""
        self.tables.remove(table)
        for pool, pages in ((self.exact, table.exact), (self.packed, table.packed)):
            for page in pages[pages != ABSENT]:
                pool.give(int(page))

    def check(self) -> None:
        """Raises IC505 unless every page is free or in exactly one table, and no reservation is overdrawn."""
        for pool, held in (
            (self.exact, [table.exact for table in self.tables]),
            (self.packed, [table.packed for table in self.tables]),
        ):
            pool.check(int(page) for pages in held for page in pages[pages != ABSENT])
        for table in self.tables:
            counted = tuple(int(np.count_nonzero(pages != ABSENT)) for pages in (table.exact, table.packed))
            if counted != (table.exact_held, table.packed_held):
                raise broken(
                    f"a page table holds {counted} pages, but counts {table.exact_held, table.packed_held}"
                )
        if min(self._unreserved()) < 0:
            raise broken("more pages are reserved than there are")
