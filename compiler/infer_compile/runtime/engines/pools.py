"""The two page pools as bytes. Sizes are every engine's; the order inside a page is this engine's own.

Pool page p starts at byte ``p * page_bytes``. Inside, layers in order; inside, key-value heads in order;
inside, the key plane and then the value plane. A plane of an exact page is ``[page_tokens, head_dim]``
numbers; one of a packed page is all codes, ``[page_tokens, code_bytes]``, and then all scales.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..formats.kv import CacheLayout
from ..kv.codec import Codec
from ..step import Float32

ExactDtype = Literal["bf16", "f32"]
Bytes = NDArray[np.uint8]


def to_bf16(values: Float32) -> NDArray[np.uint16]:
    """The nearest bf16 of finite numbers, ties to even, as bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> Float32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


class ExactPool:
    """Pages of keys and values as they were computed, in bf16 (or, to compare with others, in float32)."""

    def __init__(self, layout: CacheLayout, pages: int, dtype: ExactDtype = "bf16") -> None:
        shape = (pages, layout.layers, layout.kv_heads, 2, layout.page_tokens, layout.head_dim)
        self._rounded = dtype == "bf16"
        self._numbers = np.zeros(shape, np.uint16 if self._rounded else np.float32)
        self.bytes: Bytes = self._numbers.reshape(-1).view(np.uint8)

    def write(self, layer: int, page: int, offset: int, key: Float32, value: Float32) -> None:
        """``key`` and ``value`` are ``[kv_heads, head_dim]``; ``offset`` is the token's place in the page."""
        both = np.stack([key, value], axis=1)
        self._numbers[page, layer, :, :, offset] = to_bf16(both) if self._rounded else both

    def read(self, layer: int, page: int) -> Float32:
        """``[kv_heads, 2, page_tokens, head_dim]``, keys before values."""
        stored = self._numbers[page, layer]
        return from_bf16(stored) if self._rounded else stored.copy()


class PackedPool:
    """Compressed pages."""

    def __init__(self, layout: CacheLayout, pages: int) -> None:
        self._codec = Codec(layout)
        self._tokens = layout.page_tokens
        plane = self._tokens * self._codec.vector_bytes
        self._planes = np.zeros((pages, layout.layers, layout.kv_heads, 2, plane), np.uint8)
        self.bytes: Bytes = self._planes.reshape(-1)

    def write(self, layer: int, page: int, numbers: Float32) -> None:
        """Compress ``[kv_heads, 2, page_tokens, head_dim]``."""
        heads, both, tokens, head_dim = numbers.shape
        rows = self._codec.encode(numbers.reshape(-1, head_dim)).reshape(heads, both, tokens, -1)
        codes = rows[..., : self._codec.code_bytes].reshape(heads, both, -1)
        scales = rows[..., self._codec.code_bytes :].reshape(heads, both, -1)
        self._planes[page, layer] = np.concatenate([codes, scales], axis=-1)

    def read(self, layer: int, page: int) -> Float32:
        """``[kv_heads, 2, page_tokens, head_dim]``, keys before values."""
        planes = self._planes[page, layer]
        heads = planes.shape[0]
        split = self._tokens * self._codec.code_bytes
        codes = planes[..., :split].reshape(heads, 2, self._tokens, -1)
        scales = planes[..., split:].reshape(heads, 2, self._tokens, -1)
        rows = np.concatenate([codes, scales], axis=-1).reshape(heads * 2 * self._tokens, -1)
        return self._codec.decode(rows).reshape(heads, 2, self._tokens, -1)
