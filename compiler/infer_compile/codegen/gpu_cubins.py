"""The kernels of a step compiled ahead of time, for one architecture: no GPU is needed, and where they run no
compiler. Launches of ``attend`` and ``linear`` are compiled from CUDA C++ where that serves them
(cuda_decode.py, cuda_skinny.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..runtime.formats.launches import ALIGNMENT, Cubin, Cubins, Dtype, Launch, StepTable
from . import cuda_decode, cuda_skinny, nvrtc
from .cubins import need_compiler, run_compiler
from .cuda_sources import kernel
from .nvrtc import Nvrtc

INDEX = "cubins.json"
MOST_PROCESSES = 8
TYPES: Mapping[Dtype, str] = MappingProxyType(
    {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "bf16", "int8": "i8", "int32": "i32"}
)
"""Triton's words for the types of numbers; kernels see e4m3 as bytes."""


def compilers(table: StepTable) -> dict[str, str]:
    """Name to version of what compiles the kernels of ``table``.

    Raises InferCompileError IC313 where it is not installed, or triton interprets.
    """
    need_compiler()
    versions = {"triton": version("triton")}
    if any(by_nvrtc(launch) for launch in table.launches()):
        Nvrtc()
        versions["nvrtc"] = nvrtc.version()
    return versions


def compile_step(
    table: StepTable,
    capability: int,
    folder: Path,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> Cubins:
    """Write the kernels of ``table`` for compute capability ``capability`` (89 is 8.9), and their index, to
    ``folder``. ``advance`` is told how many are there, and how many there will be.

    Raises InferCompileError: IC313 without triton or NVRTC or under triton's interpreter, IC314 if
    it fails.
    """
    need_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    launches = {table.variant(launch): launch for launch in table.launches()}
    files = [f"{launch.kernel}.{key[:12]}.cubin" for key, launch in launches.items()]
    found: dict[str, Cubin] = {}
    every = compiled(table, tuple(launches.values()), capability, files)
    for key, made in zip(launches, every, strict=True):
        (folder / made.cubin.file).write_bytes(made.code)
        found[key] = made.cubin
        advance(len(found), len(launches))
    index = Cubins(capability=capability, kernels=found)
    (folder / INDEX).write_text(index.model_dump_json(by_alias=True, indent=1) + "\n")
    return index


@dataclass(frozen=True, slots=True)
class Made:
    """The kernel of one launch: its cubin, the same as PTX, and what a launch has to know of it."""

    code: bytes
    ptx: str
    cubin: Cubin


def compiled(
    table: StepTable, launches: Sequence[Launch], capability: int, files: Sequence[str]
) -> Iterator[Made]:
    """Of each of ``launches`` what ``compile_launch`` makes, in order. A calibrated cache has kernels for
    every layer: processes share the work."""
    count = min(processes(), len(launches))
    words = (repeat(table), launches, repeat(capability), files)
    if count < 2:
        yield from map(compile_launch, *words)
        return
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        yield from pool.map(compile_launch, *words)


def processes() -> int:
    """That compile side by side: each keeps a compiler in memory."""
    return min(MOST_PROCESSES, os.cpu_count() or 1)


def compile_launch(table: StepTable, launch: Launch, capability: int, file: str) -> Made:
    """For a cubin that is to be written to ``file``."""
    if by_nvrtc(launch):
        return _by_nvrtc(table, launch, capability, file)
    from triton.compiler import ASTSource

    module, _, name = launch.kernel.partition(".")
    function = getattr(kernel(module), name)
    types = _types(table, launch)
    absent = {name: None for name, tensor in launch.tensors.items() if tensor is None}
    constants: dict[str, Any] = {**launch.constants, **absent}
    names = function.arg_names
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={
            (index,): [["tt.divisibility", ALIGNMENT]]
            for index, name in enumerate(names)
            if types.get(name, "").startswith("*") or name in launch.aligned
        },
    )
    made = run_compiler(launch.kernel, source, capability, launch.options)
    handed = tuple(name for name in names if name in types)
    cubin = Cubin(
        file=file,
        entry=made.metadata.name,
        arguments=handed,
        warps=launch.warps,
        shared=made.metadata.shared,
    )
    return Made(made.asm["cubin"], made.asm["ptx"], cubin)


def by_nvrtc(launch: Launch) -> str | None:
    """The kernel in CUDA C++ that NVRTC compiles for it, if Triton does not."""
    if launch.kernel == "attend.attend" and cuda_decode.serves(launch.constants):
        return cuda_decode.ENTRY
    if launch.kernel == "linear.linear" and cuda_skinny.serves(launch.constants):
        return cuda_skinny.ENTRY
    return None


def _by_nvrtc(table: StepTable, launch: Launch, capability: int, file: str) -> Made:
    if by_nvrtc(launch) == cuda_skinny.ENTRY:
        entry, arguments, warps = cuda_skinny.ENTRY, cuda_skinny.ARGUMENTS, launch.warps
        code, ptx = cuda_skinny.compile_skinny(launch.constants, warps, capability)
    else:
        entry, arguments, warps = cuda_decode.ENTRY, cuda_decode.ARGUMENTS, cuda_decode.WARPS
        queries = launch.tensors["queries"]
        if queries is None:
            raise ValueError("attention without queries")
        code, ptx = cuda_decode.compile_decode(launch.constants, table.dtype(queries), capability)
    return Made(code, ptx, Cubin(file=file, entry=entry, arguments=arguments, warps=warps, shared=0))


def _types(table: StepTable, launch: Launch) -> dict[str, str]:
    """Of the arguments that a launch hands over."""
    types = {
        name: f"*{TYPES[table.dtype(tensor)]}"
        for name, tensor in launch.tensors.items()
        if tensor is not None
    }
    types |= dict.fromkeys(launch.counts, "i32")
    types |= {name: "fp32" if isinstance(each, float) else "i32" for name, each in launch.numbers.items()}
    return types
