"""Factors rounded to integers: what multiplies the integers of packed pages, exactly and in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

MOST_FACTOR = 127
"""What the largest of a query's factors becomes: a signed byte."""
MOST_WEIGHT = 204
"""What a page's largest softmax weight becomes: an unsigned byte. Sums of the products of 16 weights, two by
two, with 4-bit integers (up to 20) then fit 16 bits, and of 32 with narrower ones (up to 10)."""
MOST_WIDE = 32767
"""The same of both where codes are wide: a signed number of 16 bits."""
NOTHING = np.float32(1e-30)
"""Factors that are all smaller are zero: the inverse of their step would overflow."""


def rounded(values: Float32, most: int) -> tuple[NDArray[np.int32], Float32]:
    """``values`` [..., n] as integers times a step: (integers [..., n], steps [..., 1]), to the nearest, ties
    to even; the largest magnitude becomes ``most``."""
    largest = np.max(np.abs(values), axis=-1, keepdims=True).astype(np.float32)
    step = np.asarray(largest / np.float32(most), np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=largest > NOTHING)
    return np.rint(values.astype(np.float32) * inverse).astype(np.int32), step
