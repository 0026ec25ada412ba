"""kernels/cuda/decode.cu for a launch of ``attend``: which launches it serves, and the constants that it is
compiled with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..runtime.formats.codebook import integers
from ..runtime.formats.kv import STRIP_BITS
from ..runtime.formats.launches import Dtype
from .cuda_constants import Constants
from .cuda_pages import BYTE_BITS, WORD, Piece, StripPlace
from .cuda_sources import compile_cuda

ENTRY = "decode"
ARGUMENTS = (
    *("queries", "factors", "steps", "exact_pool", "packed_pool", "exact_table", "packed_table", "tiles"),
    *("sequences", "positions", "sees", "sums", "logs", "query_stride", "table_stride", "exact_page"),
    *("exact_place", "packed_page", "packed_place", "scale", "window"),
)
"""As the kernel takes them: those of ``attend`` without what only sequences that evict have."""
BLOCK = 32
"""Cached tokens at a time."""
MOST_TOKENS = 8
MOST_ROWS = 32
"""Of a tile: tokens times the query heads of a key-value head."""
MOST_KEPT = 256
"""Heads' columns times eights of rows beside whose sums registers hold factors too."""
MOST_SUMS = 448
"""The same, of columns with codes, where factors and weights are of two bytes."""
WIDE_HEAD = 128
COLUMNS = (64, 96, 128, 256)
WARPS = 2
SHARED = 40 << 10
"""Bytes of shared memory for pages on their way and factors: what a block may have unasked is 48 KiB."""
OPERAND = 512
"""Bytes of a product's left operand."""
MOST_BYTE = 127
WORD_NIBBLES = 8
LEAST_STAGES, MOST_STAGES = 2, 5
"""Pages of a warp that are here or on their way."""


def serves(constants: Constants) -> bool:
    """Whether the kernel does what ``attend`` does with ``constants``, and spills no registers."""
    return (
        constants["TOKENS"] <= MOST_TOKENS
        and not constants["EVICTS"]
        and constants["SPLITS"] > constants["EXACT_SPLITS"]
        and _rows(constants) <= MOST_ROWS
        and constants["D"] in COLUMNS
        and constants["PAGE"] % BLOCK == 0
        and _stages(constants) >= LEAST_STAGES
        and all(_codes(constants[f"{side}S"], constants[f"{side}_SCALES"]) for side in ("KEY", "VALUE"))
        and not _spills(constants)
    )


def compile_decode(constants: Constants, queries: Dtype, capability: int) -> tuple[bytes, str]:
    """The cubin for compute capability ``capability`` (89 is 8.9), and its PTX. Raises InferCompileError
    IC313 and IC314."""
    return compile_text(header(constants, queries), capability)


def compile_text(header: str, capability: int) -> tuple[bytes, str]:
    """The same of the text of constants.h."""
    return compile_cuda("decode.cu", header, capability)


def header(constants: Constants, queries: Dtype) -> str:
    """constants.h; ``queries`` is what queries are kept as."""
    numbers: dict[str, int] = {
        name: constants[name]
        for name in (
            *("TOKENS", "GROUP", "KV_HEADS", "D", "PAGE", "SINK", "RECENT", "TREE", "CHECKED"),
            *("EXACT_SPLITS", "SPLITS", "SEGMENTS", "HEAD", "KEY_SCALES", "VALUE_SCALES"),
        )
    }
    numbers |= {"WARPS": WARPS, "RESIDENT": _resident(constants), "STAGES": _stages(constants)}
    numbers["MOST_KEPT"] = MOST_KEPT
    lines = ["#pragma once", '#include "piece.cuh"']
    lines += [f"constexpr int {name} = {int(number)};" for name, number in numbers.items()]
    lines += _tables()
    for side in ("KEYS", "VALUES"):
        pieces = ", ".join(_piece(piece) for piece in constants[side])
        lines.append(f"constexpr Piece {side}[] = {{{pieces}}};")
    lines.append(f"using Query = {'float' if queries == 'f32' else 'unsigned short'};")
    return "\n".join(lines) + "\n"


