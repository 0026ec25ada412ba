"""The CUDA driver, by its C interface: its version, and kernels that were compiled ahead of time."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ..errors import InferCompileError, Problem

LIBRARY = "libcuda.so.1"
_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_USUAL_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may have unasked."""
_WARP = 32

Argument = ctypes.c_void_p | ctypes.c_int32 | ctypes.c_float


class Driver:
    """The loaded driver. Raises InferCompileError IC524 where there is none."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as failure:
            raise InferCompileError(
                Problem(
                    "IC524",
                    "there is no NVIDIA driver",
                    because=str(failure),
                    fix="install it; in a container, run it with --gpus all (or its device plugin)",
                )
            ) from failure

    def version(self) -> tuple[int, int]:
        """The newest CUDA that it serves."""
        found = ctypes.c_int()
        self._ask("cuDriverGetVersion", ctypes.byref(found))
        return found.value // 1000, found.value % 1000 // 10

    def start(self) -> None:
        """Raises InferCompileError IC526 where the driver shows no device."""
        self._ask("cuInit", ctypes.c_uint(0))

    def load(self, cubin: bytes, entry: str, shared: int) -> ctypes.c_void_p:
        """The function ``entry`` of ``cubin``, in the context that is current."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._ask("cuModuleLoadData", ctypes.byref(module), cubin)
        self._ask("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
        if shared > _USUAL_SHARED:
            self._ask("cuFuncSetAttribute", function, ctypes.c_int(_SHARED), ctypes.c_int(shared))
        return function

    def launch(
        self,
        function: ctypes.c_void_p,
        grid: Sequence[int],
        warps: int,
        shared: int,
        stream: int,
        arguments: Sequence[Argument],
    ) -> None:
        """``grid`` has one to three sizes."""
        sizes = [ctypes.c_uint(size) for size in (*grid, 1, 1)[:3]]
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        block = [ctypes.c_uint(size) for size in (_WARP * warps, 1, 1)]
        self._ask(
            "cuLaunchKernel",
            function,
            *sizes,
            *block,
            ctypes.c_uint(shared),
            ctypes.c_void_p(stream),
            places,
            None,
        )

    def _ask(self, name: str, *arguments: Any) -> None:
        """Raises InferCompileError IC526 with what the driver calls the failure."""
        status = getattr(self._library, name)(*arguments)
        if status:
            said = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(said))
            raise failed(f"{name}: {said.value.decode() if said.value else f'error {status}'}")


def failed(because: str) -> InferCompileError:
    """IC526."""
    fix = "infer-compile doctor; nvidia-smi tells whether the device is well"
    return InferCompileError(Problem("IC526", "the NVIDIA driver failed", because=because, fix=fix))
