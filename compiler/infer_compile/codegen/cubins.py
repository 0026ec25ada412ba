"""The cache's CUDA kernels compiled ahead of time: no GPU is needed, and no compiler where they run.

Triton's wheel brings the compiler and the assembler. A compiled kernel is kept in a folder under the digest
of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..catalog.cuda_kernels import Kernel, sources_digest
from ..runtime.errors import InferCompileError, Problem
from . import cuda_decode, cuda_skinny, nvrtc
from .cuda_constants import Constants

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities that get a cubin of their own. PTX of the first serves all later ones, compiled at
start."""
ARGUMENTS = {
    **dict.fromkeys(("keys", "values", "latents", "queries", "parts", "out"), "*bf16"),
    **dict.fromkeys(("factors",), "*fp16"),
    **dict.fromkeys(
        ("means", "steps", "turned", "sums", "logs", "signs", "table", "key_table", "value_table"), "*fp32"
    ),
    **dict.fromkeys(("slots",), "*i64"),
    **dict.fromkeys(("exact_pool", "packed_pool", "exact_table", "packed_table"), "*i32"),
    **dict.fromkeys(("tiles", "sequences", "positions", "sees", "jobs", "broken"), "*i32"),
    **dict.fromkeys(("row_stride", "query_stride", "out_stride", "table_stride", "window"), "i32"),
    **dict.fromkeys(("latent_stride", "key_stride", "part_stride"), "i32"),
    **dict.fromkeys(("exact_page", "exact_place", "packed_page", "packed_place"), "i32"),
    "scale": "fp32",
}
"""The types of the kernels' arguments, by name."""
ALIGNED = {
    **dict.fromkeys(("row_stride", "query_stride", "out_stride"), 16),
    **dict.fromkeys(("latent_stride", "key_stride", "part_stride"), 16),
    **dict.fromkeys(("exact_page", "exact_place", "packed_page", "packed_place"), 8),
}
"""What divides numbers: rows are whole heads; 16 tokens of vectors of an even number of bytes are 8 words.
Pointers are multiples of 16 bytes."""


BY_NVRTC = ("decode", "skinny")


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with constants; the rest are Triton's options (``cuda_constants.Launch``)."""

    kernel: Kernel
    constants: Constants
    warps: int = 4
    stages: int = 1
    registers: int = 255


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for one architecture. ``shared`` are its bytes of shared memory, ``stack`` the bytes of local
    memory of a thread: what registers were spilled to, if it is not 0."""

    capability: int
    entry: str
    registers: int
    shared: int
    stack: int
    cubin: bytes
    ptx: str


def digest(variant: Variant, capability: int) -> str:
    """sha256 of all that the compiled kernel depends on."""
    compiler = nvrtc.version() if variant.kernel in BY_NVRTC else version("triton")
    parts = {"sources": sources_digest(), "compiler": compiler, "capability": capability}
    text = json.dumps(parts | asdict(variant), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def compile_kernel(variant: Variant, capability: int, cache: Path) -> Compiled:
    """``variant`` for ``capability`` (86 stands for 8.6), from ``cache`` if it is there.

    Raises InferCompileError IC313 without triton, or under its interpreter, and IC314 if it fails.
    """
    need_compiler()
    place = cache / digest(variant, capability)
    facts = place / "kernel.json"
    if not facts.is_file():
        place.mkdir(parents=True, exist_ok=True)
        _compile(variant, capability, place)
    return Compiled(
        **json.loads(facts.read_text()),
        cubin=(place / "kernel.cubin").read_bytes(),
        ptx=(place / "kernel.ptx").read_text(),
    )


def _compile(variant: Variant, capability: int, place: Path) -> None:
    shared = 0
    if variant.kernel == "decode":
        entry = cuda_decode.ENTRY
        cubin, ptx = cuda_decode.compile_decode(variant.constants, "f32", capability)
    elif variant.kernel == "skinny":
        entry = cuda_skinny.ENTRY
        cubin, ptx = cuda_skinny.compile_skinny(variant.constants, variant.warps, capability)
    else:
        found = _by_triton(variant, capability)
        entry, shared = found.metadata.name, found.metadata.shared
        cubin, ptx = found.asm["cubin"], found.asm["ptx"]
    (place / "kernel.cubin").write_bytes(cubin)
    (place / "kernel.ptx").write_text(ptx)
    usage = _tool("cuobjdump", "-res-usage", str(place / "kernel.cubin"))
    facts = {
        "capability": capability,
        "entry": entry,
        "registers": int(_found(r"REG:(\d+)", usage)),
        "shared": shared + int(_found(r"SHARED:(\d+)", usage)),
        "stack": int(_found(r"STACK:(\d+)", usage)),
    }
    (place / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")


def _by_triton(variant: Variant, capability: int) -> Any:
    from triton.compiler import ASTSource

    from .cuda_sources import kernel

    function = getattr(kernel(variant.kernel), variant.kernel)
    names = function.arg_names
    source = ASTSource(
        function,
        {name: "constexpr" if name in variant.constants else ARGUMENTS[name] for name in names},
        constexprs=variant.constants,
        attrs={
            (index,): [["tt.divisibility", ALIGNED.get(name, 16)]]
            for index, name in enumerate(names)
            if name in ALIGNED or ARGUMENTS.get(name, "").startswith("*")
        },
    )
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "maxnreg": variant.registers,
    }
    return run_compiler(variant.kernel, source, capability, options)


def run_compiler(name: str, source: Any, capability: int, options: Mapping[str, int]) -> Any:
    """What Triton makes of ``source`` with its ``options``, without the places of its lines, which would be
    paths of this machine. Raises InferCompileError IC314 if it fails."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.errors import CompilationError

    given = {**options, "enable_fp_fusion": True}
    compilation = triton.knobs.compilation
    try:
        with compilation.scope():
            compilation.disable_line_info = True
            return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=given)
    except (CompilationError, RuntimeError) as error:
        raise InferCompileError(
            Problem(
                "IC314",
                f"the kernel {name} could not be compiled for compute capability {capability / 10}",
                because="\n    ".join(str(error).splitlines()[-5:]),
                fix="install the version of triton that docs/cuda-kernels.md names",
            )
        ) from error


def disassemble(compiled: Compiled, place: Path) -> str:
    """The instructions of a cubin, written to a file in ``place`` on the way."""
    file = place / "kernel.cubin"
    file.write_bytes(compiled.cubin)
    return _tool("nvdisasm", str(file))


def _tool(name: str, *arguments: str) -> str:
    """What a program of Triton's wheel says."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in what the assembler says")
    return match[1]


def need_compiler() -> None:
    """Raises InferCompileError IC313 without triton, or under its interpreter."""
    because, fix = "triton is not installed", "pip install triton"
    if find_spec("triton") is not None:
        import triton

        if not triton.knobs.runtime.interpret:
            return
        because, fix = "TRITON_INTERPRET is set: kernels are interpreted here", "unset TRITON_INTERPRET"
    raise InferCompileError(Problem("IC313", "GPU kernels cannot be compiled here", because=because, fix=fix))
