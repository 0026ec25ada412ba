"""What the kernels of a GPU are told of a step: flat arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.launches import Count
from ..formats.paging import Paging
from ..step import Int32
from .rows import Rows, need

NOWHERE = -1
SEEN = 32
"""New tokens of a tree at most: each has a bit of a word for each that it may see."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """``arrays`` by the names of their buffers, and how many there are of everything that is counted."""

    arrays: dict[str, Int32]
    counts: dict[Count, int]
    tile: int


def inputs_of(layout: Paging, batch: Sequence[Rows], tiles: Sequence[int]) -> Inputs:
    """The step of ``batch``, in tiles of the first of ``tiles`` tokens that holds every sequence's, else of
    the last.

    Raises InferCompileError IC521 for a tree of more tokens than a word has bits.
    """
    tree = max((part.count for part in batch if part.step.parents is not None), default=0)
    need(tree <= SEEN, f"a tree of {tree} tokens, and the kernels take {SEEN}")
    packed = all(part.step.packed is not None for part in batch)
    need(packed or not layout.compressed, "a sequence that compresses nothing, and the kernels do")
    longest = max((part.count for part in batch), default=0)
    tile = next((tokens for tokens in tiles if longest <= tokens), tiles[-1])
    arrays: dict[str, Int32] = {
        "tokens": _joined([part.step.tokens for part in batch]),
        "positions": _joined([part.positions for part in batch]),
        "slots": _joined([_slots(layout, part) for part in batch]),
        "sees": _joined([_bits(part) for part in batch]),
        "sequences": _table([(part.first, part.step.start, part.count) for part in batch], 3),
        "tiles": _table(
            [(index, first) for index, part in enumerate(batch) for first in range(0, part.count, tile)], 2
        ),
        "chosen": _joined([np.array(part.outputs) for part in batch]),
    }
    if layout.compressed:
        arrays["jobs"] = _table([job for part in batch for job in _jobs(layout, part)], 2)
    counts: dict[Count, int] = {
        "rows": len(arrays["tokens"]),
        "outputs": len(arrays["chosen"]),
        "sequences": len(batch),
        "tiles": len(arrays["tiles"]),
        "seals": len(arrays.get("jobs", ())),
    }
    return Inputs(arrays, counts, tile)


def _slots(layout: Paging, part: Rows) -> NDArray[np.int64]:
    """Where each new token goes in the exact pool, counted in tokens."""
    slots = part.step.start + np.arange(part.count)
    pages = part.step.exact[slots // layout.page_tokens].astype(np.int64)
    return pages * layout.page_tokens + slots % layout.page_tokens


def _bits(part: Rows) -> Int32:
    """Which of the sequence's new tokens each sees, one bit per token; none of a chain, whose
    tokens see those before them."""
    if part.step.parents is None:
        return np.zeros(part.count, np.int32)
    places = np.uint32(1) << np.arange(part.count, dtype=np.uint32)
    bits: Int32 = (part.sees * places).sum(axis=1, dtype=np.uint32).view(np.int32)
    return bits


def _jobs(layout: Paging, part: Rows) -> list[tuple[int, int]]:
    """The pool pages to compress and where to."""
    exact, packed = part.step.exact, part.step.packed
    if packed is None:
        return []
    return [(int(exact[page]), int(packed[page])) for page in part.sealing if layout.packs(page)]


def _joined(parts: Sequence[NDArray[np.int32] | NDArray[np.int64]]) -> Int32:
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Int32:
    return np.array(rows, np.int32).reshape(-1, width)
