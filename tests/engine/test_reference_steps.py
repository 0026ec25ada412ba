"""The step contract on the reference engine: what must not change a result, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from driver import TEXT, Driver, pages_of, reference, same

from infer_compile.runtime.engines.sampling import draw
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format
from infer_compile.runtime.step import Sampling, SequenceStep

LEVELS: tuple[LevelName, ...] = ("bf16", "tq3")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weights", [BF16, weight_format("int8", 32)], ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["qwen2", "mistral-window"])
def test_cutting_a_text_changes_nothing(level: LevelName, weights: WeightFormat, name: str) -> None:
    def run(chunks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        one = reference(level, name, weights)
        logits, place = Driver(one, seed=len(chunks)).run(TEXT, chunks)
        form = "packed" if level == "tq3" else "exact"
        table = place.packed[1 : place.sealed] if level == "tq3" else place.exact[: place.sealed]
        return logits, pages_of(one, form, table)

    logits, stored = run([53])
    assert stored.any()
    for chunks in ([1] * 53, [8, 8, 8, 8, 8, 8, 5], [5, 20, 1, 27], [17, 36]):
        other, other_stored = run(chunks)
        same(other, logits)
        np.testing.assert_array_equal(other_stored, stored)


@pytest.mark.parametrize("level", LEVELS)
def test_company_in_the_batch_changes_nothing(level: LevelName) -> None:
    texts = [TEXT, TEXT[10:40], TEXT[::-1]]
    alone = [Driver(reference(level)).run(text, [len(text)])[0] for text in texts]

    driver = Driver(reference(level), seed=3)
    places = [driver.open(len(text)) for text in texts]
    logits: list[list[np.ndarray]] = [[] for _ in texts]
    # A whole prompt, chunks and single tokens side by side, each for the tokens it has left.
    for sizes in ([53, 12, 1], [0, 1, 30], [0, 17, 22]):
        steps, rows = [], []
        for index, (text, place, size) in enumerate(zip(texts, places, sizes, strict=True)):
            if size:
                steps.append(place.feed(text[place.start : place.start + size]))
                rows += [index] * size
        result = driver.step(*steps)
        assert result.logits is not None
        for index, row in zip(rows, result.logits, strict=True):
            logits[index].append(row)
    for expected, found in zip(alone, logits, strict=True):
        same(np.stack(found), expected)


def test_only_asked_rows_come_back() -> None:
    driver = Driver(reference("tq3"))
    every = driver.step(driver.open(53).feed(TEXT))
    place = driver.open(53)
    none = driver.step(place.feed(TEXT[:20], outputs=0))
    assert none.logits is not None and none.logits.shape == (0, 97) and none.tokens[0].size == 0
    last = driver.step(place.feed(TEXT[20:], outputs=2))
    assert every.logits is not None
    same(last.logits, every.logits[-2:])
    assert last.tokens[0].tolist() == every.tokens[0][-2:].tolist() == every.logits[-2:].argmax(1).tolist()
    assert driver.engine.step([driver.open(9).feed([1])]).logits is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_chain_and_a_tree_see_what_plain_text_sees(level: LevelName) -> None:
    prompt, branches = TEXT[:22], ([5, 6, 7], [5, 9], [8])
    tree, parents = [5, 6, 8, 9, 7], [-1, 0, -1, 0, 1]
    rows = {(5,): 0, (5, 6): 1, (8,): 2, (5, 9): 3, (5, 6, 7): 4}
    driver = Driver(reference(level))
    place = driver.open(40)
    driver.step(place.feed(prompt))
    result = driver.step(place.feed(tree, accepted=0, parents=parents))
    assert result.logits is not None
    for branch in branches:
        plain = Driver(reference(level))
        logits, _ = plain.run(prompt + branch, [len(prompt) + len(branch)])
        for depth in range(len(branch)):
            same(result.logits[rows[tuple(branch[: depth + 1])]], logits[len(prompt) + depth])
    # Refused tokens leave no trace: the next text overwrites their slots.
    rest = driver.step(place.feed(TEXT[22:40]))
    expected, _ = Driver(reference(level)).run(TEXT[:40], [40])
    same(rest.logits, expected[22:])


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    one = reference("bf16")
    alone = Driver(one)
    place = alone.open(53, sampling)
    result = alone.step(place.feed(TEXT))
    expected = result.tokens[0]
    assert result.logits is not None
    # The token that row i gives stands at position i + 1.
    assert expected.tolist() == [draw(row, sampling, None, i + 1) for i, row in enumerate(result.logits)]
    mixed, drawn = Driver(reference("bf16"), seed=9), []
    place = mixed.open(53, sampling)
    for size in (20, 1, 32):
        other = mixed.open(8, Sampling(temperature=2.0, seed=1))
        drawn += (
            mixed.step(other.feed(TEXT[:5]), place.feed(TEXT[place.start : place.start + size]))
            .tokens[1]
            .tolist()
        )
    assert drawn == expected.tolist()
    assert len(set(drawn)) > 10
    other_seed = Driver(one)
    assert (
        other_seed.step(other_seed.open(53, Sampling(temperature=1.0, seed=12)).feed(TEXT)).tokens[0].tolist()
        != drawn
    )


def test_a_mask_holds_for_every_row() -> None:
    mask = np.zeros(4, np.uint32)
    mask[1], mask[3] = 1 << 5, 1 << 0
    driver = Driver(reference("bf16"))
    tokens = driver.step(driver.open(53).feed(TEXT, mask=mask)).tokens[0]
    assert set(tokens.tolist()) == {37, 96}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [1, 97, 2]}, "vocabulary"),
        ({"tokens": []}, "without new tokens"),
        ({"outputs": 5}, "5 outputs"),
        ({"accepted": 4}, "accepted"),
        ({"sealed": 1}, "sealed"),
        ({"exact": [-1, 0]}, "holds no exact page 0"),
        ({"exact": [64, 0]}, "in a pool of 64"),
        ({"parents": [-1, 1, 0]}, "parent 1"),
        ({"parents": [-1, -1, 1]}, "not a chain"),
        ({"tokens": [1] * 65, "parents": [-1] * 65, "accepted": 0}, "a tree of 65 tokens"),
        ({"start": 126}, "more than 128"),
    ],
)
def test_a_broken_step_is_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "tokens": [1, 2, 3],
        "start": 0,
        "accepted": 3,
        "sealed": 0,
        "exact": [0, 1],
        "packed": [-1, 1],
    } | change
    arrays = {
        key: np.array(value, np.int32) if isinstance(value, list) else value for key, value in fields.items()
    }
    with pytest.raises(InferCompileError, match=message):
        reference("tq3").step([SequenceStep(**arrays)])  # type: ignore[arg-type]
