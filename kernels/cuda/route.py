"""The router of a mixture of experts: likelihoods in float32 from numbers that nothing rounded, for no choice
may depend on the rounding of an operand."""

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
    bias,
    chosen,
    shares,
    CHOICES: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIASED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    LEAST_SUM: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    GROUP_LANES: tl.constexpr,
    SIZE_LANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Grid (rows,): the experts of the highest ranks, of equal ones the first, and what they count.

    Of GROUPS groups of SIZE experts the KEPT best take part, by the sum of their BEST best ranks. ``chosen``
    and ``shares`` are [rows, CHOICES]; GROUP_LANES, SIZE_LANES and PLACES are GROUPS, SIZE and CHOICES filled
    up to powers of two."""
    row = tl.program_id(0).to(tl.int64)
    lanes, places = tl.arange(0, GROUP_LANES * SIZE_LANES), tl.arange(0, PLACES)
    experts = lanes // SIZE_LANES * SIZE + lanes % SIZE_LANES
    inside = (lanes // SIZE_LANES < GROUPS) & (lanes % SIZE_LANES < SIZE)
    values = tl.load(scores + row * (GROUPS * SIZE) + experts, mask=inside, other=float("-inf"))
    if SIGMOID:
        likely, total = 1.0 / (1.0 + tl.exp(-values)), 1.0
    else:
        likely = tl.exp(values - tl.max(values, axis=0))
        total = tl.sum(likely, axis=0)
    left = likely
    if BIASED:
        left = likely / total + tl.load(bias + experts, mask=inside, other=0.0)
    left = tl.where(inside, left, float("-inf"))
    if KEPT < GROUPS:
        left = among_groups(left, KEPT, BEST, GROUP_LANES, SIZE_LANES)
    numbers, counted = tl.zeros([PLACES], tl.int32), tl.zeros([PLACES], tl.float32)
    for place in tl.static_range(CHOICES):
        best = lanes == tl.argmax(left, axis=0)
        numbers = tl.where(places == place, tl.sum(tl.where(best, experts, 0), axis=0), numbers)
        counted = tl.where(places == place, tl.sum(tl.where(best, likely, 0.0), axis=0), counted)
        left = tl.where(best, float("-inf"), left)
    if NORMALIZED:
        # What all likelihoods are divided by cancels.
        total = tl.sum(counted, axis=0) + LEAST_SUM
    tl.store(chosen + row * CHOICES + places, numbers, mask=places < CHOICES)
    tl.store(shares + row * CHOICES + places, counted / total * SCALE, mask=places < CHOICES)


@triton.jit
def among_groups(
    ranks, KEPT: tl.constexpr, BEST: tl.constexpr, GROUP_LANES: tl.constexpr, SIZE_LANES: tl.constexpr
):
    """``ranks`` of experts outside the best groups at minus infinity."""
    grouped = tl.reshape(ranks, [GROUP_LANES, SIZE_LANES])
    left, columns = grouped, tl.arange(0, SIZE_LANES)[None, :]
    sums = tl.zeros([GROUP_LANES], tl.float32)
    for _ in tl.static_range(BEST):
        sums += tl.max(left, axis=1)
        left = tl.where(columns == tl.argmax(left, axis=1)[:, None], float("-inf"), left)
    groups = tl.arange(0, GROUP_LANES)
    kept = tl.zeros([GROUP_LANES], tl.int32)
    for _ in tl.static_range(KEPT):
        best = groups == tl.argmax(sums, axis=0)
        kept = tl.where(best, 1, kept)
        sums = tl.where(best, float("-inf"), sums)
    return tl.reshape(tl.where(kept[:, None] > 0, grouped, float("-inf")), [GROUP_LANES * SIZE_LANES])
