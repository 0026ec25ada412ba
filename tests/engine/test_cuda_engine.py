"""The GPU engine against the reference, its kernels run by Triton's interpreter: chunks of prompts, single
tokens, drafted chains and trees of several sequences, on small drawn models."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from driver import Driver, Place
from levels import draw_layout
from numpy.typing import NDArray
from shapes import draw_sampling, reference_of, write_model
from test_cpu_engine import check_tokens, errors_of

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.codegen.gpu_engine import emit
from infer_compile.codegen.repack import TABLES
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.measure import measure
from infer_compile.runtime.step import SequenceStep

# docs/cuda.md: what is rounded otherwise than in the slow form, and how far it may lead.
ROW_ERROR = 0.1
# Where nothing is: without a compressed page, before the first activation that rounds the other way.
UNDISTURBED_ERROR = 1e-5
CUTS = (
    Tiling(tokens=1, block=32, exact_splits=1, packed_splits=2),
    Tiling(tokens=4, block=32, exact_splits=2, packed_splits=1, tree=True),
    Tiling(tokens=16, block=32, exact_splits=1, packed_splits=1),
)
"""Small: the interpreter runs one program after the other."""


@dataclass(frozen=True)
class Case:
    family: str
    weights: str
    levels: tuple[LevelName, ...]
    sink_pages: int = 0
    window: int | None = None
    tied: bool = False


CASES = (
    Case("Qwen3ForCausalLM", "int4-rtn", ("bf16", "bf16"), tied=True),
    Case("LlamaForCausalLM", "int4-rtn", ("tq3", "int8")),
    Case("Qwen2ForCausalLM", "bf16", ("fp8", "bf16"), tied=True),
    Case("MistralForCausalLM", "int8", ("ct3",), sink_pages=1, window=25),
)


@dataclass
class Pair:
    """The two engines of one drawn model."""

    program: Program
    reference: ReferenceEngine
    engine: CudaEngine
    folder: Path


def pair(case: Case, folder: Path) -> Pair:
    rng = np.random.default_rng(11)
    config = {
        "architectures": [case.family],
        "model_type": case.family.removesuffix("ForCausalLM").lower(),
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(case.levels),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": case.window,
        "tie_word_embeddings": case.tied,
        "hidden_act": "silu",
    }
    layout = draw_layout(rng, list(case.levels), 1, 64, 16, case.sink_pages, recent_pages=0)
    limits = Limits(
        max_context=96,
        max_sequences=3,
        max_batch_tokens=48,
        exact_pages=20,
        packed_pages=20 if layout.compressed else 0,
    )
    program = assemble(build(config, "drawn"), weight_format(case.weights, 32), layout, limits)
    model = write_model(rng, config, program, folder)
    (folder / "engine").mkdir()
    (folder / "engine" / TABLES).write_bytes((folder / TABLES).read_bytes())
    emit(program, None, model, folder / "engine", CUTS)
    engine = CudaEngine(folder / "engine", device="cpu")
    return Pair(program, reference_of(program, model), engine, folder / "engine")


def steps_of(program: Program, driver: Driver) -> list[list[SequenceStep]]:
    """Of three sequences: a first token, a prompt in two chunks, drafts of which some are kept, a tree."""
    rng = np.random.default_rng(5)

    def some(count: int) -> list[int]:
        return rng.integers(0, program.vocabulary, count).tolist()

    prompt, other = driver.open(64), driver.open(16)
    alone: Place = driver.open(16)
    batches = [
        [alone.feed(some(1))],
        [prompt.feed(some(20), outputs=1)],
        [prompt.feed(some(12), outputs=2), other.feed(some(3), outputs=0)],
        [prompt.feed(some(1)), other.feed(some(1)), alone.feed(some(1))],
        [prompt.feed(some(4), accepted=1), other.feed(some(1))],
        [prompt.feed(some(4), accepted=1, parents=[-1, 0, 0, 2]), alone.feed(some(2), accepted=0)],
    ]
    for step in (step for batch in batches[1:] for step in batch):
        if rng.random() < 0.5:
            step.sampling = draw_sampling(rng)
    return batches


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.weights}-{case.levels[0]}")
def test_agrees_with_the_reference(case: Case, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    both = pair(case, tmp_path)
    closest = np.inf
    for batch in steps_of(both.program, Driver(both.reference)):
        expected = both.reference.step(batch, logits=True, hidden=True)
        result = both.engine.step(batch, logits=True, hidden=True)
        assert result.logits is not None and result.hidden is not None
        assert expected.logits is not None and expected.hidden is not None
        errors = errors_of(result.logits, expected.logits)
        closest = np.min(errors, initial=closest)
        assert np.all(errors < ROW_ERROR), [len(step.tokens) for step in batch]
        assert np.all(errors_of(result.hidden, expected.hidden) < ROW_ERROR)
        check_tokens(result, expected, batch)
    # Products of bf16 weights round what they read to bf16.
    assert closest < (UNDISTURBED_ERROR if case.weights != "bf16" else 0.01)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(replace(CASES[1], levels=("tq3",)), tmp_path_factory.mktemp("small"))


def test_the_cache_takes_the_planned_bytes(small: Pair) -> None:
    layout = small.program.cache
    found = measure(small.engine)
    assert (found.token_bytes, found.exact_token_bytes) == (layout.token_bytes, layout.exact_token_bytes)


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


def test_a_broken_step_is_refused_whole(small: Pair) -> None:
    step = Driver(small.reference).open(16).feed([1])
    before = small.engine.pool("exact").copy()
    for change in ({"tokens": np.array([99], np.int32)}, {"exact": np.array([-1], np.int32)}):
        with pytest.raises(InferCompileError, match="IC521"):
            small.engine.step([replace(step, **change)])  # type: ignore[arg-type]
    assert np.array_equal(small.engine.pool("exact"), before)


@pytest.mark.parametrize("name", ["weights.bin", "step.json", "program.json"])
def test_files_of_another_build_are_refused(small: Pair, tmp_path: Path, name: str) -> None:
    for file in small.folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    data = (tmp_path / name).read_bytes()
    damaged = {
        "weights.bin": data[:-256],
        "step.json": data[:100],
        "program.json": data.replace(b'"max_context": 96', b'"max_context": 95'),
    }
    (tmp_path / name).write_bytes(damaged[name])
    with pytest.raises(InferCompileError, match="IC520"):
        CudaEngine(tmp_path, device="cpu")
