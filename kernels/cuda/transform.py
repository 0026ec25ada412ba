"""From vectors to the columns that codes are made of, and back (runtime/kv/transform.py), piece by piece.

``signs`` [D] float32; of calibrated planes ``table`` [kv_heads, columns, D] (dense) or [kv_heads, columns]
(diagonal) float32."""

import triton
import triton.language as tl

from .rotation import hadamard

STEP = tl.constexpr(16)
"""Elements of vectors that a product with a dense table takes at once."""


@triton.jit
def load_piece(source, real, PIECE: tl.constexpr):
    """Columns of the piece, [rows, columns] float32, of vectors that begin at ``source`` [rows]."""
    columns: tl.constexpr = PIECE[0]
    pointers = source[:, None] + PIECE[1] + tl.arange(0, columns)[None, :]
    return tl.load(pointers, mask=real[:, None], other=0.0).to(tl.float32)


@triton.jit
def forward(
    source,
    real,
    signs,
    table,
    head,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    TRANSFORM: tl.constexpr,
    QUERY: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Columns of the piece of the vectors' transform; of queries if ``QUERY``, with the other table."""
    columns: tl.constexpr = PIECE[0]
    if TRANSFORM == "dense":
        x = tl.zeros((source.shape[0], columns), tl.float32)
        own = table + (head * COLUMNS + PIECE[1] + tl.arange(0, columns)[None, :]) * D
        # A loop: all of the table at once would not fit the registers.
        for first in range(0, D, STEP):
            inside = first + tl.arange(0, STEP)
            part = tl.load(source[:, None] + inside[None, :], mask=real[:, None], other=0.0).to(tl.float32)
            x += tl.dot(part, tl.load(own + inside[:, None]), input_precision="ieee")
        return x
    else:
        x = load_piece(source, real, PIECE)
        if TRANSFORM == "hadamard":
            # The largest power of two that divides D.
            size: tl.constexpr = D & -D
            x = hadamard(x * tl.load(signs + PIECE[1] + tl.arange(0, columns))[None, :], size, size**-0.5)
        elif TRANSFORM == "diagonal":
            scale = tl.load(table + head * COLUMNS + PIECE[1] + tl.arange(0, columns))[None, :]
            x = x * scale if QUERY else tl.div_rn(x, tl.broadcast_to(scale, x.shape))
        return x


@triton.jit
def restore_dense(
    columns, table, head, D: tl.constexpr, COLUMNS: tl.constexpr, PIECES: tl.constexpr, WIDTH: tl.constexpr
):
    """What the columns, one tensor for each of ``PIECES``, stand for: the part ``WIDTH`` of D."""
    width: tl.constexpr = WIDTH[0]
    x = tl.zeros((columns[0].shape[0], width), tl.float32)
    for i in tl.static_range(len(PIECES)):
        x += tl.dot(
            columns[i], _rows(table + head * (COLUMNS * D), D, PIECES[i], WIDTH), input_precision="ieee"
        )
    return x


@triton.jit
def _rows(table, D: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr):
    columns: tl.constexpr = PIECE[0]
    width: tl.constexpr = WIDTH[0]
    rows = (PIECE[1] + tl.arange(0, columns))[:, None] * D
    return tl.load(table + rows + WIDTH[1] + tl.arange(0, width)[None, :])
