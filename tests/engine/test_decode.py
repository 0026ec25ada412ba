"""The CUDA C++ kernel of decoding beside the slow form: compiled by NVRTC, its PTX executed on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from cuda_case import Case, Past, Shape
from numpy.typing import NDArray
from ptx import Module

from infer_compile.codegen import cuda_decode
from infer_compile.codegen.cuda_constants import Constants, Tiling
from infer_compile.codegen.nvrtc import Nvrtc
from infer_compile.runtime.engines import attention
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.launches import Dtype

Float32 = NDArray[np.float32]
try:
    Nvrtc()
except InferCompileError:
    pytest.skip("pip install nvidia-cuda-nvrtc", allow_module_level=True)


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


@pytest.mark.parametrize("level", ["tq3", "tq4", "tq2"])
def test_levels(level) -> None:
    case = Case(Shape((level,), kv_heads=2, group=4, head_dim=128, page_tokens=32), [Past(170, 1), Past(35, 1)], launch=launch)
    hold(*case.run(0, Tiling(1, 32, 2, 2)), level)
