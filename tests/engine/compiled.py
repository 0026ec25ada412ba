"""Triton's kernels compiled ahead of time and run by the interpreter of PTX, launched as Triton's own are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from ptx import Module

from infer_compile.codegen.cuda_constants import Launch, chunk_launch, decode_launch
from infer_compile.codegen.cuda_sources import kernel

CACHE = ("append", "seal", "query", "attend", "merge")
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_WARP = 32


@dataclass(frozen=True, slots=True)
class Request:
    """A function of a module of kernels/cuda, for compute capability ``capability``. ``types`` are those of
    its arguments; the kernels of the cache have theirs from the compiler."""

    module: str
    function: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    launch: Launch
    capability: int

    def compile(self, folder: Path) -> tuple[str, str, int]:
        """The entry's name, its PTX, and the bytes of its dynamic shared memory. Needs Triton without its
        interpreter."""
        from triton.compiler import ASTSource

        from infer_compile.codegen.cubins import Variant, compile_kernel, run_compiler

        constants = dict(self.constants)
        if self.module in CACHE:
            options = self.launch.warps, self.launch.stages, self.launch.registers
            variant = Variant(self.module, constants, *options)
            compiled = compile_kernel(variant, self.capability, folder)
            return compiled.entry, compiled.ptx, compiled.shared
        function = getattr(kernel(self.module), self.function)
        names = function.arg_names
        source = ASTSource(
            function,
            {name: "constexpr" if name in constants else self.types[name] for name in names},
            constexprs=constants,
            attrs={
                (index,): [["tt.divisibility", 16]]
                for index, name in enumerate(names)
                if self.types.get(name, "").startswith("*")
            },
        )
        wanted = {"num_warps": self.launch.warps, "num_stages": self.launch.stages}
        found = run_compiler(self.function, source, self.capability, wanted)
        return found.metadata.name, found.asm["ptx"], found.metadata.shared


class Compiler:
    """A process of its own, as Triton compiles nothing where it interprets."""

    def __init__(self, folder: Path) -> None:
        environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(folder / "triton"), "PYTHONWARNINGS": "ignore"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._modules: dict[str, tuple[str, Module, int]] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def compile(self, request: Request) -> tuple[str, Module, int]:
        line = repr(astuple(request))
        if line not in self._modules:
            if self._process.stdin is None or self._process.stdout is None:
                raise ValueError("the process has no pipes")
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise ValueError(f"{request.function} could not be compiled")
            entry, ptx, shared = json.loads(answer)
            self._modules[line] = entry, Module(ptx), shared
        return self._modules[line]


@dataclass
class Kernels:
    """Stands for ``cuda_sources.kernel``. ``counts`` are of instructions that warps issued."""

    compiler: Compiler
    capability: int
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def __call__(self, module: str) -> _Functions:
        return _Functions(self, module)

    def launch(
        self, module: str, function: str, grid: Sequence[int], given: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        original = getattr(kernel(module), function)
        arguments = dict(zip(original.arg_names, given, strict=False)) | dict(named)
        fixed = {name for name, each in original.fn.__annotations__.items() if each is tl.constexpr}
        constants = {name: each for name, each in arguments.items() if name in fixed or each is None}
        handed = {name: arguments[name] for name in original.arg_names if name not in constants}
        types = {name: _type(each) for name, each in handed.items()}
        launch = _launch(function, constants)
        request = Request(module, function, types, constants, launch, self.capability)
        entry, compiled, shared = self.compiler.compile(request)
        # Behind the kernel's own arguments Triton has two pointers to memory that ours do not ask for.
        values = [*(_numbers(each) for each in handed.values()), None, None]
        counts = compiled.run(entry, grid, (_WARP * launch.warps,), values, shared)
        self.counts[function] = self.counts.get(function, Counter()) + counts


@dataclass
class _Functions:
    kernels: Kernels
    module: str

    def __getattr__(self, function: str) -> _Grid:
        return _Grid(self.kernels, self.module, function)


@dataclass
class _Grid:
    kernels: Kernels
    module: str
    function: str

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        return lambda *given, **named: self.kernels.launch(self.module, self.function, grid, given, named)


def _launch(function: str, constants: Mapping[str, Any]) -> Launch:
    """As many threads as the engine takes."""
    if function == "attend":
        few = constants["TOKENS"] <= 8
        return decode_launch(constants["D"], constants["ROWS"]) if few else chunk_launch()
    # Tiles of few rows are fetched eight at a time.
    return Launch(block=0, warps=4, stages=8 if function == "linear" else 1)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _numbers(value: Any) -> Any:
    """Tensors as arrays of the same memory."""
    if not isinstance(value, torch.Tensor):
        return value
    held = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    return np.asarray(held)


if __name__ == "__main__":
    for line in sys.stdin:
        *given, launch, capability = literal_eval(line)
        request = Request(*given, Launch(*launch), capability)
        print(json.dumps(request.compile(Path(sys.argv[1]))), flush=True)
