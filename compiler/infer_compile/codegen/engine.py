"""Program to a compiled engine: the folder ``engine/`` of a CPU bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.formats.program import Program
from .generate import SOURCE, generate
from .repack import repack
from .toolchain import Architecture, Isa, find

LIBRARY = "libengine.so"
WEIGHTS = "weights.bin"
PROGRAM = "program.json"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was compiled, for the manifest."""

    isa: Isa
    architecture: Architecture
    compiler: str
    kind: str = "cpu"


def emit(
    program: Program, architecture: Architecture, isa: Isa, model_dir: Path, engine_dir: Path
) -> EngineInfo:
    """Write program.json, the generated source, weights.bin and libengine.so into ``engine_dir``.

    ``model_dir`` holds the interchange weights. Raises InferCompileError: IC310 for a shape without a kernel,
    IC311 without a compiler, IC312 if it fails, and what reading the weights raises.
    """
    sources = generate(program)
    toolchain = find(architecture)
    (engine_dir / "kernels").mkdir(parents=True, exist_ok=True)
    (engine_dir / PROGRAM).write_text(program.to_json())
    for name, text in sources.items():
        (engine_dir / name).write_text(text)
    repack(program, model_dir, engine_dir / WEIGHTS)
    toolchain.compile(engine_dir / SOURCE, engine_dir / LIBRARY, isa)
    return EngineInfo(isa, architecture, toolchain.version)
