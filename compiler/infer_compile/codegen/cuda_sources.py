"""The sources in kernels/cuda: Triton kernels as a package, CUDA C++ compiled."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from ..catalog.resources import folder
from .nvrtc import Nvrtc

NAME = "infer_compile_cuda_kernels"


def kernel(name: str) -> ModuleType:
    """The module of one kernel, which has a function of the same name. Needs triton."""
    if NAME not in sys.modules:
        place = folder("kernels") / "cuda"
        found = importlib.util.spec_from_file_location(
            NAME, place / "__init__.py", submodule_search_locations=[str(place)]
        )
        if found is None or found.loader is None:
            raise ModuleNotFoundError(f"no kernels in {place}")
        package = importlib.util.module_from_spec(found)
        sys.modules[NAME] = package
        found.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{name}")


def compile_cuda(file: str, constants: str, capability: int) -> tuple[bytes, str]:
    """The cubin of ``file``, with ``constants`` for constants.h, for compute capability ``capability`` (89 is
    8.9), and its PTX. Raises InferCompileError IC313 and IC314."""
    place = folder("kernels") / "cuda"
    headers = {path.name: path.read_text() for path in sorted(place.glob("*.cuh"))}
    source = (place / file).read_text()
    return Nvrtc().compile(file, source, {"constants.h": constants, **headers}, capability)
