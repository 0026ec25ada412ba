"""The slow form of the compressed cache: every kernel's reference.

A vector x of d elements (a key after rotary, or a value) is stored as d 3-bit codes and one fp16 scale:
y = H (s * x) / sqrt(d) with the Walsh-Hadamard matrix H in natural order and fixed signs s, codes = nearest
Lloyd-Max centroid of y over its root mean square, and scale = |y| / |centroids[codes]|, so that the decoded
vector keeps the norm (TurboQuant without its residual bit, arXiv 2504.19874, with the norm corrected when
encoding). Codes are packed 32 to three words so that none straddles a word: nibble k of word j holds code
8j + k in its low three bits and bit j of code 24 + k in its top bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..formats.codebook import boundaries, centroids
from ..formats.kv import LEVELS, CacheLayout

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def hadamard(vectors: Float32) -> Float32:
    """Walsh-Hadamard transform of the last axis (a power of two) over the square root of its length."""
    size = vectors.shape[-1]
    out = vectors.astype(np.float32)
    stride = 1
    while stride < size:
        pairs = out.reshape(*out.shape[:-1], size // (2 * stride), 2, stride)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        out = np.stack([low + high, low - high], axis=-2).reshape(out.shape)
        stride *= 2
    return np.asarray(out * np.float32(1 / np.sqrt(size)), dtype=np.float32)


def pack3(codes: Bytes) -> Bytes:
    """Codes ``[n, d]`` in 0..7, d a multiple of 32, to bytes ``[n, 3 d / 8]``."""
    blocks = codes.reshape(*codes.shape[:-1], -1, 4, 8).astype(np.uint32)
    top = blocks[..., 3, :]
    shifts = np.arange(8, dtype=np.uint32) * 4
    words = [
        np.bitwise_or.reduce((blocks[..., j, :] | (top >> j & 1) << 3) << shifts, axis=-1) for j in range(3)
    ]
    packed = np.stack(words, axis=-1).astype("<u4")
    return packed.reshape(*codes.shape[:-1], -1).view(np.uint8)


def unpack3(packed: Bytes) -> Bytes:
    """The inverse of :func:`pack3`."""
    words = np.ascontiguousarray(packed).view("<u4").reshape(*packed.shape[:-1], -1, 3, 1)
    nibbles = words >> np.arange(8, dtype=np.uint32) * 4 & 15
    low = nibbles & 7
    top = np.bitwise_or.reduce(
        (nibbles >> 3) << np.arange(3, dtype=np.uint32)[:, None], axis=-2, keepdims=True
    )
    codes = np.concatenate([low, top], axis=-2).astype(np.uint8)
    return codes.reshape(*packed.shape[:-1], -1)


def unpack_signs(signs: str, head_dim: int) -> Float32:
    """The layout's hexadecimal signs as +1 and -1, ``[head_dim]``; a set bit is -1."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(signs), np.uint8), bitorder="little")[:head_dim]
    return np.where(bits, -1, 1).astype(np.float32)


class Codec:
    """Encodes and decodes single vectors at the compressed level of ``layout``."""

    def __init__(self, layout: CacheLayout) -> None:
        level = LEVELS[layout.level]
        self.head_dim = layout.head_dim
        self.vector_bytes = level.vector_bytes(layout.head_dim)
        self.code_bytes = self.vector_bytes - level.scale_bytes
        self.signs = unpack_signs(layout.signs, layout.head_dim)
        self._centroids = centroids(level.bits)
        self._boundaries = boundaries(level.bits)

    def rotate(self, vectors: Float32) -> Float32:
        """Into the domain of the codes; an isometry."""
        return hadamard(vectors * self.signs)

    def unrotate(self, rotated: Float32) -> Float32:
        return np.asarray(hadamard(rotated) * self.signs, dtype=np.float32)

    def encode(self, vectors: Float32) -> Bytes:
        """``[n, head_dim]`` to ``[n, vector_bytes]``: the codes, then the scale, little-endian fp16."""
        rotated = self.rotate(vectors)
        norm = np.sqrt(np.sum(rotated * rotated, axis=-1, keepdims=True))
        thresholds = norm / np.float32(np.sqrt(self.head_dim)) * self._boundaries
        codes = np.count_nonzero(rotated[..., None] > thresholds[..., None, :], axis=-1).astype(np.uint8)
        points = self._centroids[codes]
        scale = norm / np.sqrt(np.sum(points * points, axis=-1, keepdims=True))
        return np.concatenate([pack3(codes), scale.astype("<f2").view(np.uint8)], axis=-1)

    def decode_rotated(self, stored: Bytes) -> Float32:
        """``[n, vector_bytes]`` to ``[n, head_dim]`` in the domain of the codes."""
        points = self._centroids[unpack3(stored[..., : self.code_bytes])]
        scale = np.ascontiguousarray(stored[..., self.code_bytes :]).view("<f2").astype(np.float32)
        return np.asarray(points * scale, dtype=np.float32)

    def decode(self, stored: Bytes) -> Float32:
        """``[n, vector_bytes]`` to ``[n, head_dim]`` as they were before encoding, but for the loss."""
        return self.unrotate(self.decode_rotated(stored))
