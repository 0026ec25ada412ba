"""Pages: two pools of fixed-size pages, and the page table of each sequence.

Nothing is reserved: a sequence takes pages as it grows, and whoever schedules sees to it that there are some
(``room``, ``fits``).

A table whose pages have names (prefix.py) shares its full pages with every other of the same beginning, as
long as they are held and for as long after as nobody needs them. What is shared is never written: the page
under way is always the sequence's own.

A new sequence may go on behind a page border only where all that a query there sees is still held in the form
in which it sees it: the pages before it compressed, and exactly the sinks and the ``recent_pages`` before the
border. Of a compressed cache most exact pages are of no use to anybody once their sequence has passed them;
they keep their names only at the borders where others are likely to go on: behind a prompt, behind what was
computed when a sequence ended, and where a prompt parted from what was known, so that the next one that
parts there goes on from there. Such a border costs ``recent_pages`` exact pages, and the sinks once for all
that begin with them, while the pool has them to spare; nobody waits for a page that is only kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import InferCompileError, Problem
from .formats.paging import Paging
from .formats.program import Limits
from .pool import ABSENT, ALL, Holding, Pool, broken
from .prefix import PageNames


class PageTable:
    """Where one sequence's pages lie in both forms, and how far it is."""

    __slots__ = ("behind", "borders", "evicted", "exact", "names", "packed", "passed", "sealed", "tokens")

    def __init__(self, exact: Holding, packed: Holding, sinks: int, names: PageNames | None) -> None:
        self.exact = exact
        self.packed = packed
        self.names = names
        """Of its full pages; whoever adds tokens adds names. None shares nothing."""
        self.borders: tuple[int, ...] = ()
        """Pages before which the exact tail keeps its name."""
        self.tokens = 0
        """Tokens that are cached and accepted."""
        self.sealed = 0
        """Pages that are compressed, where they are, and named."""
        self.passed = sinks
        """Exact pages before this one, sinks aside, are given back."""
        self.behind = 0
        """Pages before this one lie before the window that all layers share."""
        self.evicted = 0
        """Tokens dropped behind the sinks."""

    @property
    def holdings(self) -> tuple[Holding, Holding]:
        return self.exact, self.packed


