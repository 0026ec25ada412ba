"""A bundle's folder, opened for running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import Exit, InferCompileError, Problem
from .formats.isa import flags, lacking
from .formats.manifest import DRAFTED, Manifest, difference, read
from .formats.program import Program
from .speculation.draft_model import DraftModel
from .speculation.eagle3 import Eagle3
from .speculation.lookahead import Lookahead
from .speculation.medusa import Medusa
from .speculation.ngram import Ngram
from .speculation.proposer import Proposer
from .speculation.speculator import Speculator
from .step import Engine

HASHED_BYTES = 64 * 2**20
"""Of larger files only the size is checked when a bundle is opened; ``infer-compile verify`` reads all."""
DRAFT = "draft/engine/"
NEEDED = ("engine/", "model/", DRAFT)
"""What running reads."""
REBUILD = "build the bundle again, or copy it again from where it was built"


@dataclass(frozen=True, slots=True)
class Opened:
    """A bundle's engine, and what drafts for it."""

    engine: Engine
    speculator: Speculator | None

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All that there are, the model's own first."""
        return (self.engine, *(self.speculator.engines if self.speculator is not None else ()))


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
        """Loads the engine; ``threads``, of a processor, None means one per core. Raises IC431 for an unknown
        kind, IC523 where this machine's processor cannot run it, and what opening it raises."""
        return self._engine(self.folder / "engine", threads)

    @contextmanager
    def opened(self, threads: int | None) -> Iterator[Opened]:
        """The engine and, where the plan has tokens drafted, what drafts them. Raises as ``engine``."""
        with ExitStack() as closing:
            engine = self.engine(threads)
            closing.callback(engine.close)
            wanted = self.manifest.speculation
            if wanted is None:
                yield Opened(engine, None)
                return
            proposer: Proposer = Ngram()
            window = 0
            if wanted.method == "lookahead":
                proposer = guesses = Lookahead(wanted.tokens + 1, wanted.columns)
                window = guesses.window
            if wanted.draft is not None:
                draft = self._engine(self.folder / DRAFT, threads)
                closing.callback(draft.close)
                proposer = self._drafter(wanted.method, draft)
            limits, beside = self.program.limits, wanted.sibling_acceptance
            speculator = Speculator(
                proposer, wanted.tokens, wanted.acceptance, limits, wanted.width, beside, window
            )
            yield Opened(engine, speculator)

    def _drafter(self, method: str, engine: Engine) -> Proposer:
        if method == "medusa":
            return Medusa(engine)
        if method == "eagle3":
            return Eagle3(engine, np.fromfile(self.folder / DRAFT / DRAFTED, "<i4"))
        return DraftModel(engine)

    def _engine(self, folder: Path, threads: int | None) -> Engine:
        # A bundle has the modules of its own kind of engine alone.
        match self.manifest.engine.kind:
            case "cpu":
                return self._on_processor(folder, threads)
            case "cuda":
                from .engines.gpu import open_gpu

                return open_gpu(folder)
            case kind:
                raise _problem(
                    "IC431", f"no engine of kind {kind!r} in this runtime", self.folder, "", REBUILD
                )

    def _on_processor(self, folder: Path, threads: int | None) -> Engine:
        from .engines.cpu import CpuEngine

        isa = self.manifest.engine.isa
        if missing := lacking(isa, flags()):
            because = f"it was compiled for {isa}, and the processor lacks {', '.join(missing)}"
            fix = "build the bundle for this machine, or run it on one of its target"
            raise _problem("IC523", "this processor cannot run the engine", self.folder, because, fix)
        return CpuEngine(folder, threads)


def open_bundle(folder: Path) -> Bundle:
    """Reads the manifest and the program and holds the files that running needs against the manifest.

    Raises IC401 (no bundle), IC402 (unreadable manifest), IC421 and IC422 (all files that changed or are
    missing) and IC430 (a program is not the manifest's).
    """
    manifest = read(folder)
    problems = [
        difference(folder / name, file, hashed=file.bytes <= HASHED_BYTES)
        for name, file in sorted(manifest.files.items())
        if name.startswith(NEEDED)
    ]
    if any(problems):
        raise InferCompileError([problem for problem in problems if problem], Exit.MISMATCH)
    if manifest.speculation is not None and manifest.speculation.draft is not None:
        _program(folder / DRAFT / "program.json", manifest.speculation.draft.program)
    return Bundle(folder, manifest, _program(folder / "engine" / "program.json", manifest.program))


def _program(path: Path, digest: str) -> Program:
    try:
        program = Program.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _problem("IC430", "the program cannot be read", path, str(error), REBUILD) from error
    if program.digest != digest:
        because = f"its digest is {program.digest}, and the manifest says {digest}"
        raise _problem("IC430", "the program is not the manifest's", path, because, REBUILD)
    return program


def _problem(code: str, message: str, where: Path, because: str, fix: str) -> InferCompileError:
    return InferCompileError(Problem(code, message, str(where), because, fix), Exit.MISMATCH)
