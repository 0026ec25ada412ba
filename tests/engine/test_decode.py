"""The CUDA C++ kernel of few tokens beside the slow form: compiled by NVRTC, its PTX executed on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import levels
import numpy as np
import pytest
import torch
from cuda_cache import interpreted_attend
from cuda_case import Case, Past, Shape
from numpy.typing import NDArray
from ptx import Module

from infer_compile.codegen import cuda_decode
from infer_compile.codegen.cuda_constants import Constants, Tiling, attend_constants
from infer_compile.codegen.nvrtc import installed
from infer_compile.runtime.engines import attention
from infer_compile.runtime.formats.kv import LayerCache, LevelName, Plane, Segment, Transform
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


def plane(text: str, transform: Transform) -> Plane:
    """Of bits x columns."""
    parts = (part.split("x") for part in text.split(" "))
    segments = tuple(Segment(bits=int(bits), columns=int(columns)) for bits, columns in parts)
    return Plane(kind="codes", transform=transform, segments=segments)


def beside_attend(grid: tuple[int, int, int], arguments: Mapping[str, Any], constants: Constants) -> None:
    """``launch``, held to what Triton's kernel makes of the same pages."""
    other = {name: each.clone() if name in ("sums", "logs") else each for name, each in arguments.items()}
    interpreted_attend(grid, other, constants)
    launch(grid, arguments, constants)
    # With wide codes a weight has 16 bits, else 8.
    fine = max(piece[3] for piece in constants["VALUES"]) > 4
    # Nothing is stored of columns that no page has.
    columns = sum(piece[0] for piece in constants["VALUES"])
    exact, packed = slice(constants["EXACT_SPLITS"]), slice(constants["EXACT_SPLITS"], None)
    for shares, width, bound in ((exact, constants["D"], 2e-3), (packed, columns, 5e-4 if fine else 0.02)):
        (found, logs), (expected, expected_logs) = (together(each, shares) for each in (arguments, other))
        seen = expected_logs > float("-inf")
        assert torch.equal(seen, logs > float("-inf"))
        if seen.any():
            found, expected = found[seen][:, :width], expected[seen][:, :width]
            errors = (found - expected).square().mean(-1).sqrt() / expected.square().mean().sqrt()
            assert errors.max() < bound
            assert (logs - expected_logs)[seen].abs().max() < 1e-3


def together(arguments: Mapping[str, Any], shares: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """One share of several: pages are dealt to them otherwise."""
    logs = arguments["logs"][:, :, shares]
    total = torch.logsumexp(logs * np.log(2), -1)
    weights = torch.exp(logs * np.log(2) - total[..., None]).nan_to_num()
    return (arguments["sums"][:, :, shares] * weights[..., None]).sum(-2), total / np.log(2)


EACH = "8x16 7x16 6x16 5x16 4x16 3x16 2x16 1x16"
PLANES = [
    (EACH, EACH, Shape(("ct3",), group=4, head_dim=128, page_tokens=32)),
    ("8x32 7x32 6x32 5x32", "4x32 3x32 2x32 1x32", Shape(("ct4",), group=11, head_dim=128, page_tokens=32)),
    ("4x32 3x32 1x32", "8x32 7x32 5x32", Shape(("ct4",), group=2, head_dim=128, page_tokens=64)),
    ("6x64 2x48", "6x64 3x48", Shape(("ct2",), group=16, head_dim=128, page_tokens=32)),
    ("3x64", "5x16 4x16", Shape(("ct2",), kv_heads=2, group=1, page_tokens=32)),
]


@pytest.mark.filterwarnings("ignore:divide by zero")  # shares that see nothing, where Triton interprets
@pytest.mark.parametrize(("keys", "values", "shape"), PLANES)
def test_calibrated_levels(keys: str, values: str, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of every width, in pieces that fill an operand and a half of one."""
    own = LayerCache(level=shape.levels[0], keys=plane(keys, "dense"), values=plane(values, "diagonal"))
    monkeypatch.setattr(levels, "draw_layer", lambda *_: own)
    case = Case(shape, [Past(shape.page_tokens * 2 + 40, 1)], scale=0.3, launch=beside_attend)
    hold(*case.run(0, Tiling(1, 32, 1, 2)), keys)


TILES = [
    # Chains over the borders of pages, where tokens of a tile see pages in different forms.
    (Shape(("tq3",), kv_heads=2, group=2, head_dim=128, page_tokens=32, recent_pages=0), False, None, 4),
    # Trees, with a chain beside them.
    (Shape(("tq4",), group=3, page_tokens=32), True, None, 8),
    # Windows that end within a page for some tokens, and behind it for others.
    (Shape(("tq2",), group=1, page_tokens=64, recent_pages=0), False, 60, 6),
    (Shape(("tq3",), group=4, page_tokens=32, recent_pages=0), True, 35, 8),
]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("shape", "tree", "window", "tokens"), TILES)
def test_tiles_of_several_tokens(shape: Shape, tree: bool, window: int | None, tokens: int) -> None:
    border = 3 * shape.page_tokens
    pasts = [Past(border - 3, tokens, tree), Past(border - 1, 1), Past(border + 20, tokens + 3), Past(0, 2)]
    case = Case(shape, pasts, seed=tokens, launch=beside_attend)
    hold(*case.run(0, Tiling(tokens, 32, 1, 2, tree), window))


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_tiles_at_a_calibrated_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 rows, whose factors lie in shared memory."""
    own = LayerCache(
        level="ct3", keys=plane("7x16 6x32 4x16", "dense"), values=plane("8x16 3x32", "diagonal")
    )
    monkeypatch.setattr(levels, "draw_layer", lambda *_: own)
    shape = Shape(("ct3",), group=4, head_dim=64, page_tokens=32, recent_pages=0)
    case = Case(shape, [Past(97, 8, tree=True), Past(127, 5)], scale=0.3, launch=beside_attend)
    hold(*case.run(0, Tiling(8, 32, 1, 1, tree=True)))


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
    assert cuda_decode.serves(constants("ct3"))
    for level in ("bf16", "fp8", "int8", "k8v4"):
        assert not cuda_decode.serves(constants(level)), level
    for changes in ({"head_dim": 96}, {"page_tokens": 16}, {"group": 33}, {"head_dim": 256}):
        assert not cuda_decode.serves(constants("tq3", **changes)), changes
    assert cuda_decode.serves(constants("tq3", tokens=8))
    assert not cuda_decode.serves(constants("tq3", tokens=8, group=5))
    assert not cuda_decode.serves(constants("tq3", tokens=16, group=1))
    assert not cuda_decode.serves(constants("tq3") | {"EVICTS": True})
