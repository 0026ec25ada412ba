"""Whether this machine's GPU can run an engine, asked before anything is loaded."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import ModuleType

from ..errors import InferCompileError, Problem
from ..formats.launches import Dtype

GIB = 1 << 30
FIRST_E4M3 = (8, 9)
"""Ada; PyTorch's documentation of torch.nn.functional.scaled_mm and NVIDIA's of cuBLAS."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and the bytes of the device's memory that it holds; None where the driver does not tell."""

    pid: int
    name: str
    bytes: int | None

    def __str__(self) -> str:
        held = (
            "an amount that the driver does not tell" if self.bytes is None else f"{self.bytes / GIB:.1f} GiB"
        )
        return f"process {self.pid} ({self.name}) holds {held}"


def need_torch() -> None:
    """Raises InferCompileError IC529 without PyTorch."""
    if find_spec("torch") is None:
        raise _no_torch(
            "PyTorch is not installed", "an engine of a GPU has its matrix products and memory from it"
        )


def check_driver(served: tuple[int, int], built: str | None) -> None:
    """Raises InferCompileError IC525 for a driver that serves an older generation of CUDA than PyTorch was
    ``built`` with ("12.8"): within one generation drivers run what is newer. IC529 where it was built
    without."""
    if built is None:
        raise _no_torch("the installed PyTorch was built without CUDA", "it cannot use an NVIDIA GPU")
    if served[0] < int(built.split(".")[0]):
        raise InferCompileError(
            Problem(
                "IC525",
                "the NVIDIA driver is too old",
                because=f"it serves CUDA {served[0]}.{served[1]}, and PyTorch was built with {built}",
                fix="install a newer driver, or a PyTorch built with an older CUDA",
            )
        )


def _no_torch(message: str, because: str) -> InferCompileError:
    return InferCompileError(
        Problem("IC529", message, because=because, fix="install a PyTorch that was built with CUDA")
    )


def check_memory(planned: int, free: int, total: int, holders: Sequence[Holder]) -> None:
    """Raises InferCompileError IC527 if ``planned`` bytes are more than are ``free``; it names who holds
    memory."""
    if planned > free:
        raise lacking_memory(planned, free, total, holders)


def lacking_memory(planned: int, free: int, total: int, holders: Sequence[Holder]) -> InferCompileError:
    """IC527, in numbers."""
    because = f"weights, cache and buffers take {planned / GIB:.1f} GiB, and of {total / GIB:.1f} GiB "
    because += f"{free / GIB:.1f} GiB are free"
    if holders:
        because += "; " + "; ".join(map(str, holders))
    fix = "end what holds the memory, or plan for a smaller context or fewer sequences"
    return InferCompileError(
        Problem("IC527", "the device has too little free memory", because=because, fix=fix)
    )


def check_numbers(capability: tuple[int, int], held: Collection[Dtype]) -> None:
    """Raises InferCompileError IC535 for weights ``held`` in e4m3 on a device that does not multiply them."""
    if "e4m3" not in held or capability >= FIRST_E4M3:
        return
    raise InferCompileError(
        Problem(
            "IC535",
            f"a device of compute capability {capability[0]}.{capability[1]} does not multiply fp8 weights",
            because=f"e4m3 numbers are multiplied from compute capability {FIRST_E4M3[0]}.{FIRST_E4M3[1]} on",
            fix="build the bundle with other weights, or run it on a newer device",
        )
    )


def need_compiler(capability: tuple[int, int]) -> None:
    """Raises InferCompileError IC528 where kernels for a device that a bundle lacks cannot be compiled:
    Triton compiles them, and has a C compiler make what launches them."""
    lacks = []
    if find_spec("triton") is None:
        lacks.append("triton, which compiles them,")
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        lacks.append("a C compiler, which triton takes,")
    if lacks:
        raise InferCompileError(
            Problem(
                "IC528",
                f"the bundle has no kernels for compute capability {capability[0]}.{capability[1]}",
                because=f"it was built for another device, and {' and '.join(lacks)} is not installed",
                fix="build the bundle for this device, or install triton and gcc",
            )
        )


def holders(index: int) -> tuple[Holder, ...]:
    """Who holds memory of device ``index``, by NVML where its binding is installed; the largest first."""
    try:
        binding = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        binding.nvmlInit()
    except binding.NVMLError:
        return ()
    try:
        return _holders(binding, index)
    except binding.NVMLError:
        return ()
    finally:
        binding.nvmlShutdown()


def _holders(binding: ModuleType, index: int) -> tuple[Holder, ...]:
    device = binding.nvmlDeviceGetHandleByIndex(index)
    running = binding.nvmlDeviceGetComputeRunningProcesses(device)
    found = [Holder(each.pid, _name(each.pid), each.usedGpuMemory) for each in running]
    return tuple(sorted(found, key=lambda holder: -(holder.bytes or 0)))


def _name(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "of another container"
