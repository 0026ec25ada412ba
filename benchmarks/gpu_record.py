"""Which CUDA kernels ran on a device, as they are now: what renews catalog/cuda_kernels.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import yaml

from infer_compile.catalog.cuda_kernels import Kernel, KernelRun, KernelRuns, sources_digest

EVERY: tuple[Kernel, ...] = get_args(Kernel)
"""Those that tests/gpu runs."""


def record(path: Path, kernels: Sequence[Kernel], capability: str, source: str) -> KernelRuns:
    """Rewrite the file: ``kernels`` as they are now ran on a device of ``capability``, as ``source`` tells.
    What it says of other kernels and devices stays, unless their sources have changed since."""
    text = path.read_text(encoding="utf-8")
    before = KernelRuns.model_validate(yaml.safe_load(text))
    digest = sources_digest()
    new = tuple(
        KernelRun(kernel=kernel, digest=digest, compute_capability=capability, source=source)
        for kernel in kernels
    )
    replaced = {(run.kernel, run.compute_capability) for run in new}
    kept = tuple(run for run in before.current if (run.kernel, run.compute_capability) not in replaced)
    runs = KernelRuns(schema_version=before.schema_version, runs=(*kept, *new))
    head = text[: text.index("runs:")]
    body = yaml.safe_dump({"runs": runs.model_dump(mode="json")["runs"]}, sort_keys=False, width=110)
    path.write_text(head + body, encoding="utf-8")
    return runs
