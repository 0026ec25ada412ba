"""Lloyd-Max codebooks for the standard normal density (Max, "Quantizing for Minimum Distortion", 1960)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POSITIVE_HALF: dict[int, tuple[float, ...]] = {
    3: (0.245094, 0.756005, 1.343909, 2.151946),
}


def centroids(bits: int) -> NDArray[np.float32]:
    """The ``2**bits`` reconstruction values for N(0, 1), ascending, float32."""
    half = np.array(_POSITIVE_HALF[bits], dtype=np.float64)
    return np.concatenate([-half[::-1], half]).astype(np.float32)


def boundaries(bits: int) -> NDArray[np.float32]:
    """The ``2**bits - 1`` decision thresholds: midpoints of neighbouring centroids, float32."""
    points = centroids(bits).astype(np.float64)
    return ((points[1:] + points[:-1]) / 2).astype(np.float32)
