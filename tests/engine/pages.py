"""Packed pages of the CPU engine, opened number by number (kernels/cpu/cache.hpp and tile.hpp)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer_compile.runtime.formats.kv import CacheLayout, Side

Bytes = NDArray[np.uint8]
LANES = 16


def vectors_of(layout: CacheLayout, layer: int, side: Side, page: Bytes) -> Bytes:
    """What a plain plane of ``page`` holds: ``[kv_heads, page_tokens, vector_bytes]``."""
    width = layout.layers[layer].plane(side).vector_bytes(layout.head_dim)
    heads = []
    for own in _heads(layout, layer, side, page):
        if side == "keys":
            numbers = own.reshape(layout.head_dim, layout.page_tokens, -1).swapaxes(0, 1)
        else:
            numbers = own.reshape(layout.page_tokens, layout.head_dim, -1)
        heads.append(numbers.reshape(layout.page_tokens, width))
    return np.stack(heads)


def codes_of(layout: CacheLayout, layer: int, side: Side, page: Bytes) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes ``[kv_heads, page_tokens, columns]`` and scales ``[kv_heads, page_tokens]``, which are empty
    where the plane has none."""
    plane, tokens = layout.layers[layer].plane(side), layout.page_tokens
    codes = np.zeros((layout.kv_heads, tokens, plane.columns), np.uint8)
    scales = np.zeros((layout.kv_heads, tokens if plane.scale_bytes else 0), np.float16)
    for head, own in enumerate(_heads(layout, layer, side, page)):
        place = 0
        for strip in plane.strips:
            count = tokens * strip.columns // LANES**2
            size = 32 * strip.bits
            tiles = np.stack([open_tile(strip.bits, own[place + i * size :][:size]) for i in range(count)])
            place += count * size
            # [outer, inner, lane, index of the sum] to [token, column]
            if side == "keys":
                part = tiles.reshape(tokens // LANES, -1, LANES, LANES).transpose(0, 2, 1, 3)
            else:
                part = tiles.reshape(-1, tokens // LANES, LANES, LANES).transpose(1, 3, 0, 2)
            codes[head, :, strip.first : strip.first + strip.columns] |= (
                part.reshape(tokens, -1) << strip.shift
            )
        if plane.scale_bytes:
            scales[head] = own[place:].view("<f2")
    return codes, scales


def open_tile(bits: int, stored: Bytes) -> Bytes:
    """Codes ``[16 lanes, 16 indices of the sum]``."""
    vectors = stored.reshape(bits, 32)
    halves = np.zeros((4, 2, 32), np.uint8)  # quad, lanes 0..7 or 8..15, byte
    match bits:
        case 1:
            for i in range(8):
                halves[i // 2, i % 2] = vectors[0] >> i & 1
        case 2:
            for i in range(8):
                halves[i // 2, i % 2] = vectors[i // 4] >> (i % 4 * 2) & 3
        case 3:
            for quad in range(3):
                halves[quad] = vectors[quad] & 7, vectors[quad] >> 4 & 7
                halves[3] |= np.stack([vectors[quad] >> 3 & 1, vectors[quad] >> 7]) << quad
        case _:
            for quad in range(4):
                halves[quad] = vectors[quad] & 15, vectors[quad] >> 4
    return np.ascontiguousarray(halves.reshape(4, LANES, 4).swapaxes(0, 1)).reshape(LANES, LANES)


def _heads(layout: CacheLayout, layer: int, side: Side, page: Bytes):  # type: ignore[no-untyped-def]
    """Each head's bytes of one side of a layer."""
    levels, place = layout.layers, 0
    for other in levels[:layer]:
        place += layout.page_tokens * other.token_bytes(layout.head_dim, layout.kv_heads)
    keys = layout.page_tokens * levels[layer].keys.vector_bytes(layout.head_dim)
    values = layout.page_tokens * levels[layer].values.vector_bytes(layout.head_dim)
    for _ in range(layout.kv_heads):
        yield page[place : place + keys] if side == "keys" else page[place + keys : place + keys + values]
        place += keys + values
