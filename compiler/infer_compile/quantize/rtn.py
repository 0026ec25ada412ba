"""Round to nearest: symmetric integers with one bf16 scale per row and group, or e4m3 numbers with one per
row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from ..runtime.formats.weights import WeightFormat

# Written into every shard, so that a rerun after a change of this file does not mix two methods.
METHOD = "rtn/1"


@dataclass(frozen=True, slots=True)
class _Codes:
    """``top`` is the code of the largest weight; codes lie in ``low`` .. ``top``. ``shrink`` are scales that
    are tried, as parts of max|w| / top; the one with the least squared error wins."""

    dtype: np.dtype[Any]
    low: float
    top: float
    shrink: tuple[float, ...] = (1.0,)


E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
# Int8 leaves -128 out, so that products of two codes stay symmetric; int4 cannot spare a sixteenth of its
# codes. Clipping the largest weight of a group pays where codes are few: these four scales take a fifth off
# the squared error of int4, and about half off its perplexity loss in groups of 64 and 128 on the quickstart
# model; finer steps gain no more. 448 is the largest number of e4m3.
_CODES: Mapping[tuple[str, int], _Codes] = MappingProxyType(
    {
        ("int", 8): _Codes(np.dtype(np.int8), -127.0, 127.0),
        ("int", 4): _Codes(np.dtype(np.int8), -8.0, 7.0, (1.0, 0.95, 0.9, 0.85)),
        ("float", 8): _Codes(E4M3, -448.0, 448.0),
    }
)
# Elements worked on at once: a few float32 arrays of this size stay in the second-level cache.
_BLOCK = 1 << 16


class NotFinite(ValueError):
    """The weights hold NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """``values`` int8 or e4m3 [rows, cols], ``scales`` bf16 [rows, cols / group]; weight = value * scale."""

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

    scale = bf16(max|w| / 127, 7 or 448), for int4 shrunk where that lowers the squared error; value =
    round-half-even(w / scale) in float32, held to -127..127, -8..7 or -448..448. A group of zeros gets scale
    1. The result does not depend on ``threads``. Raises ValueError for a format or shape it cannot do,
    NotFinite for NaN and infinity.
    """
    rows, cols = matrix.shape
    if not format.scaled or not format.fits(cols):
        raise ValueError(f"{format.name} with groups of {format.group} does not fit {cols} columns")
    kind = _CODES[format.type, format.bits]
    group = format.scale_group(cols)
    values = np.empty((rows, cols), kind.dtype)
    scales = np.empty((rows, cols // group), ml_dtypes.bfloat16)

    def work(block: slice) -> None:
        _quantize_block(matrix[block], kind, group, values[block], scales[block])

    blocks = row_blocks(rows, cols)
    if threads == 1:
        for block in blocks:
            work(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, blocks):
                pass
    return Quantized(values, scales)


def _quantize_block(
    matrix: np.ndarray, kind: _Codes, group: int, values: np.ndarray, scales: np.ndarray
) -> None:
    weights = matrix.astype(np.float32).reshape(-1, group)
    codes = np.empty_like(weights)
    largest = np.abs(weights, out=codes).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise NotFinite
    best = _scale(largest, kind.top, kind.shrink[0])
    if len(kind.shrink) > 1:
        error = _error(weights, best, kind, codes)
        for part in kind.shrink[1:]:
            scale = _scale(largest, kind.top, part)
            candidate = _error(weights, scale, kind, codes)
            better = candidate < error
            np.copyto(best, scale, where=better[:, None])
            np.copyto(error, candidate, where=better)
    _codes(weights, best, kind, codes)
    np.copyto(values, codes.reshape(values.shape), casting="unsafe")
    np.copyto(scales, best.reshape(scales.shape), casting="unsafe")


def _scale(largest: np.ndarray, top: float, part: float) -> np.ndarray:
    """Scales as float32 holding bf16 numbers; 1 where the group, or its scale in bf16, is zero."""
    scale = (largest / np.float32(top / part)).astype(ml_dtypes.bfloat16).astype(np.float32)
    scale[scale == 0] = 1
    return scale


def _codes(weights: np.ndarray, scale: np.ndarray, kind: _Codes, out: np.ndarray) -> None:
    np.divide(weights, scale, out=out)
    np.clip(out, kind.low, kind.top, out=out)
    if kind.dtype == E4M3:
        np.copyto(out, out.astype(E4M3))
    else:
        np.rint(out, out=out)


def _error(weights: np.ndarray, scale: np.ndarray, kind: _Codes, out: np.ndarray) -> np.ndarray:
    """Squared error of each group; leaves ``out`` spoiled."""
    _codes(weights, scale, kind, out)
    out *= scale
    out -= weights
    error: np.ndarray = np.einsum("ij,ij->i", out, out)
    return error