def _piece(piece: Piece) -> str:
    """A ``Piece`` of piece.cuh."""
    columns, first, _, bits, _, segment, strips, _ = piece
    return f"{{{columns}, {first}, {bits}, {segment}, {', '.join(_strip(strip) for strip in strips)}}}"


def _strip(strip: StripPlace) -> str:
    """A ``Strip``; places of bytes become those of words."""
    bits, _, *places = strip
    own = WORD if bits == BYTE_BITS else 1
    return f"{{{', '.join(str(number) for number in (bits, *(place // own for place in places)))}}}"


def _spills(constants: Constants) -> bool:
    """Whether sums leave too few registers: of many rows of wide heads, or of all columns of 32 rows where
    factors and weights are of two bytes."""
    values = constants["VALUES"]
    columns, most = sum(piece[0] for piece in values), max(piece[3] for piece in values)
    if constants["D"] > WIDE_HEAD:
        return _halves(constants) > 1
    return _two_bytes(constants) and most > STRIP_BITS and _halves(constants) * columns > MOST_SUMS


def _resident(constants: Constants) -> int:
    """Blocks of a multiprocessor: as many as spill no registers."""
    few = _halves(constants) <= (1 if _two_bytes(constants) else 2) and constants["D"] <= WIDE_HEAD
    return 6 if few else 4


def _stages(constants: Constants) -> int:
    left = SHARED // WARPS - _operands(constants)
    return min(MOST_STAGES, left // (WORD * int(constants["HEAD"])))


def _operands(constants: Constants) -> int:
    """Bytes of shared memory for a warp's factors."""
    if _halves(constants) * constants["D"] <= MOST_KEPT:
        return 0
    products = -(-_halves(constants) * (2 if _two_bytes(constants) else 1) // 2)
    return OPERAND * products * sum(max(1, piece[0] // BLOCK) for piece in constants["KEYS"])


def _two_bytes(constants: Constants) -> bool:
    """Whether factors have two."""
    return bool(constants["SEGMENTS"] > 1 or constants["KEYS"][0][3] > STRIP_BITS)


def _rows(constants: Constants) -> int:
    return int(constants["TOKENS"] * constants["GROUP"])


def _halves(constants: Constants) -> int:
    """Eights of rows."""
    return -(-_rows(constants) // 8)


def _tables() -> Iterator[str]:
    """By bits of a code, up to 4, its integers as bytes, times as much as bytes hold, so that products are
    of one size with those of wider codes. Those of 4 bits are lifted, to begin with zero."""
    spreads, lifts, points = [0], [0], ["{0, 0}"]
    for bits in range(1, STRIP_BITS + 1):
        own = integers(bits).astype(int)
        lift = -own[0] if bits == STRIP_BITS else 0
        spreads.append(MOST_BYTE // (own + lift).max())
        lifts.append(spreads[-1] * lift)
        table = np.resize((own + lift) * spreads[-1], 2 * WORD_NIBBLES).astype(np.int8)
        words = [int.from_bytes(half.tobytes(), "little") for half in np.split(table, 2)]
        points.append(f"{{{', '.join(f'{word:#018x}' for word in words)}}}")
    yield f"constexpr int SPREADS[] = {{{', '.join(map(str, spreads))}}};"
    yield f"constexpr int LIFTS[] = {{{', '.join(map(str, lifts))}}};"
    yield f"constexpr unsigned long long POINTS[][2] = {{{', '.join(points)}}};"


def _codes(pieces: tuple[Piece, ...], scales: int) -> bool:
    """Whether all are codes, and none are wide beside scales."""
    most = max(bits for _, _, _, bits, *_ in pieces)
    return all(kind == "codes" for _, _, kind, *_ in pieces) and (scales < 0 or most <= STRIP_BITS)
