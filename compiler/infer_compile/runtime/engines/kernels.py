"""The kernels of a GPU engine, launched: compiled from their source by Triton, or run by its interpreter."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from ..formats.launches import Launch


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
        kernel[grid](**arguments, **launch.constants, num_warps=launch.warps, num_stages=launch.stages)

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
