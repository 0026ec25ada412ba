"""Hold a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.manifest import Manifest, difference, read
from . import layout
from .files import entries


def differences(bundle: Path, manifest: Manifest) -> list[Problem]:
    """Every file that is changed (IC421), missing (IC422) or added (IC423), in the order of their paths."""
    present = set(entries(bundle)) - layout.UNLISTED
    found = {path: difference(bundle / path, file) for path, file in manifest.files.items()}
    found |= {path: _added(bundle, path) for path in present - manifest.files.keys()}
    return [problem for _, problem in sorted(found.items()) if problem]


def verify(bundle: Path) -> Manifest:
    """The manifest of a bundle whose files are what it says; raises every difference at once (exit 5)."""
    manifest = read(bundle)
    problems = differences(bundle, manifest)
    if problems:
        raise InferCompileError(problems, Exit.MISMATCH)
    return manifest


def _added(bundle: Path, path: str) -> Problem:
    cached = "__pycache__" in PurePosixPath(path).parts
    return Problem(
        "IC423",
        "this file does not belong to the bundle",
        where=str(bundle / path),
        because="Python wrote it when it ran the bundle without -B" if cached else "",
        fix="remove it",
    )
