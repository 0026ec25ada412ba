"""What a bundle is made from, as digests: two builds of equal identity give equal bytes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from ..bundle.files import content_digest, describe
from ..catalog.resources import folder
from ..quantize.cache.fold import Basis
from .ship import runtime_folder

DISTRIBUTION = "infer-compile"
# The parts of the compiler that decide a bundle's bytes beside the plan and the program.
_PARTS = ("build", "bundle", "codegen", "evaluate", "quantize", "runtime")


def tool_version() -> str:
    return version(DISTRIBUTION)


def toolchain(compilers: Mapping[str, str]) -> dict[str, str]:
    """Name to version of what makes the bytes: this compiler with its own sources, Python, and what
    ``compilers`` it runs."""
    return {
        DISTRIBUTION: tool_version(),
        "sources": _sources(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": version("numpy"),
        **compilers,
    }


def tool(versions: Mapping[str, str]) -> str:
    """One digest of a toolchain."""
    return key(*(f"{name} {version}" for name, version in sorted(versions.items())))


def of_bases(bases: Mapping[int, Basis]) -> str:
    """One digest of the bases that values are turned to, by layer; empty if they are not."""
    found = hashlib.sha256()
    for layer, basis in sorted(bases.items()):
        for matrix in (basis.forward, basis.backward):
            found.update(f"{layer} {matrix.shape} ".encode() + np.ascontiguousarray(matrix, "<f4").tobytes())
    return found.hexdigest() if bases else ""


def key(*parts: str) -> str:
    """One digest of several."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sources() -> str:
    package = runtime_folder().parent
    kernels, templates = folder("kernels"), folder("templates")
    roots = [(part, package / part, "*.py") for part in _PARTS]
    roots += [("kernels", kernels, pattern) for pattern in ("*.h*", "*.py", "*.cu*")]
    return content_digest(
        {
            f"{name}/{path.relative_to(root).as_posix()}": describe(path)
            for name, root, pattern in (*roots, ("templates", templates, "*.j2"))
            for path in root.rglob(pattern)
        }
    )
