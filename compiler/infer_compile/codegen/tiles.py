"""The weights file of a GPU engine: matrices of integers in the tiles that ``kernels/cuda/linear.py`` reads,
others as the library reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.checkpoint import Checkpoint
from ..quantize.read import read_tensor
from ..quantize.rtn import Quantized
from ..runtime.formats.kv import SIDES, Side
from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.launches import WEIGHTS_MAGIC, Part
from ..runtime.formats.program import AttendLatent, Program, Rotary, Tensor
from ..runtime.formats.weights import F32
from ..runtime.kv.rotation import unpack_signs
from .repack import cache_tables

ROWS = 16
"""Weight rows that lie side by side."""
ALIGNMENT = 256
HEADER = 256
FREQUENCIES = "frequencies.{}"
"""Name of the frequencies of a kind of rotation."""
SIGNS = "cache.signs"
MEANS = "layers.{}.means"
"""Name of what a layer takes from keys and values: ``[kv_heads, 2, head_dim]``."""


class WeightParts:
    """What lies where in the file; ``rotations`` are the program's, each once."""

    def __init__(self, program: Program) -> None:
        self.parts: dict[str, Part] = {}
        self.bytes = HEADER
        for tensor in program.tensors:
            for name, (dtype, shape) in _shapes(tensor).items():
                self._place(name, Part(dtype=dtype, shape=shape, offset=self.bytes))
        self.rotations = rotations(program)
        for index, rotary in enumerate(self.rotations):
            shape = (len(rotary.frequencies),)
            self._place(FREQUENCIES.format(index), Part(dtype="f64", shape=shape, offset=self.bytes))
        for name, shape in _cache_shapes(program).items():
            self._place(name, Part(dtype="f32", shape=shape, offset=self.bytes))

    def _place(self, name: str, part: Part) -> None:
        self.parts[name] = part
        self.bytes += -(-part.bytes // ALIGNMENT) * ALIGNMENT


def rotations(program: Program) -> tuple[Rotary, ...]:
    """Rotary operations that differ in their angles."""
    found: list[Rotary] = []
    for operations in (program.prologue, *program.layers, program.epilogue):
        for one in operations:
            op = one.turn if isinstance(one, AttendLatent) else one
            if isinstance(op, Rotary) and not any(same_angles(op, other) for other in found):
                found.append(op)
    return tuple(found)


def same_angles(a: Rotary, b: Rotary) -> bool:
    return (a.frequencies, a.scale) == (b.frequencies, b.scale)


def place_of(turn: Rotary, rotations: tuple[Rotary, ...]) -> int:
    """Which of ``rotations`` has the angles of ``turn``."""
    return next(index for index, other in enumerate(rotations) if same_angles(turn, other))


def scales(name: str) -> str:
    """The name of a matrix's scales."""
    return f"{name}.scales"


def _shapes(tensor: Tensor) -> dict[str, tuple[Any, tuple[int, ...]]]:
    form = tensor.format
    if not form.scaled:
        return {tensor.name: ("f32" if form == F32 else "bf16", (tensor.rows, tensor.cols))}
    if form.type == "float":
        return {
            tensor.name: ("e4m3", (tensor.rows, tensor.cols)),
            scales(tensor.name): ("f32", (tensor.rows,)),
        }
    held = 8 // form.bits
    blocks, tiles = -(-tensor.rows // ROWS), -(-tensor.cols // (form.group * held))
    return {
        tensor.name: ("int8", (blocks, tiles, ROWS, form.group)),
        scales(tensor.name): ("bf16", (blocks, tiles * held, ROWS)),
    }


def _cache_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """What the cache's kernels read: signs, means and the tables of calibrated planes."""
    cache = program.cache
    if isinstance(cache, LatentLayout):
        return {}
    shapes: dict[str, tuple[int, ...]] = {SIGNS: (cache.head_dim,)} if cache.compressed else {}
    tables = {table.name: table.shape for table in cache.tables()}
    for layer in sorted({int(name.split(".")[1]) for name in tables}):
        shapes[MEANS.format(layer)] = (cache.kv_heads, len(SIDES), cache.head_dim)
    return shapes | tables


def _cache_arrays(program: Program, source: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    cache, tables = program.cache, cache_tables(program, source)
    if isinstance(cache, LatentLayout):
        return
    for name, shape in _cache_shapes(program).items():
        if name == SIGNS:
            yield name, unpack_signs(cache.signs, cache.head_dim)
        elif name in tables:
            yield name, tables[name]
        else:
            layer = name.split(".")[1]
            none = np.zeros((cache.kv_heads, cache.head_dim), np.float32)
            yield name, np.stack([tables.get(mean_of(layer, side), none) for side in SIDES], 1).reshape(shape)


def mean_of(layer: object, side: Side) -> str:
    return f"layers.{layer}.{side}.mean"


def tiled(values: NDArray[np.int8], bits: int, group: int) -> NDArray[np.int8]:
    """``[rows, cols]`` to ``[blocks, tiles, 16, group]``; of 4 bits two groups share a tile."""
    held = 8 // bits
    parts = _padded(values, group * held).reshape(
        -1, ROWS, -(-values.shape[1] // (group * held)), held, group
    )
    parts = parts.transpose(3, 0, 2, 1, 4)
    return np.ascontiguousarray(parts[0] if held == 1 else parts[0] & 15 | parts[1] << 4)


def tiled_scales(values: NDArray[Any], bits: int) -> NDArray[np.uint16]:
    """bf16 ``[rows, groups]`` to their bits ``[blocks, groups, 16]``, groups filled up to whole tiles."""
    bits_of = _padded(values.view(np.uint16), 8 // bits)
    return np.ascontiguousarray(bits_of.reshape(-1, ROWS, bits_of.shape[1]).transpose(0, 2, 1))


def _padded(matrix: NDArray[Any], multiple: int) -> NDArray[Any]:
    return np.pad(matrix, ((0, -matrix.shape[0] % ROWS), (0, -matrix.shape[1] % multiple)))


def write_weights(program: Program, model_dir: Path, tables: Path, out: Path) -> None:
    """Write the weights of ``program`` from ``model_dir``, and its cache's tables from the file ``tables``,
    to ``out``, one tensor in memory at a time.

    The file is written aside and renamed. Raises what reading the model folder raises, and OSError.
    """
    parts = WeightParts(program)
    aside = out.with_name(out.name + ".partial")
    with aside.open("wb") as file:
        file.write((WEIGHTS_MAGIC + bytes.fromhex(program.digest)).ljust(HEADER, b"\0"))
        for name, array in _arrays(program, parts.rotations, model_dir, tables):
            part = parts.parts[name]
            if array.nbytes != part.bytes or file.tell() != part.offset:
                raise ValueError(f"{name}: {array.nbytes} bytes at {file.tell()}, planned {part}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            file.write(bytes(-array.nbytes % ALIGNMENT))
    aside.replace(out)


def _arrays(
    program: Program, turns: tuple[Rotary, ...], model_dir: Path, tables: Path
) -> Iterator[tuple[str, NDArray[Any]]]:
    checkpoint = Checkpoint.open(model_dir)
    for tensor in program.tensors:
        value = read_tensor(checkpoint, tensor)
        if isinstance(value, Quantized) and tensor.format.type == "float":
            yield tensor.name, value.values
            yield scales(tensor.name), value.scales.astype(np.float32)
        elif isinstance(value, Quantized):
            yield tensor.name, tiled(value.values, tensor.format.bits, tensor.format.group)
            yield scales(tensor.name), tiled_scales(value.scales, tensor.format.bits)
        else:
            yield tensor.name, value
    for index, rotary in enumerate(turns):
        yield FREQUENCIES.format(index), np.array(rotary.frequencies, np.float64)
    yield from _cache_arrays(program, tables)
