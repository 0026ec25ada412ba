"""The kernels of a GPU engine, launched: compiled from their source by Triton, or run by its interpreter."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from ..formats.launches import Cubins, Launch, StepTable
from .driver import Argument, Driver

INDEX = "cubins.json"


class Kernels(Protocol):
    """Whatever launches kernels."""

    def launch(self, launch: Launch, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        """``arguments`` are tensors and numbers by the kernel's names; ``grid`` is not empty."""
        ...


class SourceKernels:
    """Kernels by their source in ``folder``, one file each. Needs triton; with TRITON_INTERPRET=1 in the
    environment before the first of them is loaded, tensors lie in the processor's memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._package = f"infer_compile_kernels_{hashlib.sha256(bytes(self._folder)).hexdigest()[:12]}"

    def launch(self, launch: Launch, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        file, _, name = launch.kernel.partition(".")
        kernel = getattr(self._module(file), name)
        kernel[grid](**arguments, **launch.constants, **launch.options)

    def _module(self, name: str) -> ModuleType:
        if self._package not in sys.modules:
            init = self._folder / "__init__.py"
            places = [str(self._folder)]
            found = importlib.util.spec_from_file_location(
                self._package, init, submodule_search_locations=places
            )
            if found is None or found.loader is None:
                raise ModuleNotFoundError(f"no kernels in {self._folder}")
            package = importlib.util.module_from_spec(found)
            sys.modules[self._package] = package
            found.loader.exec_module(package)
        return importlib.import_module(f"{self._package}.{name}")


class CubinKernels:
    """Kernels that were compiled ahead of time, in ``folder`` with their index, through the driver: no
    compiler is needed. Raises ValueError where the index lacks a kernel of ``table``, and OSError.

    Not run on a GPU yet.
    """

    def __init__(
        self,
        folder: Path,
        table: StepTable,
        driver: Driver,
        stream: Callable[[], int] = lambda: int(torch.cuda.current_stream().cuda_stream),
    ) -> None:
        self._stream = stream
        self._table = table
        self._driver = driver
        self._cubins = Cubins.model_validate_json((folder / INDEX).read_text(encoding="utf-8"))
        self._functions: dict[str, ctypes.c_void_p] = {}
        files: dict[str, bytes] = {}
        for launch in table.launches():
            key = table.variant(launch)
            if key in self._functions:
                continue
            if key not in self._cubins.kernels:
                raise ValueError(f"{INDEX} has no kernel for {launch.kernel} with {launch.constants}")
            cubin = self._cubins.kernels[key]
            if cubin.file not in files:
                files[cubin.file] = (folder / cubin.file).read_bytes()
            self._functions[key] = driver.load(files[cubin.file], cubin.entry, cubin.shared)

    def launch(self, launch: Launch, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        key = self._table.variant(launch)
        cubin = self._cubins.kernels[key]
        # Behind its own, Triton's kernels take two places for scratch memory, which none of these needs;
        # others do not look there.
        handed = [*(packed(arguments[name]) for name in cubin.arguments), packed(None), packed(None)]
        self._driver.launch(self._functions[key], grid, cubin.warps, cubin.shared, self._stream(), handed)


def packed(value: torch.Tensor | float | None) -> Argument:
    """As the driver takes it: a pointer, a float or a 32-bit integer."""
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int32(value)


def matmul(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, output: torch.Tensor, add: bool
) -> None:
    """``output = input @ weight.T + bias``, or added to ``output``: bf16 numbers, sums and output float32."""
    if input.is_cuda:
        if add:
            torch.addmm(output, input, weight.T, out_dtype=torch.float32, out=output)
        else:
            torch.mm(input, weight.T, out_dtype=torch.float32, out=output)
    else:
        product = input.float() @ weight.T.float()
        output.copy_(output + product if add else product)
    if bias is not None:
        output += bias


def matmul_e4m3(input: torch.Tensor, weight: torch.Tensor, one: torch.Tensor, output: torch.Tensor) -> None:
    """``output = input @ weight.T``: e4m3 numbers, sums and output float32; both sizes of ``weight`` are
    multiples of 16, ``one`` is what the library multiplies all numbers by.

    Scales of rows are left to a kernel: with them the library gives bfloat16 alone.
    """
    torch._scaled_mm(input, weight.T, one, one, out_dtype=torch.float32, out=output)
