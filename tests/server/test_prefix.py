"""Sequences with a beginning in common: what is shared, what is kept, and what is given up first."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.runtime.prefix import PageNames

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from tree import Branch, Tree

LAYOUTS = [
    {"level": "bf16"},
    {"sink": 1, "recent": 1},
    {"sink": 0, "recent": 2},
    {"sink": 2, "recent": 0},
    {"level": "bf16", "window": 11},
    {"sink": 1, "recent": 1, "window": 21},
    {"sink": 1, "recent": 1, "overflow": "evict", "context": 24},
    {"level": "bf16", "overflow": "evict", "context": 24},
]
PROMPT = np.random.default_rng(3).integers(0, 256, 90).astype(np.int32).tolist()


def planted(**program: object) -> Tree:
    """On an engine that holds every step to the contract: whoever reads a page that is missing, stale or
    somebody else's is caught."""
    return Tree(FakeEngine(tiny_program(**program)))


def grown(tree: Tree, tokens: list[int]) -> tuple[Branch, int]:
    """A sequence of ``tokens``, and how many of them were there."""
    branch = tree.open(tokens)
    found = len(branch.tokens)
    tree.feed(branch, tokens[found:])
    return branch, found


def alone(tokens: list[int], **program: object) -> np.ndarray:
    tree = planted(**program)
    return tree.feed(tree.open(), tokens)[-1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shared", [3, 10, 41, 48])
def test_branches_answer_as_sequences_of_their_own(layout: dict[str, object], shared: int) -> None:
    tree = planted(**layout)
    trunk, _ = grown(tree, PROMPT[:shared])
    branches = [trunk]
    for _ in range(2):
        branches.append(tree.open(PROMPT[:shared]))
        # All but a token at most; who still runs has named what its prompt ends with.
        assert len(branches[-1].tokens) == (shared - 1) // 4 * 4
        tree.feed(branches[-1], PROMPT[len(branches[-1].tokens) : shared])
    for turn in range(0, 20, 5):
        for index, branch in enumerate(branches):
            more = (np.array(PROMPT[shared + turn : shared + turn + 5]) + index).tolist()
            logits = tree.feed(branch, more)
            assert np.array_equal(logits[-1], alone(branch.tokens, **layout))
    for branch in branches:
        tree.pages.close(branch.table)
        tree.pages.check()
    assert tree.pages.usage == 0


def test_full_pages_are_shared_and_the_one_under_way_is_not() -> None:
    tree = planted(sink=1, recent=1)
    trunk, _ = grown(tree, PROMPT[:18])
    before = tree.pages.exact.used, tree.pages.packed.used
    branch, found = grown(tree, PROMPT[:19])
    ours, theirs = branch.table, trunk.table
    assert found == 16
    assert (tree.pages.exact.used, tree.pages.packed.used) == (before[0] + 1, before[1])
    assert ours.packed.places[:4].tolist() == theirs.packed.places[:4].tolist()
    # The sink and the recent page.
    assert ours.exact.places[[0, 3]].tolist() == theirs.exact.places[[0, 3]].tolist()
    assert ours.exact.places[4] != theirs.exact.places[4]
    assert [tree.pages.packed.holders[place] for place in ours.packed.places[1:4]] == [2, 2, 2]


def test_the_same_pages_written_side_by_side_become_one() -> None:
    tree = planted(sink=1, recent=1)
    first, second = tree.open(PROMPT[:20]), tree.open(PROMPT[:20])
    for branch in (first, second):
        tree.feed(branch, PROMPT[:20])
    assert first.table.packed.places[1:5].tolist() == second.table.packed.places[1:5].tolist()
    assert tree.pages.packed.used == 4
    for branch in (first, second):
        assert np.array_equal(tree.feed(branch, [1, 2])[-1], alone([*PROMPT[:20], 1, 2], sink=1, recent=1))


def test_one_token_at_least_is_computed() -> None:
    tree = planted(sink=1, recent=1)
    tree.pages.close(grown(tree, PROMPT[:24])[0].table)
    assert [len(tree.open(PROMPT[:count]).tokens) for count in (23, 24, 25)] == [20, 20, 24]


@pytest.mark.parametrize(
    "layout", [{"sink": 1, "recent": 2}, {"sink": 0, "recent": 1}, {"sink": 1, "recent": 0}]
)
def test_a_prompts_end_and_an_answers_end_are_kept(layout: dict[str, object]) -> None:
    tree = planted(**layout)
    trunk, _ = grown(tree, PROMPT[:22])
    tree.feed(trunk, PROMPT[22:60])
    tree.pages.close(trunk.table)
    assert tree.pages.usage == 0
    for tokens, expected in ((PROMPT[:22], 20), (PROMPT[:70], 60), ([*PROMPT[:21], 9, 9], 20)):
        branch, found = grown(tree, tokens)
        assert found == expected
        tree.pages.close(branch.table)


def test_where_a_second_request_parts_a_third_goes_on() -> None:
    tree = planted(sink=1, recent=2, exact_pages=60)
    others = [[*PROMPT[:50], *([turn] * 12)] for turn in range(4)]
    found = []
    for tokens in others:
        branch, held = grown(tree, tokens)
        found.append(held)
        tree.pages.close(branch.table)
    assert found == [0, 4, 48, 48]  # at first only the sink
    exact = planted(level="bf16")
    assert [grown(exact, tokens)[1] for tokens in others] == [0, 48, 48, 48]


def test_other_salt_shares_nothing() -> None:
    tree = planted()
    tree.pages.close(grown(tree, PROMPT[:40])[0].table)
    for salt, expected in (("", 36), ("somebody", 0)):
        names = PageNames(4, salt)
        names.reach(np.array(PROMPT[:40], np.int32))
        table = tree.pages.open(names, 40)
        assert table.tokens == expected
        tree.pages.close(table)


def test_names_depend_on_every_token_before() -> None:
    tokens = np.array(PROMPT[:12], np.int32)
    names, other = PageNames(4), PageNames(4)
    names.reach(tokens[:7])
    names.reach(tokens)
    other.reach(np.concatenate([[tokens[0] ^ 1], tokens[1:]]).astype(np.int32))
    assert len(set(names) | set(other)) == 6


def test_what_nobody_used_for_longest_is_given_up_first_and_ends_before_beginnings() -> None:
    """Twelve compressed pages; each prompt leaves five (the sink is exact)."""
    tree = planted(sink=1, recent=1, packed_pages=12, exact_pages=40)
    old, new = PROMPT[:24], PROMPT[40:64]
    for tokens in (old, new, old):
        tree.pages.close(grown(tree, tokens)[0].table)
    assert len(tree.pages.packed.free) == 12
    third, _ = grown(tree, PROMPT[70:86])  # takes three: the two never used, and the last of ``new``
    tree.pages.close(third.table)
    assert len(tree.open(old).tokens) == 20
    assert len(tree.open(new).tokens) == 20  # the prompt's end; its last page is behind it
    tree.pages.check()


def test_pages_without_a_name_go_first() -> None:
    """A long prompt leaves its exact pages unnamed but for the ends: those of others stay."""
    tree = planted(sink=1, recent=1, exact_pages=12, packed_pages=60)
    tree.pages.close(grown(tree, PROMPT[:24])[0].table)
    tree.pages.close(grown(tree, [7, *PROMPT])[0].table)
    assert len(tree.open(PROMPT[:24]).tokens) == 20


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    exact=st.integers(8, 60),
    packed=st.integers(8, 40),
    seed=st.integers(0, 2**32),
)
def test_any_order_of_beginnings_and_ends_keeps_the_accounts(
    layout: dict[str, object], exact: int, packed: int, seed: int
) -> None:
    order = random.Random(seed)
    tree = planted(**layout, exact_pages=exact, packed_pages=packed)
    pages = tree.pages
    evicts = tree.engine.program.limits.overflow == "evict"
    longest = 60 if evicts else min(60, pages.capacity)
    texts = [PROMPT[:60], [*PROMPT[:17], *PROMPT[20:63]], PROMPT[30:90]]
    growing: list[tuple[Branch, list[int]]] = []
    for _ in range(80):
        action = order.choice(["open", "feed", "feed", "feed", "close"])
        if action == "open":
            text = order.choice(texts)[: order.randint(1, longest)]
            growing.append((tree.open(text), text))
        elif action == "feed" and growing:
            branch, text = order.choice(growing)
            done = len(branch.tokens)
            pages.evict(branch.table, done)
            count = pages.room(branch.table, done, min(order.randint(1, 9), len(text) - done))
            if count:
                tree.feed(branch, text[done : done + count])
        elif action == "close" and growing:
            pages.close(growing.pop(order.randrange(len(growing)))[0].table)
        pages.check()
    for branch, _ in growing:
        pages.close(branch.table)
    pages.check()
    assert pages.usage == 0
