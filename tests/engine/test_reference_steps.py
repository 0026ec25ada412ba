"""The step contract on the reference engine: what must not change a result, and what must."""

from __future__ import annotations

from collections.abc import Sequence

import families
import numpy as np
import pytest
import torch
from driver import Driver

from infer_compile.runtime.engines.attention import attend
from infer_compile.runtime.engines.pools import ExactPool, PackedPool
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.engines.rows import rows_of
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.program import Attend
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format
from infer_compile.runtime.kv.codec import Codec
from infer_compile.runtime.step import Sampling, SequenceStep

TEXT = np.random.default_rng(7).integers(0, 97, 53).tolist()
LEVELS: tuple[LevelName, ...] = ("bf16", "tq3")


def engine(
    level: LevelName, name: str = "qwen2", weights: WeightFormat = BF16, recent_pages: int = 1
) -> ReferenceEngine:
    module = families.model(name)
    program = families.program(
        families.graph(module), level=level, weights=weights, recent_pages=recent_pages
    )
    return ReferenceEngine(program, families.loader(module.state_dict()))


def same(ours: np.ndarray | None, expected: np.ndarray | None) -> None:
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)


def pages_of(engine: ReferenceEngine, form: str, held: np.ndarray) -> np.ndarray:
    layout, limits = engine.program.cache, engine.program.limits
    count = limits.exact_pages if form == "exact" else limits.packed_pages
    assert engine.pool(form).size == count * (
        layout.exact_page_bytes if form == "exact" else layout.packed_page_bytes
    )
    return engine.pool(form).reshape(count, -1)[held]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weights", [BF16, weight_format("int8", 32)], ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["qwen2", "mistral-window"])
