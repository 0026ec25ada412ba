"""Products of each head's numbers with a matrix of its own, in bfloat16."""

import triton
import triton.language as tl

from .bf16 import product, to_bf16


@triton.jit
def fold(
    input,
    weight,
    output,
    rows,
    INPUT_STRIDE: tl.constexpr,
    INPUT_STEP: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    OUTPUT_STEP: tl.constexpr,
    WEIGHT_STEP: tl.constexpr,
    INNER: tl.constexpr,
    INNER_STRIDE: tl.constexpr,
    OUTER: tl.constexpr,
    OUTER_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (rows / BLOCK_M, OUTER / BLOCK_N, heads). ``output[r, h, n]`` is the sum over k of ``input[r, h,
    k]`` and ``weight[h, k, n]``: of all, heads are STEP numbers apart, rows STRIDE, k INNER_STRIDE and n
    OUTER_STRIDE."""
    head = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    source = input + row.to(tl.int64)[:, None] * INPUT_STRIDE + head * INPUT_STEP
    matrix = weight + head * WEIGHT_STEP + column[None, :] * OUTER_STRIDE
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, INNER, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        there = (row < rows)[:, None] & (inner < INNER)[None, :]
        numbers = tl.load(source + inner[None, :], mask=there, other=0.0)
        if input.dtype.element_ty == tl.float32:
            numbers = to_bf16(numbers)
        there = (inner < INNER)[:, None] & (column < OUTER)[None, :]
        factors = tl.load(matrix + inner[:, None] * INNER_STRIDE, mask=there, other=0.0)
        total += product(numbers, factors)
    there = (row < rows)[:, None] & (column < OUTER)[None, :]
    target = output + row.to(tl.int64)[:, None] * OUTPUT_STRIDE + head * OUTPUT_STEP + column[None, :]
    tl.store(target, to_bf16(total), mask=there)
