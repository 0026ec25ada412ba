"""Which CUDA kernels were run on a device since they were last changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from .data import read
from .figure import Frozen
from .resources import folder

Kernel = Literal[
    "append",
    "seal",
    "query",
    "attend",
    "decode",
    "merge",
    "activate",
    "angles",
    "experts",
    "fold",
    "gate",
    "gather",
    "latent",
    "latent_append",
    "latent_seal",
    "linear",
    "norm",
    "place",
    "round",
    "route",
    "scale",
    "skinny",
    "turn",
    "turn_back",
    "turn_part",
]


class KernelRun(Frozen):
    """``kernel`` agreed with its slow form on a device, as it was when the sources had ``digest``."""

    kernel: Kernel
    digest: str
    compute_capability: str
    source: str


class KernelRuns(Frozen):
    schema_version: Literal[1]
    runs: tuple[KernelRun, ...]

    @property
    def current(self) -> tuple[KernelRun, ...]:
        """Those since the last change. Without any the engine is not chosen by default: its row of
        engines.yaml is not ``verified``."""
        return tuple(run for run in self.runs if run.digest == sources_digest())


def load_kernel_runs() -> KernelRuns:
    return KernelRuns.model_validate(read("cuda_kernels.yaml"))


def sources_digest() -> str:
    """sha256 of the sources in kernels/cuda, which share their parts, and of what makes their constants."""
    found = hashlib.sha256()
    codegen = Path(__file__).resolve().parents[1] / "codegen"
    kernels = folder("kernels") / "cuda"
    sources = [path for suffix in ("py", "cu", "cuh") for path in sorted(kernels.glob(f"*.{suffix}"))]
    for path in (*sources, *sorted(codegen.glob("cuda_*.py"))):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
