"""CUDA C++ to cubins by NVRTC, NVIDIA's compiler as a library: no GPU and no toolkit is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..runtime.errors import InferCompileError, Problem

PACKAGES = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
"""Wheels that bring the library; PyTorch's for CUDA ask for one of them."""


class Nvrtc:
    """The loaded library. Raises InferCompileError IC313 where there is none."""

    def __init__(self) -> None:
        place = _library()
        if place is None:
            raise InferCompileError(
                Problem(
                    "IC313",
                    "GPU kernels cannot be compiled here",
                    because="NVRTC is not installed",
                    fix=f"pip install {PACKAGES[0]}",
                )
            )
        self._library = ctypes.CDLL(str(place))

    def compile(
        self, name: str, source: str, headers: Mapping[str, str], capability: int
    ) -> tuple[bytes, str]:
        """The cubin of ``source`` for compute capability ``capability`` (89 is 8.9), and its PTX. ``headers``
        are what it includes, by name. Raises InferCompileError IC314 if it fails."""
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(each.encode() for each in headers))
        create = self._library.nvrtcCreateProgram
        self._ask(create(ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names))
        try:
            # A capability's own features, where it has some, are none of these kernels' business.
            given = [f"--gpu-architecture=sm_{capability}".encode(), b"--std=c++20"]
            options = (ctypes.c_char_p * len(given))(*given)
            if self._library.nvrtcCompileProgram(program, len(given), options):
                log = self._found("ProgramLog", program).decode()
                raise InferCompileError(
                    Problem(
                        "IC314",
                        f"the kernel {name} could not be compiled for compute capability {capability / 10}",
                        because="\n    ".join(log.strip("\0\n").splitlines()[-5:]),
                        fix=f"pip install --upgrade {PACKAGES[0]}",
                    )
                )
            return self._found("CUBIN", program), self._found("PTX", program).rstrip(b"\0").decode()
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _found(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._ask(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        found = ctypes.create_string_buffer(size.value)
        self._ask(getattr(self._library, f"nvrtcGet{what}")(program, found))
        return found.raw

    def _ask(self, status: int) -> None:
        if status:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise InferCompileError(
                Problem(
                    "IC314",
                    "GPU kernels could not be compiled",
                    because=f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}",
                    fix=f"pip install --upgrade {PACKAGES[0]}",
                )
            )


def installed() -> bool:
    return _library() is not None


def version() -> str:
    """Of the wheel; empty without one."""
    package = _package()
    return distribution(package).version if package else ""


def _package() -> str | None:
    return next((package for package in PACKAGES if _has(package)), None)


def _has(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _library() -> Path | None:
    """Where the wheel put it."""
    package = _package()
    for path in (distribution(package).files or ()) if package else ():
        if path.name.startswith("libnvrtc.so") and ".alt." not in path.name:
            return Path(str(path.locate()))
    return None
