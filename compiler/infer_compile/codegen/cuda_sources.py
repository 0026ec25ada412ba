"""The Triton kernels of kernels/cuda as a package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from ..catalog.resources import folder

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
