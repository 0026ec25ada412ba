"""What the queries of a tile see: which pages in which form, and of these which tokens."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .pages import page_of

SEQUENCE = tl.constexpr(4)
"""Numbers that tell of a sequence."""


class Rows(NamedTuple):
    """The rows of a tile, each a query head of a token: which are ``real``, and of each the ``slot`` and the
    ``position`` of its token; new tokens begin at slot ``start``, and each sees ``recent`` pages before its
    own exactly. In a tree ``positions`` [count], less ``gap``, are those of the new tokens, and a bit of
    ``sees`` and ``later`` tells of each of the first and of the second 32 whether the row's token sees it.
    Without any bit the new tokens are a chain."""

    real: Any
    slot: Any
    position: Any
    start: Any
    count: Any
    recent: Any
    gap: Any
    positions: Any
    sees: Any
    later: Any


@triton.jit
def rows_of(
    start,
    count,
    recent,
    gap,
    first_token,
    first_row,
    positions,
    sees,
    PAGE: tl.constexpr,
    TREE: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Of a tile of ``TOKENS`` tokens from ``first_token`` on and ``GROUP`` query heads: its ``Rows``, the row
    of the batch that the token of each is, and the last page in which they see a token."""
    index = tl.arange(0, ROWS)
    token = first_token + index // GROUP
    real = (index < TOKENS * GROUP) & (token < count)
    row = (first_row + token).to(tl.int64)
    if TREE:
        position = tl.load(positions + row, mask=real, other=0) - gap
        seen = tl.load(sees + 2 * row, mask=real, other=0)
        later = tl.load(sees + 2 * row + 1, mask=real, other=0)
        last = (start + count - 1) // PAGE
    else:
        position = start + token
        seen = token
        later = token
        last = (start + tl.minimum(first_token + TOKENS, count) - 1) // PAGE
    rows = Rows(real, start + token, position, start, count, recent, gap, positions + first_row, seen, later)
    return rows, row, last


@triton.jit
def exact_part(rows, lowest, last, behind, PAGE: tl.constexpr, SINK: tl.constexpr):
    """Pages that a tile sees exact: the first sink, how many sinks, the first of the others, and how many
    pages in all. ``lowest`` is the first position of its tokens, ``last`` the last page in which they see a
    token, ``behind`` the first page that is not behind every row's window."""
    first_sink = tl.minimum(behind, SINK)
    sinks = tl.maximum(tl.minimum(SINK, last + 1) - first_sink, 0)
    near = tl.maximum(tl.maximum(lowest // PAGE - rows.recent, SINK), behind)
    return first_sink, sinks, near, sinks + tl.maximum(last + 1 - near, 0)


@triton.jit
def packed_part(rows, highest, behind, PAGE: tl.constexpr, SINK: tl.constexpr):
    """The first page that a tile sees packed, and how many; ``highest`` is its tokens' last position."""
    first = tl.maximum(behind, SINK)
    return first, tl.maximum(highest // PAGE - rows.recent - first, 0)


@triton.jit
def share(split, SHARES: tl.constexpr, pages, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """The first block of tokens of a share, and the one behind its last."""
    blocks = (pages * PAGE + BLOCK - 1) // BLOCK
    each = (blocks + SHARES - 1) // SHARES
    return split * each, tl.minimum((split + 1) * each, blocks)


@triton.jit
def hide(
    scores,
    pages,
    rows,
    first,
    window,
    EXACT: tl.constexpr,
    PAGE: tl.constexpr,
    SINK: tl.constexpr,
    TREE: tl.constexpr,
):
    """Scores of tokens from ``first`` on of the list; minus infinity where a row does not see the token
    so."""
    listed = first + tl.arange(0, scores.shape[1])
    page = page_of(pages, listed, PAGE)
    slot = page * PAGE + listed % PAGE
    position = slot
    near = (rows.position // PAGE - rows.recent)[:, None]
    visible = (listed < pages.count * PAGE)[None, :]
    if EXACT:
        visible &= (page < SINK)[None, :] | (page[None, :] >= near)
        if TREE:
            own = slot - rows.start
            new = (own >= 0) & (own < rows.count)
            position = tl.where(new, tl.load(rows.positions + own, mask=new, other=0) - rows.gap, slot)
            word = tl.where((own < 32)[None, :], rows.sees[:, None], rows.later[:, None])
            bit = (word >> (own & 31)[None, :]) & 1
            chain = ((rows.sees | rows.later) == 0)[:, None]
            seen = tl.where(chain, slot[None, :] <= rows.slot[:, None], bit != 0)
            visible &= (own < 0)[None, :] | (new[None, :] & seen)
        else:
            visible &= slot[None, :] <= rows.slot[:, None]
    else:
        visible &= page[None, :] < near
    visible &= position[None, :] > (rows.position - window)[:, None]
    return tl.where(visible, scores, float("-inf"))
