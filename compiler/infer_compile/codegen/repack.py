"""Writes ``engine/weights.bin``: the interchange weights in the form that the kernels read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.checkpoint import Checkpoint
from ..quantize.read import read_tensor
from ..quantize.rtn import Quantized
from ..quantize.shard import open_shard
from ..runtime.formats.program import Program, Tensor
from .blocks import ALIGNMENT, HEADER, MAGIC, WeightsLayout, block_bf16, block_quantized

TABLES = "cache.safetensors"
"""The tables of the cache's calibrated planes, float32, beside what is written from them."""


def repack(program: Program, model_dir: Path, out: Path) -> None:
    """Write the weights of ``program`` from ``model_dir``, and the tables of its cache from ``TABLES`` beside
    ``out``, to ``out``, one tensor in memory at a time.

    The file is written aside and renamed. Raises what reading the model folder raises, and OSError.
    """
    layout = WeightsLayout(program)
    checkpoint = Checkpoint.open(model_dir)
    aside = out.with_name(out.name + ".partial")
    with aside.open("wb") as file:
        file.write((MAGIC + bytes.fromhex(program.digest)).ljust(HEADER, b"\0"))
        for tensor in program.tensors:
            stored = _stored(read_tensor(checkpoint, tensor), tensor, tensor.name in layout.blocked)
            if stored.nbytes != layout.tensor_bytes(tensor):
                raise ValueError(
                    f"{tensor.name}: {stored.nbytes} bytes, planned {layout.tensor_bytes(tensor)}"
                )
            file.write(stored)
            file.write(bytes(-stored.nbytes % ALIGNMENT))
        for table in cache_tables(program, out.with_name(TABLES)).values():
            file.write(table)
            file.write(bytes(-table.nbytes % ALIGNMENT))
    aside.replace(out)


def cache_tables(program: Program, source: Path) -> dict[str, NDArray[Any]]:
    """The tables of the program's calibrated planes from the file ``source``, in order; none without any.
    Raises ValueError for one of another type or shape."""
    tables = tuple(program.cache.tables())
    found: dict[str, NDArray[Any]] = {}
    if not tables:
        return found
    shard = open_shard(source)
    for table in tables:
        values = shard.read(table.name)
        if (values.shape, values.dtype) != (table.shape, np.float32):
            raise ValueError(f"{table.name}: {values.dtype} {values.shape}, planned float32 {table.shape}")
        found[table.name] = np.ascontiguousarray(values)
    return found


def _stored(value: Quantized | NDArray[Any], tensor: Tensor, blocked: bool) -> NDArray[np.uint8]:
    if isinstance(value, Quantized):
        return block_quantized(value.values, value.scales, tensor.format.bits, tensor.format.group)
    return block_bf16(value) if blocked else np.ascontiguousarray(value).reshape(-1).view(np.uint8)
