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

LOWER = kernel("linear").LOWER
# (bits, rows of weights, inputs, group, rows of inputs, shares): odd numbers of groups and of tiles, last
# blocks that are not full.
PRODUCTS = [
    (4, 40, 96, 32, 3, 2),
    (4, 24, 256, 64, 1, 1),
    (4, 16, 384, 128, 18, 1),
    (8, 37, 96, 32, 2, 3),
    (8, 50, 128, 64, 17, 1),
    (8, 16, 256, 128, 1, 2),
]


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize(("bits", "rows", "cols", "group", "count", "split"), PRODUCTS)
def test_products_are_exact_but_for_the_order_of_sums(
    bits: int, rows: int, cols: int, group: int, count: int, split: int, rounded: bool
) -> None:
    rng = np.random.default_rng(rows + cols)
    top = 2 ** (bits - 1) - 1
    values = rng.integers(-top - (bits == 4), top + 1, (rows, cols)).astype(np.int8)
    factors = rng.uniform(0.5, 1.5, (rows, cols // group)).astype(ml_dtypes.bfloat16)
    weights = values * np.repeat(factors.astype(np.float64), group, axis=1)
    bias = torch.randn(rows).to(torch.bfloat16)
    before = torch.randn(count, rows)
    if rounded:
        inputs = torch.from_numpy(rng.integers(-127, 128, (count, cols)).astype(np.int8))
        scales = torch.from_numpy(rng.uniform(0.5, 1.5, (count, cols // group)).astype(np.float32))
        numbers = inputs.double() * scales.double().repeat_interleave(group, dim=1)
    else:
        inputs, scales = torch.randn(count, cols).to(torch.bfloat16), None
        numbers = inputs.double()
    expected = before.double() + numbers @ torch.from_numpy(weights).T + bias.double()
    output, parts = before.clone(), torch.full((split, count, rows), float("nan"))
    ends = {"ROWS": rows, "BIAS": True, "ADD": True, "SPLIT": split}
    module = kernel("linear")
    module.linear[(-(-rows // 32), -(-count // 16), split)](
        inputs,
        scales,
        torch.from_numpy(tiled(values, bits, group)),
        torch.from_numpy(tiled_scales(factors, bits)).view(torch.bfloat16),
        bias,
        output,
        parts,
        count,
        COLS=cols,
        BITS=bits,
        GROUP=group,
        ROUNDED=rounded,
        BLOCK_M=16,
        BLOCK_N=32,
        **ends,
    )
    if split > 1:
        assert torch.equal(output, before)
        module.merge_shares[(count, 1)](parts, bias, output, count, BLOCK=64, **ends)
    error = (output.double() - expected).abs().max() / expected.std()
    assert error < 1e-6


@pytest.mark.parametrize("group", [0, 32, 64])
def test_norms_are_rounded_for_their_reader(group: int) -> None:
    count, width = 3, 192
    values, weight = torch.randn(count, width) * 5, torch.rand(width).to(torch.bfloat16)
    values[1] = 0
    wide = values.double()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    output, operand, scales = _operands(count, width, group)
    kernel("norm").norm[(count,)](
        values,
        weight,
        output,
        operand,
        scales,
        EPSILON=1e-5,
        WIDTH=width,
        BLOCK=256,
        GROUP=group,
        KEEP=True,
        ROUND=True,
    )
    torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-6)
    _check_operand(output, operand, scales, group)


@pytest.mark.parametrize("group", [0, 32])
def test_gates_and_buffers_are_rounded_for_their_reader(group: int) -> None:
    count, width, block = 2, 160, 128
    both = torch.randn(count, 2 * width) * 3
    expected = torch.nn.functional.silu(both[:, :width].double()) * both[:, width:].double()
    _, operand, scales = _operands(count, width, group)
    kernel("gate").gate[(count, 2)](both, operand, scales, WIDTH=width, BLOCK=block, GROUP=group)
    numbers = _numbers(operand, scales, group)
    step = 2**-7 * expected.abs() if group == 0 else scales.repeat_interleave(group, dim=1)
    assert bool(((numbers - expected).abs() <= 0.501 * step + 1e-6).all())
    buffer = expected.float()
    kernel("round").round[(count, 2)](buffer, operand, scales, WIDTH=width, BLOCK=block, GROUP=group)
    _check_operand(buffer, operand, scales, group)


def _operands(count: int, width: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kind = torch.int8 if group else torch.bfloat16
    scales = torch.full((count, width // max(group, 1)), float("nan"))
    return torch.zeros(count, width), torch.zeros(count, width, dtype=kind), scales


def _numbers(operand: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    return operand.float() * scales.repeat_interleave(group, dim=1) if group else operand.float()


def _check_operand(values: torch.Tensor, operand: torch.Tensor, scales: torch.Tensor, group: int) -> None:
    """To the bit what the reference engine rounds to."""
    if group == 0:
        assert torch.equal(operand, values.to(torch.bfloat16))
        return
    groups = values.unflatten(-1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    assert torch.equal(scales, scale[..., 0])
    assert torch.equal(operand.float(), torch.round(groups * inverse).flatten(-2))


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


def test_the_lower_halves_of_bytes_as_a_gpu_takes_them() -> None:
    """The instructions that the interpreter does not know, on every byte."""
    every = np.arange(256, dtype=np.uint8)
    (words,) = run(LOWER.value, every.view("<u4")[:, None], [32])
    assert np.array_equal(words.astype("<u4").view(np.int8), every.view(np.int8) << 4)
