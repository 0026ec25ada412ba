"""Triton's kernels compiled ahead of time and run by the interpreter of PTX, launched as Triton's own are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import triton.language as tl
from ptx import Inside, Module

from infer_compile.codegen.cuda_constants import SEAL_WARPS, Launch, chunk_launch, decode_launch
from infer_compile.codegen.cuda_sources import kernel
from infer_compile.runtime.formats import launches

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
class Answer:
    """What a compiler made: PTX with one entry, for blocks of ``warps`` that ask for ``shared`` bytes of
    dynamic shared memory, and the names of its arguments in their order. Behind these Triton's kernels have
    two pointers to ``scratch`` memory that ours do not ask for."""

    entry: str
    ptx: str
    shared: int
    arguments: tuple[str, ...]
    warps: int
    scratch: bool = True


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

    def compile(self, folder: Path) -> Answer:
        """Needs Triton without its interpreter."""
        from triton.compiler import ASTSource

        from infer_compile.codegen.cubins import Variant, compile_kernel, run_compiler

        constants, handed = dict(self.constants), tuple(self.types)
        if self.module in CACHE:
            options = self.launch.warps, self.launch.stages, self.launch.registers
            compiled = compile_kernel(Variant(self.module, constants, *options), self.capability, folder)
            return Answer(compiled.entry, compiled.ptx, compiled.shared, handed, self.launch.warps)
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
        return Answer(found.metadata.name, found.asm["ptx"], found.metadata.shared, handed, self.launch.warps)


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A launch of a step's table, which lies in a file, compiled as it is for a bundle."""

    table: Path
    launch: launches.Launch
    capability: int

    def compile(self, folder: Path) -> Answer:
        """As ``Request.compile``."""
        from infer_compile.codegen.gpu_cubins import by_nvrtc, compile_launch

        table = launches.StepTable.from_json(self.table.read_text())
        made = compile_launch(table, self.launch, self.capability, "")
        cubin = made.cubin
        scratch = by_nvrtc(self.launch) is None
        return Answer(cubin.entry, made.ptx, cubin.shared, cubin.arguments, cubin.warps, scratch)


class Compiler:
    """A process of its own, as Triton compiles nothing where it interprets."""

    def __init__(self, folder: Path) -> None:
        environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(folder / "triton"), "PYTHONWARNINGS": "ignore"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import compiled; compiled.serve()", str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._modules: dict[bytes, tuple[Answer, Module]] = {}

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def compile(self, request: Request | StepRequest) -> tuple[Answer, Module]:
        key = pickle.dumps(request)
        if key not in self._modules:
            if self._process.stdin is None or self._process.stdout is None:
                raise ValueError("the process has no pipes")
            self._process.stdin.write(key)
            self._process.stdin.flush()
            try:
                answer = pickle.load(self._process.stdout)
            except EOFError:
                raise ValueError(f"{request} could not be compiled") from None
            self._modules[key] = answer, Module(answer.ptx)
        return self._modules[key]


def serve() -> None:
    """What ``Compiler`` talks to."""
    output = sys.stdout.buffer
    # Compilers print.
    sys.stdout = sys.stderr
    while True:
        try:
            request: Request | StepRequest = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        output.write(pickle.dumps(request.compile(Path(sys.argv[1]))))
        output.flush()


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
        counts = run(*self.compiler.compile(request), grid, handed)
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
        # Codes without scales are calibrated.
        sides = ((constants[f"{side}S"], constants[f"{side}_SCALES"]) for side in ("KEY", "VALUE"))
        calibrated = any(pieces[0][2] == "codes" and scales < 0 for pieces, scales in sides)
        return decode_launch(constants["D"], constants["ROWS"], calibrated) if few else chunk_launch()
    # Tiles of few rows are fetched eight at a time.
    warps = SEAL_WARPS if function == "seal" else 4
    return Launch(block=0, warps=warps, stages=8 if function == "linear" else 1)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def run(answer: Answer, module: Module, grid: Sequence[int], arguments: Mapping[str, Any]) -> Counter[str]:
    """Instructions that warps issued; ``arguments`` are tensors and numbers."""
    values = [_handed(arguments[name]) for name in answer.arguments] + [None] * 2 * answer.scratch
    return module.run(answer.entry, grid, (_WARP * answer.warps,), values, answer.shared)


def _handed(value: Any) -> Any:
    """A tensor is a place in what was allocated for it."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return Inside(whole, value.data_ptr() - storage.data_ptr())


@dataclass
class StepKernels:
    """What launches a step's kernels in an engine, in place of the driver."""

    compiler: Compiler
    table: Path
    capability: int
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def launch(self, launch: launches.Launch, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        found = self.compiler.compile(StepRequest(self.table, launch, self.capability))
        counts = run(*found, grid, arguments)
        self.counts[launch.kernel] = self.counts.get(launch.kernel, Counter()) + counts
