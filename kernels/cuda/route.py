"""The router of a mixture of experts: probabilities in float32 from numbers that nothing rounded, for no
choice may depend on the rounding of an operand."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def score(
    input,
    weight,
    output,
    rows,
    EXPERTS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (blocks of ``rows``, blocks of experts): ``output`` [rows, EXPERTS] = ``input @ weight.T``."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, COLS, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        left = (m < rows)[:, None] & (k < COLS)[None, :]
        right = (n < EXPERTS)[:, None] & (k < COLS)[None, :]
        values = tl.load(input + m[:, None] * COLS + k[None, :], mask=left, other=0.0)
        factors = tl.load(weight + n[:, None] * COLS + k[None, :], mask=right, other=0.0).to(tl.float32)
        total += tl.dot(values, tl.trans(factors), input_precision="ieee")
    inside = (m < rows)[:, None] & (n < EXPERTS)[None, :]
    tl.store(output + m[:, None] * EXPERTS + n[None, :], total, mask=inside)


@triton.jit
def choose(
    scores,
    chosen,
    shares,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Grid (rows,): the experts of the largest probabilities, of equal ones the first, and their shares;
    ``chosen`` and ``shares`` are [rows, CHOICES], PLACES is CHOICES filled up to a power of two."""
    row = tl.program_id(0).to(tl.int64)
    experts, places = tl.arange(0, BLOCK), tl.arange(0, PLACES)
    values = tl.load(scores + row * EXPERTS + experts, mask=experts < EXPERTS, other=float("-inf"))
    left = tl.exp(values - tl.max(values, axis=0))
    total = tl.sum(left, axis=0)
    left = tl.where(experts < EXPERTS, left, -1.0)
    numbers, likely = tl.zeros([PLACES], tl.int32), tl.zeros([PLACES], tl.float32)
    for place in tl.static_range(CHOICES):
        best = tl.argmax(left, axis=0)
        numbers = tl.where(places == place, best, numbers)
        likely = tl.where(places == place, tl.max(left, axis=0), likely)
        left = tl.where(experts == best, -1.0, left)
    if NORMALIZED:
        total = tl.sum(likely, axis=0)
    inside = places < CHOICES
    tl.store(chosen + row * CHOICES + places, numbers, mask=inside)
    tl.store(shares + row * CHOICES + places, likely / total, mask=inside)
