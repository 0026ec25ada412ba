"""Packed pages of the CUDA kernels, opened number by number as kernels/cuda/codes.py describes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer_compile.runtime.formats.kv import SIDES, CacheLayout, Plane, Side

Bytes = NDArray[np.uint8]


def open_side(layout: CacheLayout, layer: int, side: Side, page: Bytes) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes ``[kv_heads, page_tokens, columns]`` (of a plane of plain numbers the bytes of its vectors) and
    scales ``[kv_heads, page_tokens]``, none where the plane has none."""
    tokens, own = layout.page_tokens, layout.layers[layer]
    place = sum(
        tokens * other.token_bytes(layout.head_dim, layout.kv_heads) for other in layout.layers[:layer]
    )
    sizes = {name: tokens * own.plane(name).vector_bytes(layout.head_dim) for name in SIDES}
    heads = page[place:][: layout.kv_heads * sum(sizes.values())].reshape(layout.kv_heads, -1)
    part = heads[:, : sizes["keys"]] if side == "keys" else heads[:, sizes["keys"] :]
    plane = own.plane(side)
    if plane.kind != "codes":
        return part.reshape(layout.kv_heads, tokens, -1), np.zeros((layout.kv_heads, 0), np.float16)
    both = [_open_codes(plane, side, tokens, head) for head in part]
    return np.stack([codes for codes, _ in both]), np.stack([scales for _, scales in both])


def _open_codes(plane: Plane, side: Side, tokens: int, head: Bytes) -> tuple[Bytes, NDArray[np.float16]]:
    codes, place = np.zeros((tokens, plane.columns), np.uint8), 0
    first = 0
    for segment in plane.segments:
        parts = [8] if segment.bits == 8 else [4, segment.bits - 4] if segment.bits > 4 else [segment.bits]
        shape = (tokens, segment.columns) if side == "keys" else (segment.columns, tokens)
        for index, bits in enumerate(parts):
            size = tokens * segment.columns * bits // 8
            strip = _open_strip(bits, head[place : place + size], shape)
            own = strip if side == "keys" else strip.T
            codes[:, first : first + segment.columns] |= own << sum(parts[index + 1 :])
            place += size
        first += segment.columns
    return codes, head[place:].view("<f2")


def _open_strip(bits: int, stored: Bytes, shape: tuple[int, int]) -> Bytes:
    """``[outer, inner]``."""
    outer, inner = shape
    if bits == 8:
        return stored.reshape(shape)
    words = stored.view("<u4").reshape(-1, inner // 8)
    rows = np.zeros((outer, inner // 8), np.uint32)
    match bits:
        case 4:
            rows[:] = words
        case 3:
            planes = words.reshape(3, outer // 4, -1)
            for row in range(3):
                rows[row::4] = planes[row] & 0x77777777
                rows[3::4] |= (planes[row] >> 3 & 0x11111111) << row
        case 2:
            for row in range(2):
                rows[row::2] = words >> 2 * row & 0x33333333
        case _:
            for row in range(4):
                rows[row::4] = words >> row & 0x11111111
    nibbles = rows[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    return nibbles.reshape(shape).astype(np.uint8)
