"""The GPU engine against the reference, its kernels run by Triton's interpreter: chunks of prompts, single
tokens, drafted chains and trees of several sequences, on small drawn models."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_pair import CASES, ROW_ERROR, Case, Pair, compare, pair, steps_of
from driver import Driver
from numpy.typing import NDArray
from test_cpu_engine import errors_of
from tree import Tree

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.runtime.engines import cuda
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.engines.draws import UNSETTLED, draw
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.measure import measure
from infer_compile.runtime.step import Sampling, SequenceStep

CUTS = (
    Tiling(tokens=1, block=32, exact_splits=1, packed_splits=2),
    Tiling(tokens=4, block=32, exact_splits=2, packed_splits=1, tree=True),
    Tiling(tokens=16, block=32, exact_splits=1, packed_splits=1, tree=True),
)
"""Small: the interpreter runs one program after the other."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.weights}-{case.levels[0]}")
def test_agrees_with_the_reference(case: Case, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    both = pair(case, tmp_path, CUTS)
    compare(both, steps_of(both.program, Driver(both.reference)), case.weights)


def test_a_stream_goes_on_without_its_oldest_tokens(tmp_path: Path) -> None:
    """Beyond twice the context, in chunks and then token by token."""
    case = Case("LlamaForCausalLM", "bf16", ("ct3",), sink_pages=1, overflow="evict", context=48)
    both = pair(case, tmp_path, CUTS)
    stream = np.random.default_rng(3).integers(0, both.program.vocabulary, 82).tolist()
    rows = []
    for engine in (both.reference, both.engine):
        tree = Tree(engine)
        branch = tree.open()
        tree.feed(branch, stream[:80], 16)
        rows.append(tree.feed(branch, stream[80:], 1, rows=True))
        assert branch.table.evicted == case.context
    assert np.all(errors_of(*reversed(rows)) < ROW_ERROR)


def test_an_answer_is_checked_against_an_exact_cache(tmp_path: Path) -> None:
    """In the pages behind those of the sequences, of which none holds anything compressed; beside a sequence
    that compresses."""
    both = pair(Case("LlamaForCausalLM", "bf16", ("tq3",), checked=48), tmp_path, CUTS)
    exact, _ = both.program.pool_pages
    place = Driver(both.reference).open(48)
    tokens = np.random.default_rng(3).integers(0, both.program.vocabulary, 34).tolist()
    pages = np.arange(exact - 3, exact, dtype=np.int32)
    for start, count in ((0, 16), (16, 16), (32, 1), (33, 1)):
        new = tokens[start : start + count]
        served = place.feed(new, outputs=1)
        whole = replace(served, exact=pages, packed=None)
        rows = [one.step([served, whole], logits=True).logits for one in (both.engine, both.reference)]
        packed, exactly = errors_of(*rows)
        assert packed < ROW_ERROR and exactly < ROW_ERROR / 4
    before = both.engine.pool("packed").copy()
    both.engine.step([whole])
    assert np.array_equal(both.engine.pool("packed"), before)
    assert errors_of(rows[0][:1], rows[0][1:]) > 4 * exactly


def test_a_sequence_that_compresses_nothing_is_refused_where_no_answer_is_checked(small: Pair) -> None:
    step = Driver(small.reference).open(16).feed([1])
    with pytest.raises(InferCompileError, match=r"IC521(.|\n)*checks no answers"):
        small.engine.step([replace(step, packed=None)])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(replace(CASES[1], levels=("tq3",)), tmp_path_factory.mktemp("small"), CUTS)


def test_the_cache_takes_the_planned_bytes(small: Pair) -> None:
    layout = small.program.cache
    found = measure(small.engine)
    assert (found.token_bytes, found.exact_token_bytes) == (layout.token_bytes, layout.exact_token_bytes)


def test_what_is_lent_follows_the_pool_until_it_is_given_back(small: Pair) -> None:
    place = Driver(small.reference).open(16)
    lent, pool = small.engine.lend("exact", 20 * 16 * 256), small.engine.pool("exact")
    assert lent.size == pool.size and not np.shares_memory(lent, pool)
    lent[:] = 7
    small.engine.step([place.feed([1], outputs=0)])
    assert np.array_equal(lent, pool) and 0 < np.count_nonzero(pool != 7) <= 256
    del lent
    pool[:] = 9
    small.engine.step([place.feed([2], outputs=0)])
    assert np.count_nonzero(pool != 9) <= 256


def test_company_and_padding_change_no_bit(small: Pair) -> None:
    """A step of three rows is filled up to four; what stands in the fourth is nobody's."""

    def last(company: int) -> NDArray[np.float32]:
        driver = Driver(small.reference)
        place = driver.open(40)
        small.engine.step([place.feed(list(range(17)), outputs=0)])
        others = [driver.open(16).feed([3 + index]) for index in range(company)]
        result = small.engine.step([*others, place.feed([7])], logits=True)
        assert result.logits is not None
        return result.logits[-1]

    alone = last(0)
    assert np.array_equal(last(1), alone)
    assert np.array_equal(last(2), alone)


def test_masks_and_adjustments_are_obeyed(small: Pair) -> None:
    driver = Driver(small.reference)
    allowed = np.zeros(2, np.uint32)
    allowed[1] = 1 << 5
    place = driver.open(16)
    assert small.engine.step([place.feed([1], mask=allowed)]).tokens[0].tolist() == [37]
    step = place.feed([2])
    step.sampling = replace(
        step.sampling, ids=np.array([9], np.int32), bias=np.array([1e4], np.float32), penalty=None
    )
    result = small.engine.step([step], logits=True)
    assert result.tokens[0].tolist() == [9]
    assert result.logits is not None and result.logits.max() < 1e3


def test_rows_that_the_largest_do_not_tell_are_drawn_from_all(
    small: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greedy row that is told beside two that are not, one of them masked."""

    def steps() -> list[SequenceStep]:
        driver = Driver(small.reference)
        allowed = np.array([0xF0F0F0F0, 0x3FFFF], np.uint32)
        places = [driver.open(16, Sampling(temperature=heat, seed=9)) for heat in (0.0, 1.0, 1.0)]
        return [place.feed([3], mask=mask) for place, mask in zip(places, (None, None, allowed), strict=True)]

    def first_alone(logits: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
        return torch.where(settings[:, 0] == 0, draw(logits, settings), UNSETTLED)

    for count in (2, 3):
        expected = small.engine.step(steps()[:count]).tokens
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "draw_among_largest", first_alone)
            found = small.engine.step(steps()[:count]).tokens
        assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_a_broken_step_is_refused_whole(small: Pair) -> None:
    step = Driver(small.reference).open(16).feed([1])
    before = small.engine.pool("exact").copy()
    for change in ({"tokens": np.array([99], np.int32)}, {"exact": np.array([-1], np.int32)}):
        with pytest.raises(InferCompileError, match="IC521"):
            small.engine.step([replace(step, **change)])  # type: ignore[arg-type]
    assert np.array_equal(small.engine.pool("exact"), before)


@pytest.mark.parametrize("damage", ["weights.bin", "weights.bin of another", "step.json", "program.json"])
def test_files_of_another_build_are_refused(small: Pair, tmp_path: Path, damage: str) -> None:
    for file in small.folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    name = damage.split()[0]
    data = (tmp_path / name).read_bytes()
    damaged = {
        "weights.bin": data[:-256],
        "weights.bin of another": data[:20] + bytes([data[20] ^ 255]) + data[21:],
        "step.json": data[:100],
        "program.json": data.replace(b'"max_context": 96', b'"max_context": 95'),
    }
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(InferCompileError, match="IC520"):
        CudaEngine(tmp_path, device="cpu")
