"""The slow form of the compressed cache: every kernel's reference.

A vector (a key after rotary, or a value) is transformed, and each column of the result is stored as a code of
the few bits that its segment gives it; the code's integer (``formats/codebook.py``) is its value up to a
factor. Data-free levels turn the vector by a signed Walsh-Hadamard transform and keep one fp16 scale per
vector, with which the decoded vector has the norm of the vector (TurboQuant without its residual bit, arXiv
2504.19874). Calibrated levels read their transform from tables, which contain the factors of the columns.

Attention never decodes (``attention.py``): factors of a query, in the domain of the columns, multiply the
codes' integers segment by segment.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import InferCompileError, Problem
from ..formats.codebook import boundaries, integers, unit
from ..formats.kv import Plane, Segment
from .rotation import Float32
from .transform import Transform

Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint8]

FP8_MOST = 448.0
"""The largest number of float8 e4m3; greater ones are held to it."""


class Codec:
    """Encodes and decodes the vectors of all key-value heads of one side of one layer.

    Arrays are ``[kv_heads, n, ...]``; vectors come and go without the mean that calibrated levels take away.
    """

    def __init__(self, plane: Plane, head_dim: int, transform: Transform | None) -> None:
        self.plane = plane
        self.head_dim = head_dim
        self.vector_bytes = plane.vector_bytes(head_dim)
        self._transform = transform

    @property
    def transform(self) -> Transform:
        """Of a plane of codes; raises ValueError for one of plain numbers."""
        if self._transform is None:
            raise ValueError(f"a plane of {self.plane.kind} has no transform")
        return self._transform

    def encode(self, vectors: Float32) -> Bytes:
        """``[kv_heads, n, head_dim]`` to ``[kv_heads, n, vector_bytes]``.

        Codes come as planes of bits, segment by segment, then the scale as little-endian fp16. Raises
        InferCompileError IC522 for a number that is not finite.
        """
        if not np.isfinite(vectors).all():
            raise InferCompileError(
                Problem(
                    "IC522",
                    "a key or a value is not a finite number",
                    because="the model's arithmetic overflowed, or its weights are damaged",
                    fix="run verify on the bundle, and build it again if a file is damaged",
                )
            )
        if self.plane.kind == "bf16":
            return vectors.astype(ml_dtypes.bfloat16).view(np.uint8)
        if self.plane.kind == "fp8":
            held = np.clip(vectors, -FP8_MOST, FP8_MOST)
            return held.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        codes, scales = self.codes(vectors)
        parts = [
            np.packbits(codes[..., own] >> bit & 1, axis=-1, bitorder="little")
            for segment, own in self._segments()
            for bit in range(segment.bits)
        ]
        if scales is not None:
            parts.append(scales[..., None].astype("<f2").view(np.uint8))
        return np.concatenate(parts, axis=-1)

    def codes(self, vectors: Float32) -> tuple[Codes, Float32 | None]:
        """``[kv_heads, n, head_dim]`` to codes ``[kv_heads, n, columns]`` and, where the plane has them,
        scales ``[kv_heads, n]`` as fp16 holds them."""
        columns = self.transform.forward(vectors)
        if not self.plane.scale_bytes:
            return self._nearest(columns), None
        (segment,) = self.plane.segments
        if segment.wide:
            largest = np.max(np.abs(columns), axis=-1)
            scales = _fp16(largest / np.float32(2**segment.bits - 1))
            return self._nearest(columns * _inverse(scales)[..., None]), scales
        norms = np.sqrt(np.sum(columns * columns, axis=-1))
        step = norms * np.float32(unit(segment.bits) / np.sqrt(self.head_dim))
        codes = self._nearest(columns * _inverse(step)[..., None])
        points = integers(segment.bits)[codes].astype(np.float32)
        return codes, _fp16(norms / np.sqrt(np.sum(points * points, axis=-1)))

    def unpack(self, stored: Bytes) -> tuple[Codes, Float32 | None]:
        """The codes and scales of what ``encode`` gave."""
        parts, place = [], 0
        for segment in self.plane.segments:
            size = segment.columns // 8
            codes = np.zeros((*stored.shape[:-1], segment.columns), np.uint8)
            for bit in range(segment.bits):
                codes |= np.unpackbits(stored[..., place : place + size], axis=-1, bitorder="little") << bit
                place += size
            parts.append(codes)
        scales = None
        if self.plane.scale_bytes:
            scales = np.ascontiguousarray(stored[..., place:]).view("<f2")[..., 0].astype(np.float32)
        return np.concatenate(parts, axis=-1), scales

    def decode(self, stored: Bytes) -> Float32:
        """``[kv_heads, n, vector_bytes]`` to ``[kv_heads, n, head_dim]``: as before encoding but for the
        loss."""
        if self.plane.kind == "bf16":
            return np.asarray(stored.view(ml_dtypes.bfloat16), np.float32)
        if self.plane.kind == "fp8":
            return np.asarray(stored.view(ml_dtypes.float8_e4m3fn), np.float32)
        codes, scales = self.unpack(stored)
        columns = np.concatenate([points for _, _, points in self.points(codes)], axis=-1).astype(np.float32)
        return self.transform.restore(columns if scales is None else columns * scales[..., None])

    def points(self, codes: Codes) -> Iterator[tuple[Segment, slice, NDArray[np.int16]]]:
        """Each segment, its columns and its integers, ``[kv_heads, n, columns of the segment]``."""
        for segment, own in self._segments():
            yield segment, own, integers(segment.bits)[codes[..., own]]

    def _segments(self) -> Iterator[tuple[Segment, slice]]:
        first = 0
        for segment in self.plane.segments:
            yield segment, slice(first, first + segment.columns)
            first += segment.columns

    def _nearest(self, columns: Float32) -> Codes:
        """Codes of the nearest integers."""
        parts = [
            np.searchsorted(boundaries(segment.bits), columns[..., own]) for segment, own in self._segments()
        ]
        return np.concatenate(parts, axis=-1).astype(np.uint8)


def _fp16(scales: Float32) -> Float32:
    return scales.astype(np.float16).astype(np.float32)


def _inverse(scales: Float32) -> Float32:
    """``1 / scales``, zero where the scale is."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
