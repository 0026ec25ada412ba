"""The GPU kernels of linear layers and of what lies between them, run by Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import ml_dtypes
import numpy as np
import pytest
import torch
from ptx import run

from infer_compile.codegen.cuda_sources import kernel
from infer_compile.codegen.tiles import tiled, tiled_scales
from infer_compile.runtime.engines.kernels import matmul_e4m3
from infer_compile.runtime.engines.rounding import rounded
from infer_compile.runtime.formats.program import Quantize

LOWER = kernel("linear").LOWER
SUM_ERROR = 1e-6
"""Of a product, over the spread of all: sums in float32, in another order."""
# (bits, rows of weights, inputs, group, rows of inputs): odd numbers of groups and of tiles, last blocks that
# are not full.
PRODUCTS = [
    (4, 40, 96, 32, 3),
    (4, 24, 256, 64, 1),
    (4, 16, 384, 128, 18),
    (8, 37, 96, 32, 2),
    (8, 50, 128, 64, 17),
    (8, 16, 256, 128, 1),
]


class Product:
    """A product of ``count`` rows of inputs, drawn: of bytes with their scales, or else of bf16 numbers."""

    def __init__(self, bits: int, rows: int, cols: int, group: int, count: int, bytes: bool) -> None:
        rng = np.random.default_rng(rows + cols)
        torch.manual_seed(rows + cols)
        top = 2 ** (bits - 1) - 1
        values = rng.integers(-top - (bits == 4), top + 1, (rows, cols)).astype(np.int8)
        factors = rng.uniform(0.5, 1.5, (rows, cols // group)).astype(ml_dtypes.bfloat16)
        weights = values * np.repeat(factors.astype(np.float64), group, axis=1)
        self.bias = torch.randn(rows).to(torch.bfloat16)
        self.before = torch.randn(count, rows)
        self.scales: torch.Tensor | None = None
        if bytes:
            self.input = torch.from_numpy(rng.integers(-127, 128, (count, cols)).astype(np.int8))
            self.scales = torch.from_numpy(rng.uniform(0.5, 1.5, (count, cols // group)).astype(np.float32))
            numbers = self.input.double() * self.scales.double().repeat_interleave(group, dim=1)
        else:
            self.input = torch.randn(count, cols).to(torch.bfloat16)
            numbers = self.input.double()
        self.weight = torch.from_numpy(tiled(values, bits, group))
        self.weight_scales = torch.from_numpy(tiled_scales(factors, bits)).view(torch.bfloat16)
        self.products = numbers @ torch.from_numpy(weights).T
        self.constants = {"ROWS": rows, "COLS": cols, "BITS": bits, "GROUP": group, "ROUNDED": bytes}

    def hold(self, output: torch.Tensor, bias: bool = True, add: bool = True) -> None:
        """``output`` is to be the product, but for the order of sums."""
        expected = self.products + (self.bias.double() if bias else 0) + (self.before.double() if add else 0)
        assert (output.double() - expected).abs().max() / expected.std() < SUM_ERROR


@pytest.mark.parametrize("bytes", [True, False])
@pytest.mark.parametrize(("bits", "rows", "cols", "group", "count"), PRODUCTS)
def test_products_are_exact_but_for_the_order_of_sums(
    bits: int, rows: int, cols: int, group: int, count: int, bytes: bool
) -> None:
    product = Product(bits, rows, cols, group, count, bytes)
    output = product.before.clone()
    kernel("linear").linear[(-(-rows // 32), -(-count // 16))](
        product.input,
        product.scales,
        product.weight,
        product.weight_scales,
        product.bias,
        output,
        count,
        BIAS=True,
        ADD=True,
        BLOCK_M=16,
        BLOCK_N=32,
        **product.constants,
    )
    product.hold(output)


@pytest.mark.parametrize(("group", "e4m3"), [(0, False), (32, False), (64, False), (192, True)])
def test_norms_are_rounded_for_their_reader(group: int, e4m3: bool) -> None:
    count, width = 3, 192
    values, weight = torch.randn(count, width) * 5, torch.rand(width).to(torch.bfloat16)
    values[1] = 0
    wide = values.double()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    output, operand, scales = _operands(count, width, group)
    sizes = {"WIDTH": width, "BLOCK": 256, "GROUP": group, "E4M3": e4m3}
    given = (values, weight, output, operand, scales)
    kernel("norm").norm[(count,)](*given, EPSILON=1e-5, KEEP=True, ROUND=True, **sizes)
    torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-6)
    _check_operand(output, operand, scales, group, e4m3)


@pytest.mark.parametrize(
    ("group", "e4m3", "portion"), [(0, False, False), (32, False, True), (160, True, True)]
)
def test_gates_and_buffers_are_rounded_for_their_reader(group: int, e4m3: bool, portion: bool) -> None:
    """In two blocks of a row, the second not full."""
    count, width, block = 2, 160, 128
    grid = (count, 1 if e4m3 else 2)
    both = torch.randn(count, 2 * width) * 3
    expected = torch.nn.functional.silu(both[:, :width].double()) * both[:, width:].double()
    _, operand, scales = _operands(count, width, group)
    sizes = {"WIDTH": width, "BLOCK": block, "GROUP": group, "E4M3": e4m3}
    shares = torch.randn(count) if portion else None
    if shares is not None:
        expected = expected * torch.sigmoid(shares.double())[:, None]
    kernel("gate").gate[grid](both, shares, operand, scales, PORTION=portion, **sizes)
    numbers = _numbers(operand, scales, group, e4m3)
    if e4m3:
        # Between numbers of e4m3 there is an eighth at most, near zero a 512th of the scale.
        step = expected.abs() / 8 + scales / 512
    else:
        step = 2**-7 * expected.abs() if group == 0 else scales.repeat_interleave(group, dim=1)
    assert bool(((numbers - expected).abs() <= 0.501 * step + 1e-6).all())
    buffer = expected.float()
    kernel("round").round[grid](buffer, operand, scales, **sizes)
    _check_operand(buffer, operand, scales, group, e4m3)


@pytest.mark.parametrize("add", [False, True])
def test_products_of_fp8_are_scaled_by_rows_and_columns(add: bool) -> None:
    count, rows, cols = 3, 80, 48
    inputs = torch.randn(count, cols).to(torch.float8_e4m3fn)
    weight = torch.randn(rows, cols).to(torch.float8_e4m3fn)
    scales, factors = torch.rand(count) + 0.5, torch.rand(rows) + 0.5
    bias, before = torch.randn(rows).to(torch.bfloat16), torch.randn(count, rows)
    products, output = torch.empty(count, rows), before.clone()
    matmul_e4m3(inputs, weight, torch.ones(1), products)
    ends = {"ROWS": rows, "BIAS": True, "ADD": add, "BLOCK": 64}
    kernel("scale").scale[(count, 2)](products, scales, factors, bias, output, **ends)
    numbers, weights = inputs.double() * scales.double()[:, None], weight.double() * factors.double()[:, None]
    expected = numbers @ weights.T + bias.double() + (before.double() if add else 0)
    assert (output.double() - expected).abs().max() / expected.std() < 1e-6


def _operands(count: int, width: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kind = torch.int8 if group else torch.bfloat16
    scales = torch.full((count, width // max(group, 1)), float("nan"))
    return torch.zeros(count, width), torch.zeros(count, width, dtype=kind), scales


def _numbers(operand: torch.Tensor, scales: torch.Tensor, group: int, e4m3: bool) -> torch.Tensor:
    values = operand.view(torch.float8_e4m3fn).float() if e4m3 else operand.float()
    return values * scales.repeat_interleave(group, dim=1) if group else values


def _check_operand(
    values: torch.Tensor, operand: torch.Tensor, scales: torch.Tensor, group: int, e4m3: bool
) -> None:
    """To the bit what the reference engine rounds to; on a device PyTorch divides less exactly."""
    values, operand, scales = values.cpu(), operand.cpu(), scales.cpu()
    if group == 0:
        assert torch.equal(operand, values.to(torch.bfloat16))
        return
    rounding = Quantize(input="x", output="y", group=group, to="fp8" if e4m3 else "int8")
    assert torch.equal(_numbers(operand, scales, group, e4m3), rounded(values, rounding))


@pytest.mark.parametrize("half", [32, 48])
def test_angles_of_far_positions_keep_their_digits(half: int) -> None:
    positions = torch.tensor([0, 1, 131_071, 10_000_000], dtype=torch.int32)
    frequencies = torch.rand(half, dtype=torch.float64)
    cosine, sine = torch.zeros(4, half), torch.zeros(4, half)
    kernel("angles").angles[(4,)](positions, frequencies, cosine, sine, SCALE=1.25, HALF=half, BLOCK=64)
    angle = torch.outer(positions.double(), frequencies)
    torch.testing.assert_close(cosine.double(), 1.25 * angle.cos(), atol=4e-7, rtol=0)
    torch.testing.assert_close(sine.double(), 1.25 * angle.sin(), atol=4e-7, rtol=0)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_heads_are_normed_and_turned_in_place(normed: bool, rotated: bool) -> None:
    """Of five heads the middle three: two queries and a key."""
    count, size = 2, 96
    buffer = torch.randn(count, 5, size)
    weights = torch.rand(2, size).to(torch.bfloat16)
    angle = torch.rand(count, 1, size // 2)
    expected = buffer.double()
    if normed:
        mean = expected.square().mean(-1, keepdim=True)
        own = weights.double()[[0, 0, 0, 1, 1]]
        expected = expected * torch.rsqrt(mean + 1e-6) * own
    if rotated:
        first, second = expected.chunk(2, -1)
        cosine, sine = angle.double().cos(), angle.double().sin()
        expected = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    expected[:, [0, 4]] = buffer.double()[:, [0, 4]]
    kernel("turn").turn[(count, 3)](
        buffer,
        angle.cos().contiguous(),
        angle.sin().contiguous(),
        weights[0],
        weights[1],
        EPSILON=1e-6,
        STRIDE=5 * size,
        FIRST=1,
        QUERIES=3,
        HEAD_DIM=size,
        BLOCK=64,
        NORMED=normed,
        ROTATED=rotated,
    )
    torch.testing.assert_close(buffer.double(), expected, atol=2e-6, rtol=0)


def test_rows_of_a_table_are_gathered() -> None:
    table = torch.randn(7, 80).to(torch.bfloat16)
    output = torch.zeros(3, 80)
    chosen = torch.tensor([6, 0, 6], dtype=torch.int32)
    kernel("gather").gather[(3, 2)](chosen, table, output, WIDTH=80, BLOCK=64)
    assert torch.equal(output, table.float()[chosen.long()])


def test_columns_are_placed_beside_others() -> None:
    input, output = torch.randn(3, 90), torch.randn(3, 200)
    expected = output.clone()
    expected[:, 110:180] = input[:, 20:]
    kernel("place").place[(3, 2)](
        input,
        output,
        STRIDE=90,
        FIRST=20,
        OUTPUT_STRIDE=200,
        OUTPUT_FIRST=110,
        WIDTH=70,
        BLOCK=64,
    )
    assert torch.equal(output, expected)


def test_what_is_activated_is_added() -> None:
    input, output = 3 * torch.randn(3, 80), torch.randn(3, 80)
    expected = output + torch.nn.functional.silu(input)
    kernel("activate").activate[(3, 2)](input, output, WIDTH=80, BLOCK=64)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)


def test_the_lower_halves_of_bytes_as_a_gpu_takes_them() -> None:
    """The instructions that the interpreter does not know, on every byte."""
    every = np.arange(256, dtype=np.uint8)
    (words,) = run(LOWER.value, every.view("<u4")[:, None], [32])
    assert np.array_equal(words.astype("<u4").view(np.int8), every.view(np.int8) << 4)
