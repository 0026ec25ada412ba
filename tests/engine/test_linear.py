"""Products of the CPU kernels alone against plain sums, on drawn shapes, on every instruction set."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from shapes import Build
from test_cpu_engine import build_for

from infer_compile.catalog.resources import folder
from infer_compile.codegen.blocks import ROWS, block_bf16, block_quantized
from infer_compile.codegen.toolchain import find
from infer_compile.runtime.formats.weights import GROUPS

SOURCE = Path(__file__).with_name("linear_probe.cpp")
Float32 = NDArray[np.float32]
EXACT = 3e-6
"""Of the sum of magnitudes: integer sums are exact, and some dozen float32 sums of groups follow them."""


@dataclass(frozen=True, slots=True)
class Shape:
    bits: int
    outputs: int
    inputs: int
    group: int = 0

    @property
    def line(self) -> str:
        if self.bits == 16:
            return f"FLOATS({self.outputs}, {self.inputs})\n"
        return f"INTEGER({self.bits}, {self.outputs}, {self.inputs}, {self.group})\n"


def draw_shapes() -> list[Shape]:
    """Every group size of both widths; rows that do not fill a block, and inputs beyond one panel."""
    rng = np.random.default_rng(5)
    shapes = [
        Shape(bits, int(rng.integers(1, 90)), group * int(rng.integers(1, 700 // group)), group)
        for bits in (4, 8)
        for group in GROUPS
    ]
    shapes.append(Shape(4, 33, 1152, 64))
    return [*shapes, *(Shape(16, int(rng.integers(1, 90)), 16 * int(rng.integers(1, 20))) for _ in range(2))]


SHAPES = draw_shapes()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A matrix as it is stored, what its numbers are, and what its products are to be."""

    shape: Shape
    stored: NDArray[np.uint8]
    values: NDArray[np.float64]
    bias: NDArray[np.float32]

    def expected(self, x: Float32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The products, and the sums of their magnitudes."""
        rounded = _rounded(x, self.shape.group) if self.shape.group else x.astype(np.float64)
        return rounded @ self.values.T, np.abs(rounded) @ np.abs(self.values).T


def draw(rng: np.random.Generator, shape: Shape) -> Drawn:
    size = (shape.outputs, shape.inputs)
    bias = rng.standard_normal(-(-shape.outputs // ROWS) * ROWS).astype(ml_dtypes.bfloat16)
    if shape.bits == 16:
        matrix = rng.standard_normal(size).astype(ml_dtypes.bfloat16)
        return Drawn(shape, block_bf16(matrix), matrix.astype(np.float64), bias.astype(np.float32))
    most = 2 ** (shape.bits - 1) - 1
    codes = rng.integers(-most - (shape.bits == 4), most + 1, size).astype(np.int8)
    codes[0] = -most - (shape.bits == 4)  # the largest sums there are
    scales = rng.uniform(0.5, 2, (shape.outputs, shape.inputs // shape.group)).astype(ml_dtypes.bfloat16)
    values = codes * np.repeat(scales.astype(np.float64), shape.group, axis=1)
    return Drawn(
        shape, block_quantized(codes, scales, shape.bits, shape.group), values, bias.astype(np.float32)
    )


def _rounded(x: Float32, group: int) -> NDArray[np.float64]:
    """What the Program's Quantize operation leaves of ``x``, by its own float32 arithmetic."""
    groups = x.reshape(len(x), -1, group)
    scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (np.rint(groups * inverse) * scale.astype(np.float64)).reshape(x.shape)


def compile_kernels(source: Path, out: Path, how: Build) -> ctypes.CDLL:
    """``source`` beside the kernels and the shapes, compiled in the new folder ``out``."""
    out.mkdir()
    for path in (folder("kernels") / "cpu").iterdir():
        shutil.copy(str(path), out)
    shutil.copy(source, out)
    (out / "probe_shapes.hpp").write_text("".join(shape.line for shape in SHAPES))
    find("x86-64").compile(out / source.name, out / "libprobe.so", how.isa, extra=("-Og", *how.extra))
    return ctypes.CDLL(str((out / "libprobe.so").resolve()))


class Libraries:
    """The products of every instruction set, each compiled when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, ctypes.CDLL] = {}

    def get(self, path: str) -> ctypes.CDLL:
        if path not in self._loaded:
            loaded = compile_kernels(SOURCE, self._folder / path, build_for(path))
            pointer, number = ctypes.c_void_p, ctypes.c_int32
            arguments = [number, number, pointer, pointer, number, pointer, number, pointer, number]
            loaded.probe_linear.argtypes = arguments
            self._loaded[path] = loaded
        return self._loaded[path]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    return Libraries(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module", params=["avx2", "avx512", "amx", "portable"])
def library(request: pytest.FixtureRequest, libraries: Libraries) -> ctypes.CDLL:
    return libraries.get(request.param)


def run(
    library: ctypes.CDLL,
    matrix: Drawn,
    x: Float32,
    *,
    threads: int = 1,
    bias: bool = False,
    onto: Float32 | None = None,
) -> Float32:
    """``x`` [rows, inputs] times the matrix: [rows, outputs]; added to ``onto`` if there is one."""
    width = -(-matrix.shape.outputs // ROWS) * ROWS
    out = np.full((len(x), width), np.nan, np.float32)
    if onto is not None:
        out[:] = 0
        out[:, : matrix.shape.outputs] = onto
    bias16 = matrix.bias.astype(ml_dtypes.bfloat16)
    index, x = SHAPES.index(matrix.shape), np.ascontiguousarray(x)
    library.probe_linear(
        index,
        threads,
        matrix.stored.ctypes.data,
        x.ctypes.data,
        len(x),
        out.ctypes.data,
        width,
        bias16.ctypes.data if bias else None,
        int(onto is not None),
    )
    return out[:, : matrix.shape.outputs]


def activations(rng: np.random.Generator, rows: int, inputs: int) -> Float32:
    """Rows of different sizes; one is zero, and one has its largest value everywhere."""
    x = rng.standard_normal((rows, inputs)).astype(np.float32) * rng.uniform(1e-3, 1e3, (rows, 1)).astype(
        np.float32
    )
    x[rows // 2] = 0
    x[rows - 1] = np.where(rng.random(inputs) < 0.02, 7, -7)
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.line.strip())
def test_products_are_those_of_plain_sums(library: ctypes.CDLL, shape: Shape) -> None:
    rng = np.random.default_rng(shape.outputs)
    matrix = draw(rng, shape)
    for rows in (1, 3, 29):
        x = activations(rng, rows, shape.inputs)
        expected, magnitude = matrix.expected(x)
        before = rng.standard_normal(expected.shape).astype(np.float32)
        found = run(library, matrix, x, bias=rows == 3, onto=before if rows == 29 else None)
        if rows == 3:
            expected = expected + matrix.bias[: shape.outputs]
        if rows == 29:
            expected = expected + before
        error = np.abs(found - expected) / (magnitude + np.abs(expected) + 1e-6)
        assert error.max() < (EXACT if shape.group else 3e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.line.strip())
def test_no_bit_depends_on_rows_per_call_or_threads(library: ctypes.CDLL, shape: Shape) -> None:
    """From one row up: every size of a tile, the stored weights and the open panel, one stripe and two."""
    rng = np.random.default_rng(shape.inputs)
    matrix = draw(rng, shape)
    x = activations(rng, 301, shape.inputs)
    whole = run(library, matrix, x, threads=2)
    start = 0
    for rows in (1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 17, 30, 80, 100):
        found = run(library, matrix, x[start : start + rows], threads=1 + rows % 3)
        assert np.array_equal(found.view(np.int32), whole[start : start + rows].view(np.int32)), rows
        start += rows
    assert start == len(x)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.line.strip())
def test_instruction_sets_give_the_same_bits(libraries: Libraries, shape: Shape) -> None:
    """Matrix tiles and vectors of either length: sums of a group are exact, and groups follow in one order.
    Rows that fill tiles, that leave one of them short or alone, and a second stripe."""
    rng = np.random.default_rng(shape.inputs + 1)
    matrix = draw(rng, shape)
    x = activations(rng, 301, shape.inputs)
    whole = run(libraries.get("avx2"), matrix, x)
    counts = {1, 12, 13, 16, 17, 31, 32, 33, 70, 257, 301, *rng.integers(14, 70, 6).tolist()}
    for path in ("amx", "avx512"):
        for rows in counts if path == "amx" else {70}:
            found = run(libraries.get(path), matrix, x[:rows], threads=1 + rows % 3)
            assert np.array_equal(found.view(np.int32), whole[:rows].view(np.int32)), (path, rows)
