"""The CUDA C++ kernel of products with few rows of inputs: compiled by NVRTC, its PTX executed on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from functools import cache
from typing import Any

import pytest
import torch
from ptx import Module
from test_cuda_kernels import Product

from infer_compile.codegen import cuda_skinny
from infer_compile.codegen.nvrtc import installed
from infer_compile.codegen.tilings import SKINNY, product_tilings
from infer_compile.runtime.formats.weights import weight_format

pytestmark = pytest.mark.skipif(not installed(), reason="pip install nvidia-cuda-nvrtc")


@cache
def module(header: str) -> Module:
    return Module(cuda_skinny.compile_cuda("skinny.cu", header, 80)[1])


def launch(grid: tuple[int, int], arguments: dict[str, Any], constants: dict[str, Any], warps: int) -> None:
    own = module(cuda_skinny.header(constants, warps))
    handed = [_array(arguments[name]) for name in cuda_skinny.ARGUMENTS]
    own.run(cuda_skinny.ENTRY, grid, (32 * warps, 1, 1), handed)


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def check(product: Product, warps: int, bias: bool = True, add: bool = True) -> None:
    count, rows = product.before.shape
    output = product.before.clone()
    constants = product.constants | {"BIAS": bias, "ADD": add, "BLOCK_M": SKINNY, "BLOCK_N": SKINNY}
    assert cuda_skinny.serves(constants)
    arguments = {
        "input": product.input,
        "scales": product.scales,
        "weight": product.weight,
        "weight_scales": product.weight_scales,
        "bias": product.bias if bias else None,
        "output": output,
        "rows": count,
    }
    launch((-(-rows // SKINNY), -(-count // SKINNY)), arguments, constants, warps)
    product.hold(output, bias, add)


# (bits, rows of weights, inputs, group, rows of inputs, warps): odd numbers of groups, fewer tiles than warps
# take at a time and more, one and both halves of the inputs, last blocks that are not full.
@pytest.mark.parametrize(
    ("bits", "rows", "cols", "group", "count", "warps"),
    [
        (4, 40, 96, 32, 3, 1),
        (4, 16, 1120, 32, 9, 2),
        (4, 48, 1536, 64, 8, 2),
        (4, 20, 64, 64, 16, 1),
        (4, 32, 1408, 128, 1, 4),
        (8, 37, 96, 32, 2, 2),
        (8, 16, 1088, 64, 13, 4),
        (8, 50, 512, 128, 5, 1),
        (8, 16, 256, 64, 19, 2),
    ],
)
def test_products_are_exact_but_for_the_order_of_sums(
    bits: int, rows: int, cols: int, group: int, count: int, warps: int
) -> None:
    check(Product(bits, rows, cols, group, count, bytes=True), warps)


@pytest.mark.parametrize(("bias", "add"), [(False, False), (True, False), (False, True)])
def test_bias_and_what_is_added_to_are_read_where_they_are_asked_for(bias: bool, add: bool) -> None:
    check(Product(4, 24, 256, 64, 2, bytes=True), 2, bias, add)


def test_the_same_whatever_else_is_in_the_step() -> None:
    """A row's bits do not depend on the others'."""
    product = Product(4, 16, 768, 64, 16, bytes=True)
    constants = product.constants | {"BIAS": False, "ADD": False}
    found = []
    for count in (3, 16):
        output = torch.zeros(count, 16)
        arguments: dict[str, Any] = vars(product) | {"output": output, "rows": count, "bias": None}
        launch((1, 1), arguments, constants, 2)
        found.append(output[:3])
    assert torch.equal(*found)


def test_a_large_device_holds_all_warps_at_once() -> None:
    form = weight_format("int4-rtn", 64)
    shapes = {(4096, 4096): 8, (6144, 4096): 4, (28672, 4096): 1, (4096, 14336): 8, (96, 64): 1}
    for (rows, cols), warps in shapes.items():
        most, skinny = product_tilings(rows, cols, form)[0]
        assert (most, skinny["warps"]) == (SKINNY, warps)


def test_it_serves_products_of_bytes_in_blocks_of_16() -> None:
    constants = {"BLOCK_M": SKINNY, "BLOCK_N": SKINNY, "ROUNDED": True, "GROUP": 64}
    assert cuda_skinny.serves(constants)
    for change in ({"ROUNDED": False}, {"GROUP": 256}, {"BLOCK_M": 64, "BLOCK_N": 64}):
        assert not cuda_skinny.serves(constants | change), change
