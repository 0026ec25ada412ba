"""What the kernels of a GPU are told of a step: flat arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.launches import Count
from ..formats.paging import Paging
from ..formats.program import Program
from ..step import MOST_TREE, Float32, Int32
from .rows import Rows, need

Float64 = NDArray[np.float64]
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Inputs:
    """``arrays`` by the names of their buffers, ``tables`` of pages by theirs, one for each sequence, and how
    many there are of everything that is counted."""

    arrays: dict[str, Int32 | Float32 | Float64]
    tables: dict[str, list[Int32]]
    counts: dict[Count, int]
    tile: int


def filler(name: str) -> int:
    """What stands in rows that are nobody's: a token that exists, no place to write to, nothing to do."""
    return NOWHERE if name in ("slots", "tiles", "jobs") else 0


def inputs_of(program: Program, batch: Sequence[Rows], tiles: Sequence[int], settings: Float64) -> Inputs:
    """The step of ``batch``, in tiles of the first of ``tiles`` tokens that holds every sequence's, else of
    the last. ``settings`` [outputs, SETTINGS] are what its rows are drawn with.

    Raises InferCompileError IC521 for a sequence that compresses nothing, if the program checks none.
    """
    layout = program.cache
    packed = all(part.step.packed is not None for part in batch)
    known = packed or not layout.compressed or program.limits.checked_tokens
    need(bool(known), "a sequence that compresses nothing, of a program that checks no answers")
    longest = max((part.count for part in batch), default=0)
    tile = next((tokens for tokens in tiles if longest <= tokens), tiles[-1])
    arrays: dict[str, Int32 | Float32 | Float64] = {
        "tokens": _joined([part.step.tokens for part in batch]),
        "positions": _joined([part.positions for part in batch]),
        "slots": _joined([_slots(layout, part) for part in batch] if layout.layers else ()),
        "sees": _joined([_bits(part) for part in batch]),
        "sequences": _table([_sequence(layout, part) for part in batch], 4),
        "tiles": _table(
            [(index, first) for index, part in enumerate(batch) for first in range(0, part.count, tile)], 2
        ),
        "chosen": _joined([np.array(part.outputs) for part in batch]),
        "settings": settings,
    }
    if program.limits.overflow == "evict":
        arrays["gaps"] = _joined([np.full(part.count, part.step.evicted) for part in batch])
    fed = [part.step.features for part in batch if part.step.features is not None]
    if fed:
        arrays["fed"] = np.concatenate(fed).astype(np.float32)
    tables = {"exact_table": [_held(layout, part, part.step.exact) for part in batch]}
    if layout.compressed:
        tables["packed_table"] = [
            _held(layout, part, part.step.exact if part.step.packed is None else part.step.packed)
            for part in batch
        ]
        arrays["jobs"] = _table([job for part in batch for job in _jobs(layout, part)], 2)
    counts: dict[Count, int] = {
        "rows": len(arrays["tokens"]),
        "outputs": len(arrays["chosen"]),
        "sequences": len(batch),
        "tiles": len(arrays["tiles"]),
        "seals": len(arrays.get("jobs", ())),
    }
    return Inputs(arrays, tables, counts, tile)


def _held(layout: Paging, part: Rows, table: Int32) -> Int32:
    """Of a page table what the step may look at, the gap closed."""
    held, sinks = table[: layout.pages(part.tokens)], layout.sink_pages
    if not part.step.evicted:
        return held
    return np.concatenate([held[:sinks], held[sinks + part.step.evicted // layout.page_tokens :]])


def _sequence(layout: Paging, part: Rows) -> tuple[int, ...]:
    """First row, slot of the first new token, new tokens, and tokens evicted: the complement of these where
    pages are compressed but none of this sequence."""
    whole = layout.compressed and part.step.packed is None
    return part.first, part.step.start, part.count, ~part.step.evicted if whole else part.step.evicted


def _slots(layout: Paging, part: Rows) -> NDArray[np.int64]:
    """Where each new token goes in the exact pool, counted in tokens."""
    slots = part.step.start + np.arange(part.count)
    pages = part.step.exact[slots // layout.page_tokens].astype(np.int64)
    return pages * layout.page_tokens + slots % layout.page_tokens


def _bits(part: Rows) -> Int32:
    """Which of the sequence's new tokens each sees, one bit per token in two words; none of a chain, whose
    tokens see those before them."""
    bits = np.zeros((part.count, MOST_TREE), np.bool_)
    if part.step.parents is not None:
        bits[:, : part.count] = part.sees
    words: Int32 = np.packbits(bits, axis=1, bitorder="little").view("<i4").reshape(-1)
    return words


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
