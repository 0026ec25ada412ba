"""Page pools and page tables."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.pages import Pages, PageTable
from infer_compile.runtime.pool import ABSENT
from infer_compile.runtime.prefix import PageNames

LAYOUTS = [
    {"level": "bf16"},
    {"sink": 1, "recent": 1},
    {"sink": 0, "recent": 0},
    {"sink": 2, "recent": 3, "page_tokens": 2},
    {"level": "bf16", "window": 9},
    {"sink": 1, "recent": 1, "window": 21},
    {"sink": 1, "recent": 2, "window": 5},
    {"sink": 2, "recent": 0, "window": 1, "page_tokens": 2},
]


TWO = {"exact_pages": 2, "packed_pages": 0}


def pages_of(**settings: object) -> Pages:
    program = tiny_program(**settings)
    return Pages(program.cache, program.limits)


def held(places: np.ndarray) -> list[int]:
    return np.flatnonzero(places != ABSENT).tolist()


def still_seen(layout: CacheLayout, page: int, done: int, exact: bool) -> bool:
    """By brute force: does any query from position ``done`` on see a token of ``page`` in this form?"""
    last = (page + 1) * layout.page_tokens - 1
    return any(
        layout.exact(position // layout.page_tokens, page) is exact
        for position in range(done, done + 100)
        if layout.window is None or last > position - layout.window
    )


@pytest.mark.parametrize("settings", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 16])
def test_exact_pages_are_kept_exactly_as_long_as_a_later_query_sees_them(
    settings: dict[str, object], chunk: int
) -> None:
    pages = pages_of(**settings)
    layout = pages.layout
    table = pages.open()
    done = 0
    while done < 80:
        count = pages.room(table, done, min(chunk, 80 - done))
        assert count == min(chunk, 80 - done)
        pages.prepare(table, done, count, count)
        first = layout.first_page(done, layout.window)
        done += count
        sealed = [page for page in range(done // layout.page_tokens) if layout.packs(page)]
        assert held(table.packed.places) == [page for page in sealed if page >= first]
        assert table.exact.held <= layout.exact_pages(done, count)
        assert table.packed.held <= layout.packed_pages(done, count)
        pages.commit(table, done)
        expected = [page for page in range(layout.pages(done)) if still_seen(layout, page, done, True)]
        assert held(table.exact.places) == expected
        # A page that will be seen compressed later is packed now.
        seen = [page for page in sealed if still_seen(layout, page, done, False) or page in expected]
        assert held(table.packed.places) == seen
        pages.check()
    pages.close(table)
    pages.check()
    assert pages.usage == 0


@pytest.mark.parametrize("settings", LAYOUTS)
def test_sequences_that_fit_never_run_out_of_pages(settings: dict[str, object]) -> None:
    """Pools of just what is counted: all of it is used up at once, one token at a time."""
    layout = pages_of(**settings).layout
    each = 40
    need = layout.sink_pages + layout.recent_pages + 1 if layout.compressed else layout.pages(each)
    if layout.window is not None:
        need = min(need, 1 + -(-(layout.window - 1) // layout.page_tokens))
    pages = pages_of(**settings, exact_pages=3 * need, packed_pages=3 * layout.packed_pages(each))
    tables = [pages.open() for _ in range(4)]
    assert not pages.fits((table, each) for table in tables)
    pages.close(tables.pop())
    for done in range(each):
        assert pages.fits((table, each) for table in tables)
        for table in tables:
            assert pages.room(table, done, 1) == 1
            pages.prepare(table, done, 1, 1)
            pages.commit(table, done + 1)
        pages.check()
    for table in tables:
        pages.close(table)
    pages.check()


def test_a_chunk_is_cut_to_the_pages_that_are_free() -> None:
    pages = pages_of(page_tokens=4, sink=1, recent=1, exact_pages=7, packed_pages=40)
    first, second = pages.open(), pages.open()
    assert pages.room(first, 0, 60) == 28
    pages.prepare(first, 0, 16, 16)
    assert pages.room(second, 0, 60) == 12
    pages.commit(first, 16)
    assert pages.room(second, 0, 60) == 20  # the first is back at two pages
    pages.prepare(second, 0, 20, 20)
    assert pages.room(first, 16, 1) == 0
    few = pages_of(page_tokens=4, sink=1, recent=1, exact_pages=40, packed_pages=2)
    assert few.room(few.open(), 0, 60) == 15  # the fourth page could not be sealed


def test_guesses_are_cut_where_they_would_see_a_page_that_is_not_sealed() -> None:
    pages = pages_of(page_tokens=4, sink=0, recent=0)
    table = pages.open()
    pages.prepare(table, 0, 6, 6)
    pages.commit(table, 6)
    # In page 2 page 1 is seen compressed, which is not sealed before its last token is certain.
    assert pages.room(table, 6, 8, 1) == 2
    assert pages.room(table, 6, 8, 2) == 6
    exact = pages_of(page_tokens=4, level="bf16")
    assert exact.room(exact.open(), 0, 8, 1) == 8


def test_what_was_guessed_is_sealed_with_the_next_step() -> None:
    pages = pages_of(page_tokens=4, sink=0, recent=1)
    table = pages.open()
    pages.prepare(table, 0, 8, 2)
    pages.commit(table, 7, drafted=5)
    assert (table.tokens, table.sealed, held(table.packed.places)) == (7, 0, [])
    pages.prepare(table, 7, 6, 1)
    assert held(table.packed.places) == [0, 1]
    pages.commit(table, 13, drafted=5)
    # The query's page is 3, which sees page 2 exactly; page 2 is not sealed yet.
    assert (table.sealed, held(table.exact.places)) == (2, [2, 3])
    pages.check()


def test_capacity_is_the_longest_sequence_that_fits() -> None:
    for program in ({}, {"level": "bf16"}, {"exact_pages": 3}, {"exact_pages": 2}, {"packed_pages": 5}, TWO):
        pages = pages_of(**program)
        table, done = pages.open(), 0
        while done < 256 and pages.room(table, done, 1):
            pages.prepare(table, done, 1, 1)
            done += 1
            pages.commit(table, done)
        assert done == pages.capacity


def test_usage_weighs_pages_by_their_bytes() -> None:
    pages = pages_of(exact_pages=10, packed_pages=10)
    table = pages.open()
    pages.prepare(table, 0, 12, 12)
    exact, packed = pages.layout.exact_page_bytes, pages.layout.packed_page_bytes
    assert pages.usage == pytest.approx((3 * exact + 2 * packed) / (10 * exact + 10 * packed))


def test_the_check_finds_a_lost_a_doubled_and_a_miscounted_page() -> None:
    def lose(pages: Pages, table: PageTable) -> None:
        pages.exact.free.popitem()

    def double(pages: Pages, table: PageTable) -> None:
        pages.packed.give(int(table.packed.places[1]))

    def hide(pages: Pages, table: PageTable) -> None:
        pages.packed.holders[int(table.packed.places[1])] += 1

    def miscount(pages: Pages, table: PageTable) -> None:
        table.exact.held += 1

    def rename(pages: Pages, table: PageTable) -> None:
        pages.packed.call(int(table.packed.places[1]), b"other")

    for spoil in (lose, double, hide, miscount, rename):
        pages = pages_of()
        names = PageNames(4)
        names.reach(np.arange(12, dtype=np.int32))
        table = pages.open(names)
        pages.prepare(table, 0, 12, 12)
        pages.commit(table, 12)
        pages.check()
        spoil(pages, table)
        with pytest.raises(InferCompileError, match="IC505"):
            pages.check()


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    exact=st.integers(1, 40),
    packed=st.integers(0, 40),
    wanted=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_any_interleaving_keeps_the_accounts(
    layout: dict[str, object], exact: int, packed: int, wanted: list[int], order: object
) -> None:
    pages = pages_of(**layout, exact_pages=exact, packed_pages=packed)
    under_way: dict[PageTable, tuple[int, int]] = {}
    while wanted or under_way:
        if wanted and (not under_way or order.random() < 0.4):
            tokens = wanted.pop()
            if tokens > pages.capacity:
                continue
            table = pages.open()
            others = [(other, most) for other, (_, most) in under_way.items()]
            if not pages.fits([(table, tokens), *others]):
                pages.close(table)
                assert under_way
                wanted.append(tokens)
            else:
                under_way[table] = (0, tokens)
                continue
        table = order.choice(list(under_way))
        done, tokens = under_way[table]
        if done == tokens or order.random() < 0.05:
            pages.close(table)
            del under_way[table]
        else:
            count = pages.room(table, done, min(tokens - done, order.randint(1, 30)))
            assert count >= 1
            pages.prepare(table, done, count, count)
            pages.commit(table, done + count)
            under_way[table] = (done + count, tokens)
        pages.check()
    assert pages.usage == 0
