"""The tiny model's bundle for a GPU, with or without the compiler of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from click.testing import CliRunner

from infer_compile.cli.main import main
from infer_compile.codegen import gpu_cubins
from infer_compile.codegen.gpu_cubins import Made
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.formats.launches import Cubin, Launch, StepTable

SPEC = """\
apiVersion: infer-compile/v1
name: tiny
model: {source: model}
target: TARGET
workload: {context_tokens: 64, input_tokens: 24, output_tokens: 8, concurrency: 2}
pin: {engine: native, weights: {format: int4-rtn, group: 64}, kv: tq3}
"""


def write(folder: Path, target: str, **config: Any) -> Path:
    """The spec's path."""
    spec = tiny.write(folder, host_architecture() or "x86-64", **config)
    spec.write_text(SPEC.replace("TARGET", target))
    return spec


def without_compiler(patch: Callable[..., None]) -> None:
    """Cubins are not compiled but made up, so that a build takes no compiler's time, nor triton."""

    def made_up(table: StepTable, launch: Launch, capability: int, file: str) -> Made:
        names = tuple(launch.tensors)
        code = f"ELF of {table.variant(launch)} for {capability}".encode()
        cubin = Cubin(file=file, entry=launch.kernel, arguments=names, warps=launch.warps, shared=0)
        return Made(code, "", cubin)

    patch(gpu_cubins, "need_compiler", lambda: None)
    patch(gpu_cubins, "processes", lambda: 1)
    patch(gpu_cubins, "compile_launch", made_up)
    patch(gpu_cubins, "compilers", lambda table: {"triton": "0"})


def built(spec: Path, out: Path) -> str:
    """What the build of ``spec`` to ``out`` says on stderr."""
    done = CliRunner().invoke(main, ["build", str(spec), "-o", str(out)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stderr
