"""The weights file of a CPU engine: where each tensor lies, and the interleaved form that the kernels read.

A matrix is stored 16 rows at a time, interleaved so that one vector load holds the same inputs of all 16
(kernels/cpu/linear_bf16.hpp and dot.hpp describe the layouts); rows are padded with zeros to whole blocks. A
matrix that is only looked up by row, and vectors, are stored as they are. Behind the tensors come the
float32 tables of the cache's calibrated planes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.formats.program import Linear, Program, Tensor

ROWS = 16
ALIGNMENT = 64
HEADER = 64
MAGIC = b"infer-compile\0\0\1"


class WeightsLayout:
    """Offsets in the file, in bytes, of tensors and of the cache's ``tables``; ``blocked`` names the matrices
    that products read."""

    def __init__(self, program: Program) -> None:
        self.blocked = {op.weight for op in program.operations if isinstance(op, Linear)}
        self.offsets: dict[str, int] = {}
        end = HEADER
        for tensor in program.tensors:
            self.offsets[tensor.name] = end
            end += -(-self.tensor_bytes(tensor) // ALIGNMENT) * ALIGNMENT
        self.tables: dict[str, int] = {}
        for table in program.cache.tables():
            self.tables[table.name] = end
            end += -(-table.bytes // ALIGNMENT) * ALIGNMENT
        self.bytes = end

    def tensor_bytes(self, tensor: Tensor) -> int:
        """Bytes of ``tensor`` in the file, padding of its last block included."""
        rows = -(-tensor.rows // ROWS) * ROWS if tensor.name in self.blocked else tensor.rows
        return tensor.format.bytes(rows, tensor.cols)


def _padded(matrix: NDArray[Any]) -> NDArray[Any]:
    """Blocks ``[n, 16, ...]`` of a matrix ``[rows, ...]``."""
    missing = -matrix.shape[0] % ROWS
    if missing:
        matrix = np.concatenate([matrix, np.zeros((missing, *matrix.shape[1:]), matrix.dtype)])
    return matrix.reshape(-1, ROWS, *matrix.shape[1:])


def block_bf16(matrix: NDArray[Any]) -> NDArray[np.uint8]:
    """bf16 ``[rows, cols]`` to ``[blocks, cols, 16]``, as bytes."""
    blocks = _padded(matrix.view(np.uint16)).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)


def block_quantized(
    values: NDArray[np.int8], scales: NDArray[Any], bits: int, group: int
) -> NDArray[np.uint8]:
    """Values ``[rows, cols]`` and bf16 scales ``[rows, cols/group]`` to blocks of 16 rows, as bytes: per
    group the weights in the order of dot.hpp, then the 16 scales."""
    blocks = _padded(values)
    count, _, cols = blocks.shape
    groups = cols // group
    offset = (blocks.astype(np.int16) + (128 if bits == 8 else 8)).astype(np.uint8)
    if bits == 8:
        stored = offset.reshape(count, ROWS, groups, group // 4, 4).transpose(0, 2, 3, 1, 4)
    else:
        pairs = offset.reshape(count, ROWS, groups, group // 8, 2, 4)
        stored = (pairs[..., 0, :] | pairs[..., 1, :] << 4).transpose(0, 2, 3, 1, 4)
    weights = np.ascontiguousarray(stored).reshape(count, groups, -1)
    factors = np.ascontiguousarray(_padded(scales.view(np.uint16)).transpose(0, 2, 1)).view(np.uint8)
    return np.concatenate([weights, factors.reshape(count, groups, -1)], axis=-1).reshape(-1)
