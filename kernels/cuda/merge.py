"""Shares of attention put together; what was summed over packed pages is turned back, once per token and
head."""

import triton
import triton.language as tl

from .bf16 import to_bf16
from .codes import rint
from .operand import step_of
from .rotation import hadamard
from .transform import load_piece, restore_dense


@triton.jit
def merge(
    sums,
    logs,
    slots,
    signs,
    table,
    means,
    out,
    scales,
    out_stride,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXACT_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    TRANSFORM: tl.constexpr,
    MEANS: tl.constexpr,
    VALUES: tl.constexpr,
    WIDTHS: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Grid (rows, kv_heads). ``sums`` [rows, heads, SPLITS, D] and ``logs`` [rows, heads, SPLITS] of
    attend.py to ``out`` [rows, heads, D], bfloat16 or float32, or with ROUND int8 with ``scales`` of so many
    neighbours (operand.py); zeros where ``slots`` [rows] is negative.
    ``table`` and ``means`` [kv_heads, D] are those of calibrated values: ``decode`` or ``scale``, and what
    was taken away."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member = tl.arange(0, HEIGHT)
    used = member < GROUP
    real = member < tl.where(tl.load(slots + row) >= 0, GROUP, 0)
    whose = row * (tl.num_programs(1) * GROUP) + head * GROUP + member
    most = tl.full((HEIGHT,), float("-inf"), tl.float32)
    for split in range(SPLITS):
        most = tl.maximum(most, tl.load(logs + whose * SPLITS + split, mask=real, other=0.0))
    total = tl.zeros((HEIGHT,), tl.float32)
    plain = ()
    for i in tl.static_range(len(WIDTHS)):
        plain = plain + (tl.zeros((HEIGHT, WIDTHS[i][0]), tl.float32),)
    for split in range(EXACT_SPLITS):
        weight = tl.exp2(tl.load(logs + whose * SPLITS + split, mask=real, other=0.0) - most)
        total += weight
        plain = _add(plain, sums + (whose * SPLITS + split) * D, weight, real, WIDTHS)
    if SPLITS > EXACT_SPLITS:
        packed = ()
        for i in tl.static_range(len(VALUES)):
            packed = packed + (tl.zeros((HEIGHT, VALUES[i][0]), tl.float32),)
        for split in range(EXACT_SPLITS, SPLITS):
            weight = tl.exp2(tl.load(logs + whose * SPLITS + split, mask=real, other=0.0) - most)
            total += weight
            packed = _add(packed, sums + (whose * SPLITS + split) * D, weight, real, VALUES)
        plain = _restored(plain, packed, signs, table, head, D, COLUMNS, TRANSFORM, VALUES, WIDTHS)
    inverse = 1.0 / total
    place = row * out_stride + (head * GROUP + member) * D
    for i in tl.static_range(len(WIDTHS)):
        numbers = plain[i] * inverse[:, None]
        _store(out, scales, place, numbers, means + head * D, real, used, MEANS, WIDTHS[i], ROUND)


@triton.jit
def _add(totals, source, weight, real, PIECES: tl.constexpr):
    added = ()
    for i in tl.static_range(len(PIECES)):
        added = added + (totals[i] + load_piece(source, real, PIECES[i]) * weight[:, None],)
    return added


@triton.jit
def _restored(
    plain,
    packed,
    signs,
    table,
    head,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSFORM: tl.constexpr,
    VALUES: tl.constexpr,
    WIDTHS: tl.constexpr,
):
    """``plain`` plus what the columns ``packed`` stand for."""
    both = ()
    if TRANSFORM == "dense":
        for i in tl.static_range(len(WIDTHS)):
            both = both + (plain[i] + restore_dense(packed, table, head, D, COLUMNS, VALUES, WIDTHS[i]),)
    else:
        # The pieces of columns are the first ones of D.
        for i in tl.static_range(len(WIDTHS)):
            if i < len(VALUES):
                both = both + (
                    plain[i] + _turned(packed[i], signs, table, head, D, COLUMNS, TRANSFORM, VALUES[i]),
                )
            else:
                both = both + (plain[i],)
    return both


@triton.jit
def _turned(
    x,
    signs,
    table,
    head,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSFORM: tl.constexpr,
    PIECE: tl.constexpr,
):
    columns: tl.constexpr = PIECE[0]
    own = PIECE[1] + tl.arange(0, columns)
    if TRANSFORM == "hadamard":
        size: tl.constexpr = D & -D
        x = hadamard(x, size, size**-0.5) * tl.load(signs + own)[None, :]
    elif TRANSFORM == "diagonal":
        x = x * tl.load(table + head * COLUMNS + own)[None, :]
    return x


@triton.jit
def _store(
    out,
    scales,
    place,
    numbers,
    means,
    real,
    used,
    MEANS: tl.constexpr,
    PIECE: tl.constexpr,
    ROUND: tl.constexpr,
):
    columns: tl.constexpr = PIECE[0]
    own = PIECE[1] + tl.arange(0, columns)
    if MEANS:
        numbers += tl.load(means + own)[None, :]
    numbers = tl.where(real[:, None], numbers, 0.0)
    if ROUND:
        height: tl.constexpr = numbers.shape[0]
        groups: tl.constexpr = columns // ROUND
        grouped = tl.reshape(numbers, [height, groups, ROUND])
        scale, inverse = step_of(tl.max(tl.abs(grouped), axis=2), 127.0)
        first = (place + PIECE[1]) // ROUND
        tl.store(scales + first[:, None] + tl.arange(0, groups)[None, :], scale, mask=used[:, None])
        numbers = tl.reshape(rint(grouped * inverse[:, :, None]), [height, columns]).to(tl.int8)
    elif out.dtype.element_ty == tl.bfloat16:
        numbers = to_bf16(numbers)
    tl.store(out + place[:, None] + own[None, :], numbers, mask=used[:, None])
