"""Hold a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..runtime.errors import Exit, InferCompileError, Problem
from . import layout
from .manifest import Manifest, digest, entries, read

_REBUILD = "build the bundle again, or take it again from where it came"


def differences(bundle: Path, manifest: Manifest) -> list[Problem]:
    """Every file that is changed (IC421), missing (IC422) or added (IC423)."""
    problems = []
    if manifest.digest != manifest.content:
        problems.append(
            Problem(
                "IC421",
                "this file has changed",
                where=str(bundle / layout.MANIFEST),
                because="its content differs from its own digest",
                fix=_REBUILD,
            )
        )
    present = set(entries(bundle)) - layout.UNLISTED
    for path in sorted(present | manifest.files.keys()):
        place = bundle / path
        if path not in present:
            problems.append(
                Problem("IC422", "this file of the bundle is missing", where=str(place), fix=_REBUILD)
            )
            continue
        if path not in manifest.files:
            cached = "__pycache__" in PurePosixPath(path).parts
            problems.append(
                Problem(
                    "IC423",
                    "this file does not belong to the bundle",
                    where=str(place),
                    because="Python wrote it when it ran the bundle without -B" if cached else "",
                    fix="remove it",
                )
            )
            continue
        because = _change(place, manifest.files[path].bytes, manifest.files[path].sha256)
        if because:
            problems.append(
                Problem("IC421", "this file has changed", where=str(place), because=because, fix=_REBUILD)
            )
    return problems


def verify(bundle: Path) -> Manifest:
    """The manifest of a bundle whose files are what it says; raises every difference at once (exit 5)."""
    manifest = read(bundle)
    problems = differences(bundle, manifest)
    if problems:
        raise InferCompileError(problems, Exit.MISMATCH)
    return manifest


def _change(place: Path, size: int, sha256: str) -> str:
    """What differs about a file, or an empty string."""
    if place.is_symlink():
        return "it is a link"
    if not place.is_file():
        return "it is no longer a plain file"
    found = place.stat().st_size
    if found != size:
        return f"it has {found} bytes, the manifest says {size}"
    return "" if digest(place) == sha256 else "its content differs from the manifest's sha256"
