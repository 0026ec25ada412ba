"""The CUDA C++ kernel of decoding beside the slow form: compiled by NVRTC, its PTX executed on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from cuda_case import Case, Past, Shape
from numpy.typing import NDArray
from ptx import Module

from infer_compile.codegen import cuda_decode
from infer_compile.codegen.cuda_constants import Constants, Tiling, attend_constants
from infer_compile.codegen.nvrtc import installed
from infer_compile.runtime.engines import attention
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.launches import Dtype

Float32 = NDArray[np.float32]
pytestmark = pytest.mark.skipif(not installed(), reason="pip install nvidia-cuda-nvrtc")


@pytest.fixture(autouse=True)
def _weights_of_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form makes a page's largest softmax weight 204, this kernel 255."""
    monkeypatch.setattr(attention, "MOST_WEIGHT", 255)


@cache
def module(header: str, capability: int) -> Module:
    return Module(cuda_decode.compile_text(header, capability)[1])


def launch(grid: tuple[int, int, int], arguments: Mapping[str, Any], constants: Constants) -> None:
    assert cuda_decode.serves(constants)
    queries: Dtype = "f32" if arguments["queries"].dtype == torch.float32 else "bf16"
    own = module(cuda_decode.header(constants, queries), 80)
    handed = [_array(arguments[name]) for name in cuda_decode.ARGUMENTS]
    own.run(cuda_decode.ENTRY, grid, (32 * cuda_decode.WARPS, 1, 1), handed)


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def hold(found: Float32, expected: Float32, what: object = "") -> None:
    """Of each head's output the root mean square difference, over that of all outputs."""
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=-1) / np.mean(expected**2))
    worst = np.unravel_index(np.argmax(errors), errors.shape)
    said = f"{what}: row {worst[0]}, head {worst[1]}: {found[worst][:5]} for {expected[worst][:5]}"
    assert errors.max() < 0.012, said
    assert np.median(errors) < 3e-3, said


def decoded(shape: Shape, *pasts: int, seed: int = 0) -> Case:
    """Sequences of one new token after so many."""
    return Case(shape, [Past(start, 1) for start in pasts], seed=seed, launch=launch)


SHAPES = [
    (Shape(("tq3",), kv_heads=2, group=4, head_dim=128, page_tokens=32), (170, 35)),
    (Shape(("tq4",), group=7, head_dim=64, page_tokens=64, recent_pages=2), (300,)),
    (Shape(("tq2",), group=1, head_dim=128, page_tokens=32), (130,)),
    (Shape(("tq3",), group=16, page_tokens=128, recent_pages=0), (300,)),
]


@pytest.mark.parametrize(("shape", "pasts"), SHAPES)
def test_shapes(shape: Shape, pasts: tuple[int, ...]) -> None:
    hold(*decoded(shape, *pasts, seed=shape.head_dim).run(0, Tiling(1, 32, 2, 2)), shape)


def test_ragged_batches() -> None:
    """Empty caches, one token, both sides of page borders, where the first page is sealed and seen so."""
    case = decoded(Shape(("tq3",), page_tokens=32, sink_pages=0), 0, 1, 31, 32, 33, 64, 97, 128)
    hold(*case.run(0, Tiling(1, 32, 1, 3)))


@pytest.mark.parametrize("window", [1, 32, 77])
def test_windows(window: int) -> None:
    """The first page that is seen is partly hidden; of a page of several blocks, whole ones."""
    for page_tokens in (32, 64):
        case = decoded(Shape(("tq3",), page_tokens=page_tokens, recent_pages=0), 150, 40)
        hold(*case.run(0, Tiling(1, 32, 1, 1), window))


def test_sequences_that_compress_nothing() -> None:
    shape = Shape(("tq3",), page_tokens=32)
    case = Case(shape, [Past(100, 1, whole=True), Past(100, 1)], launch=launch)
    hold(*case.run(0, Tiling(1, 32, 1, 1)))


def test_other_launches_are_left_to_triton() -> None:
    def constants(level: LevelName, tokens: int = 1, **changes: int) -> Constants:
        shape = replace(Shape((level,), group=4, head_dim=128, page_tokens=32), **changes)
        layout = Case(shape, [Past(1, 1)]).layout
        return attend_constants(layout, 0, shape.group, Tiling(tokens, 32, 1, 1, tree=tokens > 1))

    assert cuda_decode.serves(constants("tq3"))
    for level in ("bf16", "fp8", "int8", "ct3"):
        assert not cuda_decode.serves(constants(level)), level
    for changes in ({"head_dim": 96}, {"page_tokens": 16}, {"group": 17}, {"head_dim": 256}):
        assert not cuda_decode.serves(constants("tq3", **changes)), changes
    assert not cuda_decode.serves(constants("tq3", tokens=8))
    assert not cuda_decode.serves(constants("tq3") | {"EVICTS": True})
