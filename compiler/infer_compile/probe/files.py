"""Files written aside and renamed: there whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..runtime.errors import InferCompileError, Problem


def write_aside(path: Path, text: str) -> None:
    """Write ``text`` to ``path``. Raises InferCompileError IC230 where that is not possible."""
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp makes files for their owner alone.
            Path(aside).chmod(0o666 & ~_umask())
            Path(aside).replace(path)
        except OSError:
            Path(aside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InferCompileError(
            Problem(
                "IC230",
                f"cannot write {path}",
                because=error.strerror or str(error),
                fix="choose another place",
            )
        ) from error


def _umask() -> int:
    """The process's mask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
