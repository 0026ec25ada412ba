"""Sequences with a beginning in common answer as sequences of their own, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from driver import reference
from tree import Tree

from infer_compile.runtime.formats.kv import LevelName

TEXT = np.random.default_rng(9).integers(0, 97, 90).tolist()
TURNS = (TEXT[50:70], TEXT[60:85])


@pytest.mark.parametrize("level", ["bf16", "tq3", "k8v4"])
@pytest.mark.parametrize("name", ["qwen2", "mistral-window"])
@pytest.mark.parametrize("shared", [48, 45])
def test_branches_share_what_they_have_in_common(level: LevelName, name: str, shared: int) -> None:
    tree = Tree(reference(level, name))
    size = tree.engine.program.cache.page_tokens
    trunk = tree.open(TEXT[:shared])
    tree.feed(trunk, TEXT[:shared])
    tree.pages.close(trunk.table)
    assert tree.pages.usage == 0
    branches = [tree.open([*TEXT[:shared], *turn]) for turn in TURNS]
    used = tree.pages.exact.used, tree.pages.packed.used
    held = branches[0].table
    assert used == (held.exact.held, held.packed.held)
    for branch, turn in zip(branches, TURNS, strict=True):
        assert len(branch.tokens) == shared // size * size
        alone = Tree(reference(level, name))
        single = alone.open()
        whole = [*TEXT[:shared], *turn]
        expected = alone.feed(single, whole, rows=True)[len(branch.tokens) :]
        found = tree.feed(branch, whole[len(branch.tokens) :], rows=True)
        np.testing.assert_array_equal(found, expected)
    for table in list(tree.pages.tables):
        tree.pages.close(table)
    tree.pages.check()
    assert tree.pages.usage == 0
