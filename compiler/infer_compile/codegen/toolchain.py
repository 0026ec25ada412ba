"""The C++ compiler: of the system, for its own processor or another, or of the ziglang wheel, for any."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..catalog.target import Architecture, Isa
from ..probe.cpu import host_architecture
from ..runtime.errors import InferCompileError, Problem

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
ISA_FLAGS: dict[Isa, tuple[str, ...]] = {
    "amx": ("-DIC_AVX512", "-DIC_AMX", *_AVX512, "-mamx-tile", "-mamx-int8"),
    "avx512": ("-DIC_AVX512", *_AVX512),
    "avx2": ("-DIC_AVX2", *_AVX2),
    "portable": (),
}
# Results must not depend on which products a compiler fuses; the kernels fuse where they mean to.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-pthread",
)
_TRIPLES: dict[Architecture, str] = {"x86-64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler for one architecture: its command, and what it says of its version."""

    command: tuple[str, ...]
    version: str
    zig: bool

    def compile(
        self, source: Path, output: Path, isa: Isa, *, shared: bool = True, extra: tuple[str, ...] = ()
    ) -> None:
        """Compile ``source``, which includes files beside it, to ``output`` (a library, or a program).

        The compiler runs in the source's folder on relative names, so that no path of the machine enters the
        output. Raises InferCompileError IC312 with the first lines of what the compiler says.
        """
        link = ("-shared",) if shared else ()
        # The C++ runtime goes into the library: a slim image need not have one, nor the same version.
        static = () if self.zig else ("-static-libstdc++", "-static-libgcc")
        sanitize = ("-fno-sanitize=all",) if self.zig else ()
        aside = output.with_name(output.name + ".partial")
        command = [*self.command, *_FLAGS, *ISA_FLAGS[isa], *sanitize, *link, *static, "-s", *extra]
        command += ["-o", str(aside.resolve()), source.name]
        # A compiler that is interrupted leaves its temporary files behind.
        with tempfile.TemporaryDirectory(dir=output.parent, ignore_cleanup_errors=True) as scratch:
            done = subprocess.run(
                command,
                cwd=source.parent,
                env={**os.environ, "TMPDIR": str(Path(scratch).resolve())},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line][:5]
            raise InferCompileError(
                Problem(
                    "IC312",
                    f"{self.command[0]} could not compile {source.name}",
                    because="\n    ".join(said or done.stderr.splitlines()[:5]),
                    fix="infer-compile doctor shows which compilers are known to work",
                )
            )
        aside.replace(output)


def find(architecture: Architecture, *, static: bool = False) -> Toolchain:
    """g++ or clang++ of the system for its own architecture, its cross compiler for another, else zig.

    ``static`` asks for programs that run without any library of the target, which a cross compiler makes, and
    zig with musl. Raises InferCompileError IC311 if there is none.
    """
    if architecture == host_architecture() and not static:
        for name in ("g++", "clang++"):
            if shutil.which(name):
                return Toolchain((name,), _version(name), zig=False)
    if architecture != host_architecture() and shutil.which(cross := f"{_TRIPLES[architecture]}-g++"):
        return Toolchain((cross,), _version(cross), zig=False)
    if importlib.util.find_spec("ziglang") is not None:
        triple = _TRIPLES[architecture]
        if static:
            triple = triple.replace("gnu", "musl")
        zig = (sys.executable, "-m", "ziglang", "c++", "-target", triple)
        return Toolchain(zig, _version(*zig), zig=True)
    native = architecture == host_architecture()
    raise InferCompileError(
        Problem(
            "IC311",
            f"no C++ compiler for {architecture}",
            because="neither g++ nor clang++ is on PATH"
            if native
            else "it is not this machine's architecture",
            fix="pip install ziglang (a compiler in a wheel, about 400 MB)"
            + (", or install g++" if native else ""),
        )
    )


def _version(*command: str) -> str:
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].strip() if said else "unknown"
