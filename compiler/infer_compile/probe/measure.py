"""Two rates of this machine, measured: sustained reading of memory, and a matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 1 << 29
"""Read at once by all threads together: several times the largest last-level cache of a processor."""
MATRIX = 2048
SECONDS = 2.0
"""Of each measurement."""
ROUNDS = 5
"""At least."""

BANDWIDTH_METHOD = (
    f"probe: best round of {SECONDS:g} seconds in which every core sums its own float64 array, "
    f"{READ_BYTES >> 20} MiB together, more than the caches hold"
)
RATE_METHOD = (
    f"probe: best of {SECONDS:g} seconds of float32 products of {MATRIX} x {MATRIX} matrices by numpy's "
    "BLAS; stands for the bf16 rate, for which numpy has no product"
)


def bandwidth(cores: int, memory: int) -> float:
    """Bytes per second that ``cores`` threads sustain in reading; takes an eighth of ``memory`` at most."""
    share = min(READ_BYTES, memory // 8) // cores // 8
    arrays = [np.ones(max(1, share), np.float64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        # numpy sums without holding the interpreter's lock.
        seconds = best(lambda: list(pool.map(np.sum, arrays)))
    return sum(array.nbytes for array in arrays) / seconds


def matrix_rate() -> float:
    """Float32 operations per second of a square product."""
    generator = np.random.default_rng(0)
    left = generator.standard_normal((MATRIX, MATRIX), dtype=np.float32)
    out = np.empty_like(left)
    return 2.0 * MATRIX**3 / best(lambda: np.matmul(left, left, out=out))


def best(work: Callable[[], object], seconds: float = SECONDS, rounds: int = ROUNDS) -> float:
    """Seconds of the fastest call: other programs only ever slow one down."""
    fastest, end = float("inf"), time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
        rounds -= 1
    return fastest
