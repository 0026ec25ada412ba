"""Round to nearest: symmetric integers with one bf16 scale per row and group."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..runtime.formats.weights import WeightFormat

# Written into every shard, so that a rerun after a change of this file does not mix two methods.
METHOD = "rtn/1"
# The code of the largest weight, and the range of codes, by bits. Int8 leaves -128 out, so that products of
# two codes stay symmetric; int4 cannot spare a sixteenth of its codes.
_TOP = {8: 127.0, 4: 7.0}
_RANGE = {8: (-127.0, 127.0), 4: (-8.0, 7.0)}
# Scales tried, as parts of max|w| / top; the one with the least squared error wins. Clipping the largest
# weight of a group pays where codes are few: these four take a fifth off the squared error of int4, and about
# half off its perplexity loss in groups of 64 and 128 on the quickstart model; finer steps gain no more.
_SHRINK = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85)}
# Elements worked on at once: a few float32 arrays of this size stay in the second-level cache.
_BLOCK = 1 << 16


class NotFinite(ValueError):
    """The weights hold NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """``values`` int8 [rows, cols], ``scales`` bf16 [rows, cols / group]; weight = value * scale."""

    values: np.ndarray
    scales: np.ndarray

    def dequantize(self) -> np.ndarray:
        """float32 [rows, cols]: exact products, not rounded to bf16."""
        rows, cols = self.values.shape
        groups = self.scales.shape[1]
        weights = self.values.astype(np.float32).reshape(rows, groups, cols // groups)
        weights *= self.scales.astype(np.float32)[:, :, None]
        return weights.reshape(rows, cols)


def row_blocks(rows: int, cols: int, elements: int = _BLOCK) -> Iterator[slice]:
    """Slices over the rows of a matrix, about ``elements`` elements each."""
    step = max(1, elements // max(1, cols))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def quantize(matrix: np.ndarray, format: WeightFormat, threads: int = 1) -> Quantized:
    """Quantize ``matrix`` [rows, cols] of any float dtype by ``format`` (8 or 4 bits, group dividing cols).

    scale = bf16(max|w| / 127 or 7), for int4 shrunk where that lowers the squared error; value =
    round-half-even(w / scale) in float32, clipped to -127..127 or -8..7. A group of zeros gets scale 1. The
    result does not depend on ``threads``. Raises ValueError for a format or shape it cannot do, NotFinite for
    NaN and infinity.
    """
    rows, cols = matrix.shape
    if format.bits not in _TOP or not format.group or not format.fits(cols):
        raise ValueError(f"{format.name} with groups of {format.group} does not fit {cols} columns")
    values = np.empty((rows, cols), np.int8)
    scales = np.empty((rows, cols // format.group), ml_dtypes.bfloat16)

    def work(block: slice) -> None:
        _quantize_block(matrix[block], format, values[block], scales[block])

    blocks = row_blocks(rows, cols)
    if threads == 1:
        for block in blocks:
            work(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, blocks):
                pass
    return Quantized(values, scales)


def _quantize_block(matrix: np.ndarray, format: WeightFormat, values: np.ndarray, scales: np.ndarray) -> None:
    weights = matrix.astype(np.float32).reshape(-1, format.group)
    codes = np.empty_like(weights)
    largest = np.abs(weights, out=codes).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise NotFinite
    low, high = _RANGE[format.bits]
    shrink = _SHRINK[format.bits]
    best = _scale(largest, format.bits, shrink[0])
    if len(shrink) > 1:
        error = _error(weights, best, low, high, codes)
        for part in shrink[1:]:
            scale = _scale(largest, format.bits, part)
            candidate = _error(weights, scale, low, high, codes)
            better = candidate < error
            np.copyto(best, scale, where=better[:, None])
            np.copyto(error, candidate, where=better)
    _codes(weights, best, low, high, codes)
    np.copyto(values, codes.reshape(values.shape), casting="unsafe")
    np.copyto(scales, best.reshape(scales.shape), casting="unsafe")


def _scale(largest: np.ndarray, bits: int, part: float) -> np.ndarray:
    """Scales as float32 holding bf16 numbers; 1 where the group, or its scale in bf16, is zero."""
    scale = (largest / np.float32(_TOP[bits] / part)).astype(ml_dtypes.bfloat16).astype(np.float32)
    scale[scale == 0] = 1
    return scale


def _codes(weights: np.ndarray, scale: np.ndarray, low: float, high: float, out: np.ndarray) -> None:
    np.divide(weights, scale, out=out)
    np.rint(out, out=out)
    np.clip(out, low, high, out=out)


def _error(weights: np.ndarray, scale: np.ndarray, low: float, high: float, out: np.ndarray) -> np.ndarray:
    """Squared error of each group; leaves ``out`` spoiled."""
    _codes(weights, scale, low, high, out)
    out *= scale
    out -= weights
    error: np.ndarray = np.einsum("ij,ij->i", out, out)
    return error
