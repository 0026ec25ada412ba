"""The kernels as Triton compiles them, their inline assembly included, run by the interpreter of PTX: the
tests of those that Triton's interpreter runs, on what a GPU would get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import cuda_cache
import cuda_pair
import pytest
import test_cuda_cache
import test_cuda_kernels
import torch
from compiled import Compiler, Kernels, StepKernels
from cuda_case import Case, Past, Shape
from cuda_pair import compare, pair, steps_of
from driver import Driver
from test_cuda_engine import CUTS

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.runtime.engines import attention
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.formats.kv import LevelName


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    with Compiler(tmp_path_factory.mktemp("kernels")) as process:
        yield process


def replaced(monkeypatch: pytest.MonkeyPatch, compiler: Compiler, capability: int) -> Kernels:
    """What is launched from now on is compiled for ``capability``."""
    kernels = Kernels(compiler, capability)
    monkeypatch.setattr(cuda_cache, "kernel", kernels)
    monkeypatch.setattr(test_cuda_kernels, "kernel", kernels)
    monkeypatch.setattr(attention, "MOST_WEIGHT", 1 << 20)
    return kernels


LEVELS: list[LevelName] = ["fp8", "ct3"]


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: LevelName, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = replaced(monkeypatch, compiler, 80)
    case = Case(Shape((level,), group=4), [Past(75, 2)])
    test_cuda_cache.hold(*case.run(0, Tiling(2, 32, 1, 2)), level)
    issued = kernels.counts["attend"]
    assert (issued["cp.async.cg.shared.global"] > 0) == (level != "ct3")
    assert any(opcode.startswith("mma.sync") for opcode in issued)
    assert issued["prmt.b32"] > 0 or level == "int8"


def test_exact_pages(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, compiler, 80)
    case = Case(Shape(("bf16",), kv_heads=2), [Past(40, 1), Past(0, 1), Past(16, 1)])
    test_cuda_cache.hold(*case.run(0, Tiling(1, 16, 3, 0)))


def test_another_architecture(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """With heads and pages as they usually are, and a tree."""
    shape = Shape(("tq3",), group=4, head_dim=128, page_tokens=32)
    case = Case(shape, [Past(140, 3, tree=True), Past(33, 2)])
    replaced(monkeypatch, compiler, 89)
    test_cuda_cache.hold(*case.run(0, Tiling(4, 32, 1, 2, tree=True)))


@pytest.mark.parametrize("level", ["tq3", "ct3"])
def test_sequences_that_evict_or_compress_nothing(
    level: LevelName, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pasts = [Past(75, 1, evicted=48), Past(60, 1, evicted=16, whole=True), Past(20, 1)]
    case = Case(Shape((level,)), pasts)
    replaced(monkeypatch, compiler, 80)
    test_cuda_cache.hold(*case.run(0, Tiling(1, 32, 1, 1), turn=test_cuda_cache.TURN))


def test_trees_of_many_tokens(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, compiler, 80)
    test_cuda_cache.test_trees_of_many_tokens()


def test_a_chunk_of_a_prompt(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(Shape(("tq4",), page_tokens=16), [Past(64, 40), Past(30, 2)])
    replaced(monkeypatch, compiler, 80)
    test_cuda_cache.hold(*case.run(0, Tiling(16, 32, 1, 2)))


@pytest.mark.parametrize(
    ("bits", "rows", "cols", "group", "count", "rounded"),
    [(4, 16, 384, 128, 18, False), (8, 37, 96, 32, 2, True), (8, 50, 128, 64, 17, False)],
)
def test_products(
    bits: int,
    rows: int,
    cols: int,
    group: int,
    count: int,
    rounded: bool,
    compiler: Compiler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = replaced(monkeypatch, compiler, 80)
    test_cuda_kernels.test_products_are_exact_but_for_the_order_of_sums(
        bits, rows, cols, group, count, rounded
    )
    name = "m16n8k32.row.col.satfinite.s32.s8.s8.s32" if rounded else "m16n8k16.row.col.f32.bf16.bf16.f32"
    assert kernels.counts["linear"][f"mma.sync.aligned.{name}"] > 0


def test_what_lies_between_products(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the step below has none of it."""
    replaced(monkeypatch, compiler, 80)
    test_cuda_kernels.test_norms_are_rounded_for_their_reader(0, False)
    test_cuda_kernels.test_gates_and_buffers_are_rounded_for_their_reader(0, False, True)
    test_cuda_kernels.test_heads_are_normed_and_turned_in_place(True, True)
    test_cuda_kernels.test_columns_are_placed_beside_others()
    test_cuda_kernels.test_what_is_activated_is_added()


def test_steps_of_an_engine(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token, a prompt, a chunk of it beside another one, and three tokens: every launch of the table, as a
    bundle's kernels are compiled."""
    torch.set_num_threads(1)
    kernels = StepKernels(compiler, tmp_path / "engine" / "step.json", 80)
    monkeypatch.setattr(CudaEngine, "_opened", lambda engine, watch: kernels)
    both = pair(cuda_pair.Case("LlamaForCausalLM", "int4-rtn", ("tq3",)), tmp_path, CUTS[:1])
    compare(both, steps_of(both.program, Driver(both.reference))[:4], "int4-rtn")
    assert kernels.counts.keys() >= {"gather.gather", "linear.linear", "attend.attend", "seal.seal"}
