"""A bundle's folder, opened for running."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .engines.cpu import CpuEngine
from .errors import Exit, InferCompileError, Problem
from .formats.program import Program
from .step import Engine

HASHED_BYTES = 64 * 2**20
"""Of larger files only the size is checked when a bundle is opened; ``infer-compile verify`` reads all."""
NEEDED = ("engine/", "model/")
"""What running reads."""
REBUILD = "build the bundle again, or copy it again from where it was built"


class File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """bundle.json, as far as running needs it."""

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(alias="schema")
    name: str
    plan: str
    program: str
    engine: dict[str, Any]
    serving: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, File]
    digest: str
    """Names the bundle as a whole."""


@dataclass(frozen=True, slots=True)
class Bundle:
    folder: Path
    manifest: Manifest
    program: Program

    @property
    def fingerprint(self) -> str:
        """The first digits of the bundle's digest."""
        return self.manifest.digest[:12]

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    def engine(self, threads: int | None) -> Engine:
        """Loads the engine; ``threads`` None means one per core. Raises IC431 for an unknown kind."""
        kind = self.manifest.engine.get("kind")
        if kind != "cpu":
            raise _problem("IC431", f"no engine of kind {kind!r} in this runtime", self.folder, "", REBUILD)
        return CpuEngine(self.folder / "engine", threads)


def open_bundle(folder: Path) -> Bundle:
    """Reads the manifest and the program and holds the files that running needs against the manifest.

    Raises IC401 (no bundle), IC402 (unreadable manifest), IC421 and IC422 (all files that changed or are
    missing) and IC430 (the program is not the manifest's).
    """
    path = folder / "bundle.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        because, fix = f"bundle.json: {error.strerror}", "name a folder that `build` made"
        problem = Problem("IC401", "this is not a bundle", str(folder), because, fix)
        raise InferCompileError(problem, Exit.USAGE) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        because = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise _problem("IC402", "the manifest cannot be read", path, because, REBUILD) from error
    needed = {name: file for name, file in manifest.files.items() if name.startswith(NEEDED)}
    problems = [_problem_of(folder / name, file) for name, file in sorted(needed.items())]
    if any(problems):
        raise InferCompileError([problem for problem in problems if problem], Exit.MISMATCH)
    return Bundle(folder, manifest, _program(folder / "engine" / "program.json", manifest))


def _problem_of(path: Path, file: File) -> Problem | None:
    """What is wrong with the file that should be ``file``."""
    try:
        size = path.stat().st_size
        digest = None
        if size == file.bytes <= HASHED_BYTES:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return Problem("IC422", "this file of the bundle is missing", str(path), fix=REBUILD)
    except OSError as error:
        return Problem("IC421", "this file cannot be read", str(path), error.strerror or str(error), REBUILD)
    if size != file.bytes:
        because = f"it has {size} bytes, not {file.bytes}"
        return Problem("IC421", "this file has changed", str(path), because, REBUILD)
    if digest is not None and digest != file.sha256:
        return Problem("IC421", "this file has changed", str(path), f"its sha256 is {digest}", REBUILD)
    return None


def _program(path: Path, manifest: Manifest) -> Program:
    try:
        program = Program.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _problem("IC430", "the program cannot be read", path, str(error), REBUILD) from error
    if program.digest != manifest.program:
        because = f"its digest is {program.digest}, and the manifest says {manifest.program}"
        raise _problem("IC430", "the program is not the manifest's", path, because, REBUILD)
    return program


def _problem(code: str, message: str, where: Path, because: str, fix: str) -> InferCompileError:
    return InferCompileError(Problem(code, message, str(where), because, fix), Exit.MISMATCH)
