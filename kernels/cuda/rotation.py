"""The Walsh-Hadamard transform of runtime/kv/rotation.py, on tiles."""

import triton
import triton.language as tl


@triton.jit
def hadamard(x, SIZE: tl.constexpr, NORM: tl.constexpr):
    """``x`` [rows, columns] in blocks of ``SIZE`` neighbouring columns, in natural order, times ``NORM``.

    Sums are of the same pairs, in the same order, as in the slow form.
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    for level in tl.static_range(10):
        if (2 << level) <= SIZE:
            x = _butterfly(x, 1 << level)
    return tl.reshape(x, (rows, columns)) * NORM


@triton.jit
def _butterfly(x, STRIDE: tl.constexpr):
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    pairs = tl.reshape(x, (rows, columns // (2 * STRIDE), 2, STRIDE))
    first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    both = tl.join(first + second, first - second)
    return tl.reshape(tl.permute(both, (0, 1, 3, 2)), (rows, columns))
