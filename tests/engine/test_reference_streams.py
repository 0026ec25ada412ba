"""Streams: what is left of the cache is seen as if what was evicted had never been."""

from __future__ import annotations

from collections.abc import Mapping

import families
import numpy as np
import pytest
from driver import Driver
from levels import draw_tables
from numpy.typing import NDArray
from tree import Tree

from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.program import Program

PAGE, CONTEXT = 8, 48
STREAM = np.random.default_rng(5).integers(0, 97, 120).tolist()


def program_of(name: str, level: LevelName, recent_pages: int, layers: int, **changes: object) -> Program:
    module = families.model(name, num_hidden_layers=layers, **changes)
    program = families.program(families.graph(module), level=level, recent_pages=recent_pages)
    limits = program.limits.model_copy(update={"max_context": CONTEXT, "overflow": "evict"})
    return program.model_copy(update={"limits": limits})


def engine(
    name: str, level: LevelName = "bf16", recent_pages: int = 1, layers: int = 1, **changes: object
) -> ReferenceEngine:
    program = program_of(name, level, recent_pages, layers, **changes)
    module = families.model(name, num_hidden_layers=layers, **changes)
    tables: Mapping[str, NDArray[np.float32]] = draw_tables(np.random.default_rng(1), program.cache)
    return ReferenceEngine(program, families.loader(module.state_dict()), tables=tables, exact_dtype="f32")


@pytest.mark.parametrize(
    ("name", "level", "changes"),
    [
        ("llama-grouped", "bf16", {}),
        ("llama-llama3-rope", "bf16", {}),
        (
            "qwen2-yarn",
            "bf16",
            {},
        ),  # its rotation stretches queries as well: turned back once, stretched once
        ("qwen3", "bf16", {}),  # norms of heads before the rotation
        ("mistral-window", "bf16", {"sliding_window": 200}),
        ("mistral-window", "bf16", {"sliding_window": 43}),  # reaches into the sinks
        ("mistral-window", "bf16", {"sliding_window": 20}),
        ("qwen2", "ct3", {}),  # everything within the exact window, but for the means
    ],
)
def test_a_stream_answers_as_a_fresh_sequence_of_what_it_still_sees(
    name: str, level: LevelName, changes: Mapping[str, object]
) -> None:
    """In a model of one layer keys and values are functions of token and position alone."""
    stream = Tree(engine(name, level, CONTEXT // PAGE, **changes))
    branch, found = stream.open(), []
    for token in STREAM:
        found.append(stream.feed(branch, [token])[-1])
    for position in range(len(STREAM)):
        gap = max(0, (position // PAGE + 1) * PAGE - CONTEXT)
        fresh = STREAM[:PAGE] + STREAM[PAGE + gap : position + 1] if gap else STREAM[: position + 1]
        if position % 13 == 0 or position in (CONTEXT - 1, CONTEXT, CONTEXT + PAGE):
            expected, _ = Driver(engine(name, level, CONTEXT // PAGE, **changes)).run(fresh, [len(fresh)])
            np.testing.assert_allclose(found[position], expected[-1], atol=2e-5)
    assert branch.table.evicted == len(STREAM) - CONTEXT


@pytest.mark.parametrize("level", ["bf16", "tq3", "ct3"])
@pytest.mark.parametrize("name", ["qwen2", "qwen2-windows-above"])
def test_how_a_stream_is_cut_changes_nothing(name: str, level: LevelName) -> None:
    def run(chunk: int) -> np.ndarray:
        tree = Tree(engine(name, level, layers=2))
        return tree.feed(tree.open(), STREAM[:80], chunk, rows=True)

    expected = run(64)
    for chunk in (1, 7):
        np.testing.assert_allclose(run(chunk), expected, atol=1e-6)


def test_what_is_evicted_is_not_seen_and_what_stays_is() -> None:
    """Tokens of the gap are exchanged: in a model of one layer nothing tells."""

    def last(stream: list[int]) -> np.ndarray:
        tree = Tree(engine("llama-grouped"))
        return tree.feed(tree.open(), stream, rows=True)[-1]

    gap = len(STREAM) - CONTEXT
    expected = last(STREAM)
    for place, matters in ((PAGE - 1, True), (PAGE, False), (PAGE + gap - 1, False), (PAGE + gap, True)):
        changed = STREAM.copy()
        changed[place] = (changed[place] + 1) % 97
        assert np.array_equal(last(changed), expected) is not matters


def test_without_the_turn_sinks_would_drift_away() -> None:
    """A stream whose sinks are seen where they lie answers otherwise."""
    turned, drifting = engine("llama-grouped"), engine("llama-grouped")
    drifting._attention._turns = {}
    answers = []
    for one in (turned, drifting):
        tree = Tree(one)
        answers.append(tree.feed(tree.open(), STREAM, rows=True))
    np.testing.assert_array_equal(answers[0][:CONTEXT], answers[1][:CONTEXT])
    assert np.abs(answers[0][-1] - answers[1][-1]).max() > 1e-3


@pytest.mark.parametrize(
    ("evicted", "because"),
    [
        (0, "more than 48 tokens"),
        (8, "more than 48 tokens"),
        (20, "no whole pages"),
        (56, "7 pages evicted of those before page 7"),
    ],
)
def test_a_step_that_evicts_otherwise_is_refused(evicted: int, because: str) -> None:
    tree = Tree(engine("llama-grouped"))
    branch = tree.open()
    tree.feed(branch, STREAM[:56])
    tree.pages.evict(branch.table, 56)
    tree.pages.prepare(branch.table, 56, 8, 8)
    place = Driver(tree.engine).open(64)
    place.exact[:8] = branch.table.exact.places[:8]
    place.start, place.sealed = 56, 7
    step = place.feed(STREAM[56:64])
    step.evicted = evicted
    with pytest.raises(InferCompileError, match=because):
        tree.engine.step([step])


def test_an_engine_that_ends_sequences_evicts_nothing() -> None:
    one = engine("llama-grouped")
    limits = one.program.limits.model_copy(update={"overflow": "stop"})
    one.program = one.program.model_copy(update={"limits": limits})
    driver = Driver(one)
    place = driver.open(40)
    driver.step(place.feed(STREAM[:32]))
    step = place.feed(STREAM[32:33])
    step.evicted = 8
    with pytest.raises(InferCompileError, match="ends sequences instead"):
        one.step([step])
