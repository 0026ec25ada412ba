"""kernels/cuda/decode.cu for a launch of ``attend``: which launches it serves, and the constants that it is
compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runtime.formats.codebook import integers
from ..runtime.formats.launches import Dtype
from .cuda_constants import Constants
from .cuda_pages import WORD, Piece
from .cuda_sources import compile_cuda

ENTRY = "decode"
ARGUMENTS = (
    *("queries", "factors", "steps", "exact_pool", "packed_pool", "exact_table", "packed_table", "tiles"),
    *("sequences", "sums", "logs", "query_stride", "table_stride", "exact_page", "exact_place"),
    *("packed_page", "packed_place", "scale", "window"),
)
"""As the kernel takes them: those of ``attend`` without what only trees have."""
BITS = (2, 3, 4)
BLOCK = 32
"""Cached tokens at a time."""
MOST_GROUP = 16
COLUMNS = (64, 128)
WARPS = 2
SHARED = 40 << 10
"""Bytes of shared memory for pages on their way: what a block may have unasked is 48 KiB."""
LEAST_STAGES, MOST_STAGES = 2, 5
"""Pages of a warp that are here or on their way."""


def serves(constants: Constants) -> bool:
    """Whether the kernel does what ``attend`` does with ``constants``."""
    return (
        constants["TOKENS"] == 1
        and not constants["TREE"]
        and not constants["EVICTS"]
        and constants["SPLITS"] > constants["EXACT_SPLITS"]
        and constants["GROUP"] <= MOST_GROUP
        and constants["D"] in COLUMNS
        and constants["PAGE"] % BLOCK == 0
        and _stages(constants) >= LEAST_STAGES
        and all(_one_strip(constants[side], constants["D"]) for side in ("KEYS", "VALUES"))
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
            *("GROUP", "KV_HEADS", "D", "PAGE", "SINK", "RECENT", "EXACT_SPLITS", "SPLITS", "HEAD"),
            *("CHECKED", "KEY_SCALES", "VALUE_SCALES"),
        )
    }
    for side in ("KEY", "VALUE"):
        ((_, _, _, bits, _, _, (strip,), _),) = constants[f"{side}S"]
        numbers |= {f"{side}_BITS": bits, f"{side}_PLACE": strip[2]}
    wide = constants["GROUP"] > MOST_GROUP // 2
    numbers |= {"WARPS": WARPS, "RESIDENT": (8 if wide else 12) // WARPS, "STAGES": _stages(constants)}
    numbers["LIFT4"] = -int(integers(4)[0])
    lines = [f"constexpr int {name} = {int(number)};" for name, number in numbers.items()]
    lines += [f"constexpr unsigned long long {name} = {word:#018x};" for name, word in _tables().items()]
    lines.append(f"using Query = {'float' if queries == 'f32' else 'unsigned short'};")
    return "\n".join(lines) + "\n"


def _stages(constants: Constants) -> int:
    return min(MOST_STAGES, SHARED // (WARPS * WORD * int(constants["HEAD"])))


def _tables() -> Mapping[str, int]:
    """Integers of codes as bytes, eight to a word; of 4 bits, from 0 on."""
    four = integers(4) - integers(4)[0]
    parts = {
        "POINTS2": integers(2),
        "POINTS3": integers(3),
        "LOWER_POINTS4": four[:8],
        "UPPER_POINTS4": four[8:],
    }
    return {name: _word(part) for name, part in parts.items()}


def _word(numbers: Any) -> int:
    return int.from_bytes(np.asarray(numbers).astype(np.int8).tobytes(), "little")


def _one_strip(pieces: tuple[Piece, ...], columns: int) -> bool:
    return len(pieces) == 1 and pieces[0][0] == columns and pieces[0][2] == "codes" and pieces[0][3] in BITS
