"""Where things lie in a bundle, and the names it has on disk while it comes to stand.

``NAME`` is whole or absent. ``NAME.partial`` is being built. ``NAME.previous`` is the old bundle during the
two renames of a replacement; ``settle`` puts right what a kill between them left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.manifest import NAME

MANIFEST = NAME
MEASURED = "measured.json"
SPEC = "spec.yaml"
PLAN = "plan.json"
README = "README.md"
MODEL = "model"
ENGINE = "engine"
DRAFT = "draft"
RUNTIME = "runtime"
DEPLOY = "deploy"
PROGRAM = "engine/program.json"

UNLISTED = frozenset({MANIFEST, MEASURED})
"""Files of a bundle that its manifest does not list: itself, and what was measured."""


def partial(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".partial")


def previous(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".previous")


def is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


@contextmanager
def claimed(bundle: Path) -> Iterator[Path]:
    """``NAME.partial``, created and locked against a second build for as long as the context lasts.

    The kernel drops the lock when the process ends, however it ends. Raises IC411 where another build has it.
    """
    folder = partial(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InferCompileError(
                Problem(
                    "IC411",
                    "another build is writing this bundle",
                    where=str(folder),
                    because="the folder is locked by a running process",
                    fix="wait for it to end, or build elsewhere with -o DIR",
                )
            ) from error
        yield folder
    finally:
        os.close(handle)


def settle(bundle: Path) -> None:
    """Put right what a kill in ``stand`` left: a bundle moved aside comes back, one that was replaced goes.

    Raises IC412 where ``NAME.previous`` is not a bundle, for it is not ours to remove.
    """
    old = previous(bundle)
    if not old.exists():
        return
    if not is_bundle(old):
        raise InferCompileError(
            Problem(
                "IC412",
                "this folder stands where an old bundle is moved aside to",
                where=str(old),
                because="it is not a bundle, so it is left alone",
                fix="rename it, or build elsewhere with -o DIR",
            )
        )
    if bundle.exists():
        shutil.rmtree(old)
    else:
        old.rename(bundle)


def stand(bundle: Path) -> None:
    """Rename the finished ``NAME.partial`` to ``NAME``; an old NAME stands aside until the new one stands."""
    old = previous(bundle)
    if bundle.exists():
        bundle.rename(old)
    partial(bundle).rename(bundle)
    if old.exists():
        shutil.rmtree(old)
