"""Pages that no layer sees any more are given back, and nothing changes."""

from __future__ import annotations

import families
import numpy as np
import pytest
from driver import Driver
from tree import Tree

from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.kv import LevelName, shared_window
from infer_compile.runtime.formats.program import Program

LONG = np.random.default_rng(11).integers(0, 97, 120).tolist()
LEVELS: tuple[LevelName, ...] = ("bf16", "tq3")


def engine(level: LevelName, window: int, freed: bool) -> ReferenceEngine:
    module = families.model("mistral-window", sliding_window=window)
    program = families.program(families.graph(module), level=level)
    assert program.cache.window == window
    cache, limits = program.cache, program.limits
    if freed:
        # No page more than one sequence needs: what is given back is written again at once.
        pools = {
            "exact_pages": cache.exact_pages(len(LONG)),
            "packed_pages": cache.packed_pages(len(LONG)),
        }
        program = program.model_copy(update={"limits": limits.model_copy(update=pools)})
    else:
        program = program.model_copy(update={"cache": cache.model_copy(update={"window": None})})
    return ReferenceEngine(program, families.loader(module.state_dict()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("window", [5, 24, 41])
def test_a_long_text_is_read_as_if_everything_were_kept(level: LevelName, window: int) -> None:
    freed, kept = Tree(engine(level, window, True)), Driver(engine(level, window, False))
    branch, found = freed.open(), []
    expected, _ = kept.run(LONG, [len(LONG)])
    for start in range(0, len(LONG), 7):
        found.append(freed.feed(branch, LONG[start : start + 7], chunk=7, rows=True))
        size = freed.engine.program.cache.page_tokens
        # The window, a page that it straddles, and the one that the next token will need.
        assert branch.table.exact.held <= -(-window // size) + 2
        assert branch.table.packed.held <= -(-window // size) + 2
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert freed.engine.program.limits.exact_pages < kept.engine.program.cache.pages(len(LONG))


def test_a_layer_that_sees_everything_keeps_everything() -> None:
    assert shared_window([7, 5, 7]) == 7
    assert shared_window([7, None]) is None
    assert shared_window([None]) is None
    assert shared_window([]) is None
    for name, window in (("qwen2-windows-above", None), ("mistral-window", 7), ("qwen2", None)):
        assert families.program(families.graph(families.model(name))).cache.window == window


@pytest.mark.parametrize("compressed", [False, True])
def test_pages_are_counted_for_the_worst_place_of_a_window(compressed: bool) -> None:
    """Token by token: no sequence ever holds more than the layout counts, and some hold as much."""
    level: LevelName = "tq3" if compressed else "bf16"
    program: Program = families.program(
        families.graph(families.model("mistral-window", sliding_window=19)), level=level
    )
    cache = program.cache
    for chunk in (1, 5, 8, 30):
        tree = Tree(_Blank(program))
        branch, most = tree.open(), (0, 0)
        while len(branch.tokens) < 300:
            start, pages = len(branch.tokens), tree.pages
            count = pages.room(branch.table, start, min(chunk, 300 - start))
            pages.prepare(branch.table, start, count, count)
            held = branch.table.exact.held, branch.table.packed.held
            most = max(most[0], held[0]), max(most[1], held[1])
            branch.tokens += [0] * count
            pages.commit(branch.table, len(branch.tokens))
        assert most[1] == cache.packed_pages(300, chunk) or chunk > 1
        assert most[0] <= cache.exact_pages(300, chunk) and most[1] <= cache.packed_pages(300, chunk)
        assert most[0] >= cache.exact_pages(300, chunk) - (0 if chunk == 1 else 1)


class _Blank:
    """An engine that is never asked."""

    def __init__(self, program: Program) -> None:
        self.program = program
