"""Attention of the CPU kernels alone: compiled for chosen shapes; planes and tables come at run time."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_compile.catalog.resources import folder
from infer_compile.codegen.cache import cache_view
from infer_compile.codegen.toolchain import Isa, find
from infer_compile.runtime.engines.cpu import _marshal, _Sequence
from infer_compile.runtime.formats.kv import SIDES, CacheLayout
from infer_compile.runtime.kv.rotation import unpack_signs
from infer_compile.runtime.step import SequenceStep

SOURCE = Path(__file__).with_name("attention_probe.cpp")
KINDS = ("bf16", "fp8", "codes")
TRANSFORMS = ("none", "hadamard", "dense", "diagonal")
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is a template argument."""

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    page_tokens: int = 32
    sink_pages: int = 1
    recent_pages: int = 1
    compressed: bool = True

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def arguments(self) -> str:
        sizes = (self.layers, self.kv_heads, self.group, self.head_dim, self.page_tokens)
        pages = (self.sink_pages, self.recent_pages)
        return ", ".join(str(size) for size in (*sizes, *pages)) + (
            ", true" if self.compressed else ", false"
        )


def compile_probe(
    shapes: Sequence[Shape], out: Path, isa: Isa, extra: tuple[str, ...] = ("-Og",)
) -> ctypes.CDLL:
    out.mkdir(parents=True, exist_ok=True)
    for path in (folder("kernels") / "cpu").iterdir():
        shutil.copy(str(path), out)
    shutil.copy(SOURCE, out)
    (out / "probe_shapes.hpp").write_text("".join(f"SHAPE({shape.arguments})\n" for shape in shapes))
    find("x86-64").compile(out / SOURCE.name, out / "libprobe.so", isa, extra=extra)
    library = ctypes.CDLL(str((out / "libprobe.so").resolve()))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.probe_open.restype = pointer
    library.probe_open.argtypes = [*[number] * 4, ctypes.c_uint64, pointer, pointer, pointer]
    library.probe_close.argtypes = [pointer]
    library.probe_close.restype = None
    library.probe_pool.restype = ctypes.POINTER(ctypes.c_uint8)
    library.probe_pool.argtypes = [pointer, number, ctypes.POINTER(ctypes.c_uint64)]
    library.probe_step.argtypes = [pointer, pointer, *[number] * 3, ctypes.c_float, pointer, pointer, number]
    library.probe_step.argtypes += [pointer, ctypes.c_char_p, number]
    return library


class Probe:
    """One cache of a shape that ``library`` has."""

    def __init__(
        self,
        library: ctypes.CDLL,
        index: int,
        shape: Shape,
        layout: CacheLayout,
        tables: Mapping[str, Float32],
        pages: tuple[int, int],
        threads: int = 1,
    ) -> None:
        self._library, self._shape = library, shape
        offsets, blobs, end = {}, [np.zeros(16, np.float32)], 64
        for table in layout.tables():
            offsets[table.name] = end
            blobs.append(np.ascontiguousarray(tables[table.name], np.float32).reshape(-1))
            blobs.append(np.zeros(-blobs[-1].size % 16, np.float32))
            end += 4 * (blobs[-1].size + blobs[-2].size)
        self._weights = np.concatenate(blobs)
        signs = layout.signs or "00" * (layout.head_dim // 8)
        self._signs = unpack_signs(signs, layout.head_dim)
        self._layers = np.array(list(_numbers(layout, offsets)), np.float64)
        self._probe = library.probe_open(
            index,
            threads,
            *pages,
            layout.packed_page_bytes,
            self._layers.ctypes.data,
            self._weights.ctypes.data,
            self._signs.ctypes.data,
        )

    def step(
        self,
        batch: Sequence[SequenceStep],
        inputs: Float32,
        *,
        layer: int = 0,
        window: int = 0,
        scale: float,
        repeats: int = 1,
    ) -> tuple[Float32, list[float]]:
        """Appends, seals and attends; the outputs, and the seconds of each repetition. Raises ValueError with
        what the kernels say."""
        alive: list[NDArray[np.float32]] = []
        sequences = (_Sequence * len(batch))(*(_marshal(sequence, alive) for sequence in batch))
        out = np.full((len(inputs), self._shape.heads * self._shape.head_dim), np.nan, np.float32)
        inputs = np.ascontiguousarray(inputs, np.float32)
        seconds = np.zeros(repeats)
        error = ctypes.create_string_buffer(512)
        failed = self._library.probe_step(
            self._probe,
            sequences,
            len(batch),
            layer,
            window,
            scale,
            inputs.ctypes.data,
            out.ctypes.data,
            repeats,
            seconds.ctypes.data,
            error,
            512,
        )
        if failed:
            raise ValueError(error.value.decode())
        return out, seconds.tolist()

    def pool(self, name: str) -> NDArray[np.uint8]:
        size = ctypes.c_uint64()
        data = self._library.probe_pool(self._probe, ("exact", "packed").index(name), ctypes.byref(size))
        return np.ctypeslib.as_array(data, (size.value,)) if size.value else np.empty(0, np.uint8)

    def close(self) -> None:
        self._library.probe_close(self._probe)


def _numbers(layout: CacheLayout, offsets: Mapping[str, int]):  # type: ignore[no-untyped-def]
    view = cache_view(layout, offsets)
    for layer in view["layers"]:
        yield layer["place"]
        for side in SIDES:
            name, *places = layer[side]
            plane = view["planes"][int(name.removeprefix("&kPlane"))]
            yield from (KINDS.index(plane["kind"]), TRANSFORMS.index(plane["transform"]))
            yield from (plane["scaled"], plane["columns"], plane["bytes"], *places)
            yield len(plane["segments"])
            for segment in plane["segments"]:
                yield from (segment["bits"], segment["first"], segment["columns"])
                yield float(segment["unit"].removesuffix("f"))
                yield from segment["points"]