def test_cutting_a_text_changes_nothing(level: LevelName, weights: WeightFormat, name: str) -> None:
    def run(chunks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        one = engine(level, name, weights)
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
    alone = [Driver(engine(level)).run(text, [len(text)])[0] for text in texts]

    driver = Driver(engine(level), seed=3)
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
    driver = Driver(engine("tq3"))
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
    driver = Driver(engine(level))
    place = driver.open(40)
    driver.step(place.feed(prompt))
    result = driver.step(place.feed(tree, accepted=0, parents=parents))
    assert result.logits is not None
    for branch in branches:
        plain = Driver(engine(level))
        logits, _ = plain.run(prompt + branch, [len(prompt) + len(branch)])
        for depth in range(len(branch)):
            same(result.logits[rows[tuple(branch[: depth + 1])]], logits[len(prompt) + depth])
    # Refused tokens leave no trace: the next text overwrites their slots.
    rest = driver.step(place.feed(TEXT[22:40]))
    expected, _ = Driver(engine(level)).run(TEXT[:40], [40])
    same(rest.logits, expected[22:])


def test_a_page_is_compressed_when_its_last_token_is_accepted() -> None:
    one = engine("tq3")
    driver = Driver(one)
    place = driver.open(32)
    driver.step(place.feed(TEXT[:15]))
    assert not one.pool("packed").any()
    driver.step(place.feed([1, 2, 3], accepted=0))
    assert not one.pool("packed").any(), "a speculated token does not seal"
    driver.step(place.feed([1, 2, 3], accepted=1))
    assert pages_of(one, "packed", place.packed[1]).any()
    pages = np.setdiff1d(np.arange(one.program.limits.packed_pages), place.packed[1])
    assert not pages_of(one, "packed", pages).any(), "the sink page and others have no compressed form"


@pytest.mark.parametrize(
    ("form", "page", "matters"),
    [
        ("exact", 0, True),  # the sink
        ("exact", 1, False),
        ("exact", 2, False),
        ("exact", 3, True),  # recent: one page before the query's
        ("exact", 4, True),  # the query's own
        ("packed", 1, True),
        ("packed", 2, True),
        ("packed", 3, False),
    ],
)
def test_a_query_reads_exactly_the_form_that_the_rule_says(form: str, page: int, matters: bool) -> None:
    """One token in page 4 (8 tokens a page, 1 sink, 1 recent): any byte it reads changes its logits."""
    one = engine("tq3")
    driver = Driver(one)
    place = driver.open(40)
    driver.step(place.feed(TEXT[:33]))
    table = place.exact if form == "exact" else place.packed
    expected = driver.step(place.feed([3], accepted=0)).logits
    width = one.program.cache.exact_page_bytes if form == "exact" else one.program.cache.packed_page_bytes
    # Of page 4 only the first token is there: the query rewrites the second, and nobody reads the others.
    chosen = np.arange(8) if page == 4 else np.random.default_rng(0).integers(0, width, 8)
    for byte in chosen:
        where = int(table[page]) * width + int(byte)
        one.pool(form)[where] ^= 0x11
        found = driver.step(place.feed([3], accepted=0)).logits
        one.pool(form)[where] ^= 0x11
        assert found is not None and expected is not None
        assert (not np.array_equal(found, expected)) is matters
    if not matters:
        table[page] = -1
    same(driver.step(place.feed([3], accepted=0)).logits, expected)


@pytest.mark.parametrize("recent_pages", [1, 2])
@pytest.mark.parametrize("window", [None, 19])
def test_attention_is_what_the_rule_spells_out(recent_pages: int, window: int | None) -> None:
    """Token by token in loops, with no pages and no pools."""
    heads, kv_heads, dim, count, page_tokens = 4, 2, 64, 50, 4
    graph = families.graph(families.model("llama-grouped"))
    program = families.program(graph, level="tq3", page_tokens=page_tokens, recent_pages=recent_pages)
    layout = program.cache.model_copy(update={"kv_heads": kv_heads, "layers": 1})
    program = program.model_copy(update={"cache": layout})
    inputs = np.random.default_rng(5).standard_normal((count, (heads + 2 * kv_heads) * dim), dtype=np.float32)
    step = SequenceStep(
        tokens=np.zeros(count, np.int32),
        start=0,
        accepted=count,
        sealed=0,
        exact=np.arange(13, dtype=np.int32)[::-1].copy(),
        packed=np.arange(13, dtype=np.int32),
    )
    operation = Attend(
        layer=0, input="", output="", heads=heads, kv_heads=kv_heads, head_dim=dim, scale=0.2, window=window
    )
    found = attend(
        operation, inputs, rows_of(program, [step]), layout, ExactPool(layout, 13), PackedPool(layout, 13)
    ).reshape(count, heads, dim)

    codec = Codec(layout)
    queries = inputs[:, : heads * dim].reshape(count, heads, dim).astype(np.float64)
    exact = (
        torch.from_numpy(inputs[:, heads * dim :]).bfloat16().float().numpy().reshape(count, 2, kv_heads, dim)
    )
    coded = codec.decode(codec.encode(exact.reshape(-1, dim))).reshape(exact.shape)
    for t in range(count):
        for head in range(heads):
            scores, values = [], []
            for s in range(t + 1):
                if window is not None and s <= t - window:
                    continue
                page, own = s // page_tokens, t // page_tokens
                form = exact if page == 0 or page >= own - recent_pages else coded
                key, value = form[s, :, head // 2].astype(np.float64)
                scores.append(0.2 * queries[t, head] @ key)
                values.append(value)
            weights = np.exp(np.array(scores) - max(scores))
            expected = weights / weights.sum() @ np.array(values)
            np.testing.assert_allclose(found[t, head], expected, atol=1e-5)


def test_a_cached_token_takes_the_bytes_that_the_layout_counts() -> None:
    """Sentinels in the pools; what a page's tokens change is what the layout says they take."""
    one = engine("tq3")
    driver = Driver(one)
    place = driver.open(24)
    driver.step(place.feed(TEXT[:16]))
    layout = one.program.cache
    changed = {
        "exact": np.zeros(one.pool("exact").size, bool),
        "packed": np.zeros(one.pool("packed").size, bool),
    }
    for sentinel in (0x00, 0xFF, 0x5A):
        for form in changed:
            one.pool(form)[:] = sentinel
        again = Driver(one)
        again.step(again.open(24).feed(TEXT[:16]))
        for form, seen in changed.items():
            seen |= one.pool(form) != sentinel
    assert changed["exact"].sum() == 16 * layout.exact_token_bytes
    assert changed["packed"].sum() == 8 * layout.token_bytes


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    one = engine("bf16")
    alone = Driver(one)
    place = alone.open(53, sampling)
    expected = alone.step(place.feed(TEXT)).tokens[0]
    mixed, drawn = Driver(engine("bf16"), seed=9), []
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
    driver = Driver(engine("bf16"))
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
        engine("tq3").step([SequenceStep(**arrays)])  # type: ignore[arg-type]


def test_a_page_that_is_not_sealed_is_not_read_compressed() -> None:
    driver = Driver(engine("tq3"))
    place = driver.open(40)
    driver.step(place.feed(TEXT[:8]))
    with pytest.raises(InferCompileError, match="before it is sealed"):
        driver.step(place.feed(TEXT[8:32], accepted=0))
