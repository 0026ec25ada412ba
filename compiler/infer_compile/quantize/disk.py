"""Writing to a disk that may be full: whole files or none, and what the system refuses as a coded error."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InferCompileError, Problem

_FULL = (errno.ENOSPC, errno.EDQUOT)


def save(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename it there. Raises OSError and leaves nothing then."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same for JSON, keys in the order given."""
    save(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def put(descriptor: int, content: bytes | np.ndarray, position: int) -> None:
    """Write ``content`` at ``position`` of an open file, in as many calls as it takes. Raises OSError."""
    array = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else np.ascontiguousarray(content)
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        count = os.pwrite(descriptor, rest, position)
        rest, position = rest[count:], position + count


def require_room(folder: Path, needed: int) -> None:
    """Raise IC140 where the disk of ``folder`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InferCompileError(
            Problem(
                "IC140",
                "the disk has no room for the weights",
                str(folder),
                f"{needed / 2**30:.2f} GiB are still to be written, {free / 2**30:.2f} GiB are free",
                "free space, or build on another disk with -o",
            )
        )


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Turn an OSError into IC140 (the disk is full) or IC141 (anything else that the system refuses)."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _FULL:
            fix = "free space and run the same command again: finished files are kept"
            raise InferCompileError(Problem("IC140", "the disk is full", str(folder), cause, fix)) from error
        where = str(error.filename or folder)
        raise InferCompileError(
            Problem("IC141", "the output folder cannot be written", where, cause, "check its permissions")
        ) from error