class Pages:
    """Both pools of an engine and every open page table.

    Raises InferCompileError IC510 where sequences go on without what they evict, and the context has no room
    for more than sinks.
    """

    def __init__(self, layout: Paging, limits: Limits) -> None:
        self.layout = layout
        self.exact = Pool("exact", limits.exact_pages)
        self.packed = Pool("packed", limits.packed_pages)
        self.tables: set[PageTable] = set()
        self.capacity = self._capacity(limits.max_context)
        """Tokens of the longest sequence that fits when it is alone."""
        evicts = limits.overflow == "evict"
        self.context_pages = self.capacity // layout.page_tokens if evicts else ALL
        """Most pages of one sequence; what is older is evicted."""
        if self.context_pages < layout.sink_pages + 2:
            raise _no_room(layout, self.capacity)

    def _capacity(self, most: int) -> int:
        fits, fails = 0, most + 1
        while fails - fits > 1:
            tokens = (fits + fails) // 2
            held = self.layout.exact_pages(tokens), self.layout.packed_pages(tokens)
            fit = held[0] <= self.exact.size and held[1] <= self.packed.size
            fits, fails = (tokens, fails) if fit else (fits, tokens)
        return fits

    @property
    def usage(self) -> float:
        """Share of the cache's bytes that sequences hold, 0 to 1."""
        sizes = ((self.exact, self.layout.exact_page_bytes), (self.packed, self.layout.packed_page_bytes))
        total = sum(pool.size * size for pool, size in sizes)
        return sum(pool.used * size for pool, size in sizes) / total if total else 0.0

    def open(self, names: PageNames | None = None, tokens: int = 0) -> PageTable:
        """A table for a new sequence. If the ``names`` of the whole pages of its ``tokens`` tokens are told,
        it begins behind as many of them as are still held, all but the last token at most
        (``PageTable.tokens`` says how many)."""
        table = PageTable(Holding(self.exact), Holding(self.packed), self.layout.sink_pages, names)
        if names is not None:
            most, held = self.most_held(tokens), self.held(names, tokens)
            known = held
            while known < most and self._known(names, known):
                known += 1
            table.borders = (most, known)
            if held:
                self._begin(table, names, held)
        self.tables.add(table)
        return table

    def most_held(self, tokens: int) -> int:
        """Behind how many pages a sequence of ``tokens`` tokens may begin: one token is left to compute."""
        return self._whole(max(0, tokens - 1))

    def held(self, names: PageNames, tokens: int) -> int:
        """Behind how many of the pages of ``names`` a sequence of ``tokens`` tokens can begin now."""
        pages = self.most_held(tokens)
        while pages:
            last = pages - 1
            if self._found(names, pages, last):
                seen = reversed(self._seen(pages))
                missing = next((page for page in seen if not self._found(names, pages, page)), ABSENT)
                if missing == ABSENT:
                    return pages
                last = missing
            # Whoever goes on behind the missing page and before this border misses it as well.
            pages = last
        return 0

    def _found(self, names: PageNames, query: int, page: int) -> bool:
        """Whether there is all of ``page`` that a sequence at the border before page ``query`` needs."""
        name = names[page]
        return (not self.layout.exact(query, page) or self.exact.find(name) is not None) and (
            not self.layout.packs(page) or self.packed.find(name) is not None
        )

    def _known(self, names: PageNames, page: int) -> bool:
        """Whether there is ``page`` in the form that lasts."""
        pool = self.packed if self.layout.packs(page) else self.exact
        return pool.find(names[page]) is not None

    def _seen(self, pages: int) -> list[int]:
        """Those of the first ``pages`` pages that a token behind them sees."""
        layout, tokens = self.layout, pages * self.layout.page_tokens
        gap = self._gap(pages) * layout.page_tokens
        return layout.seen(tokens, pages - 1, gap, layout.window)

    def _begin(self, table: PageTable, names: PageNames, pages: int) -> None:
        """The first ``pages`` pages of ``table`` are those with ``names``."""
        table.tokens, table.sealed = pages * self.layout.page_tokens, pages
        self.evict(table, table.tokens)
        self._pass(table)
        for holding in table.holdings:
            holding.reach(pages)
        for page in self._seen(pages):
            place = self.exact.find(names[page])
            if self.layout.exact(pages, page) and place is not None:
                table.exact.share(page, place)
            place = self.packed.find(names[page])
            if self.layout.packs(page) and place is not None:
                table.packed.share(page, place)

    def fits(self, wanted: Iterable[tuple[PageTable, int]]) -> bool:
        """Whether all of these tables can come to hold so many tokens, token by token, with what is free now.
        Pages that they share with others and give back on their way are not counted twice: who shares may
        still run out."""
        exact, packed = len(self.exact.free), len(self.packed.free)
        for table, most in wanted:
            tokens = min(most, self.capacity)
            exact -= max(0, self.layout.exact_pages(tokens) - table.exact.held)
            packed -= max(0, self.layout.packed_pages(tokens) - table.packed.held)
        return exact >= 0 and packed >= 0

    def evict(self, table: PageTable, start: int) -> None:
        """Gives back what a new token at ``start`` must not see any more."""
        if self.context_pages == ALL:
            return
        gap = self._gap(self._whole(start)) * self.layout.page_tokens
        sinks = self.layout.sink_pages
        for page in range(sinks + self._whole(table.evicted), sinks + self._whole(gap)):
            for holding in table.holdings:
                holding.give(page)
        table.evicted = gap
        table.passed = max(table.passed, sinks + self._whole(gap))

    def _whole(self, tokens: int) -> int:
        return tokens // self.layout.page_tokens

    def _gap(self, query_page: int) -> int:
        """Pages behind the sinks that a query in ``query_page`` does not see: of the context's pages its own
        is the last. As all visibility, this depends on the page alone."""
        return max(0, query_page + 1 - self.context_pages)

    def _within(self, table: PageTable, start: int, count: int) -> bool:
        """Whether new tokens at ``start`` neither begin a page nor fill one, and no page that drafts filled
        is still to be sealed: most decodes, of which nothing in the tables changes."""
        offset = start % self.layout.page_tokens
        return 0 < offset < self.layout.page_tokens - count and table.sealed == self._whole(start)

    def room(self, table: PageTable, start: int, count: int, accepted: int | None = None) -> int:
        """How many of ``count`` new tokens at ``start`` can be cached in this step with the pages that are
        free. They are all certain, or only ``accepted`` of them, for which there is room."""
        if self._within(table, start, count):
            return count
        layout = self.layout
        first = layout.pages(start)
        while table.exact.has(first):
            first += 1
        ends = [
            (first + len(self.exact.free)) * layout.page_tokens,
            # All tokens of a step see the same gap.
            max(self.context_pages, self._whole(start) + 1) * layout.page_tokens,
        ]
        if layout.compressed and accepted is None:
            first = max(table.sealed, layout.sink_pages)
            while table.packed.has(first):
                first += 1
            ends.append((first + len(self.packed.free) + 1) * layout.page_tokens - 1)
        elif layout.compressed and accepted is not None:
            # Nobody sees a page compressed before its tokens are certain.
            ends.append((self._whole(start + accepted) + layout.recent_pages + 1) * layout.page_tokens)
        return max(0, min(count, *(end - start for end in ends)))

    def prepare(self, table: PageTable, start: int, count: int, accepted: int) -> None:
        """Hands out what a step writes: ``count`` new tokens at ``start``, ``accepted`` of them certain."""
        if self._within(table, start, count):
            return
        layout = self.layout
        for holding in table.holdings:
            holding.reach(layout.pages(start + count))
        for page in range(self._whole(start), layout.pages(start + count)):
            table.exact.take(page)
        for page in range(table.sealed, self._whole(start + accepted)):
            if layout.packs(page):
                table.packed.take(page)

    def commit(self, table: PageTable, tokens: int, drafted: int = 0) -> None:
        """``tokens`` tokens are cached and accepted, the last ``drafted`` of them since the step: names the
        pages that the step sealed, and gives back the exact pages that no later query sees exactly, and what
        no layer sees at all."""
        within = self._within(table, table.tokens, tokens - table.tokens)
        table.tokens = tokens
        if within and self.layout.window is None:
            return
        sealed = self._whole(tokens - drafted)
        if table.names is not None:
            for page in range(table.sealed, min(sealed, len(table.names))):
                self._call(table, page, table.names[page])
        table.sealed = max(table.sealed, sealed)
        self._pass(table)

    def _call(self, table: PageTable, page: int, name: bytes) -> None:
        layout = self.layout
        if layout.packs(page):
            table.packed.call(page, name)
        tail = any(border - layout.recent_pages <= page < border for border in table.borders)
        if tail or page < layout.sink_pages or not layout.compressed:
            table.exact.call(page, name)

    def _pass(self, table: PageTable) -> None:
        """Gives back what no query behind the tokens of ``table`` sees."""
        layout, tokens = self.layout, table.tokens
        query = self._whole(tokens)
        while table.passed < table.sealed and not layout.exact(query, table.passed):
            table.exact.give(table.passed)
            table.passed += 1
        first = layout.first_page(tokens, layout.window)
        # Sinks are seen as from the context's last page at most.
        last = min(tokens, (self.context_pages - 1) * layout.page_tokens)
        sinks = layout.first_page(last, layout.window)
        for page in range(table.behind, first):
            if page < sinks or page >= layout.sink_pages:
                for holding in table.holdings:
                    holding.give(page)
        table.behind = first

    def close(self, table: PageTable) -> None:
        """Gives everything back that nobody else holds. The exact tail keeps its name, and the end of a
        sequence is forgotten before its beginning."""
        self.tables.remove(table)
        named = 0 if table.names is None else min(len(table.names), self._whole(table.tokens))
        for holding in table.holdings:
            for page in reversed(holding.pages()):
                if table.names is not None and page < named and holding is table.exact:
                    holding.call(page, table.names[page])
                holding.give(page)

    def check(self) -> None:
        """Raises IC505 unless every page is free or held by the tables that it counts."""
        for pool in (self.exact, self.packed):
            holdings = [
                holding for table in self.tables for holding in table.holdings if holding.pool is pool
            ]
            pool.check(place for holding in holdings for place in holding.held_places())
            for holding in holdings:
                counted = len(holding.pages())
                if counted != holding.held:
                    raise broken(f"a page table holds {counted} {pool.name} pages, but counts {holding.held}")


def _no_room(layout: Paging, capacity: int) -> InferCompileError:
    least = (layout.sink_pages + 2) * layout.page_tokens
    return InferCompileError(
        Problem(
            "IC510",
            "sequences cannot go on without their oldest tokens",
            because=f"the cache has room for {capacity} tokens of one, and the first ones, which stay, with "
            f"two pages behind them take {least}",
            fix="give the cache more pages, or build with serving.overflow: stop",
        )
    )
