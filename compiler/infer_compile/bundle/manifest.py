"""The manifest of a bundle: what it was made from and every file in it, by digest and size."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..runtime.errors import Exit, InferCompileError, Problem
from . import layout


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Frozen):
    sha256: str
    bytes: int


class Source(_Frozen):
    """The checkpoint: as the spec names it, its pinned revision (a commit of the hub), and what was read."""

    source: str
    revision: str | None
    sha256: str


class Engine(_Frozen):
    kind: str
    isa: str


class Serving(_Frozen):
    port: int


class Manifest(_Frozen):
    """``plan`` and ``program`` are the sha256 of the files of that name; ``toolchain`` names what made the
    bundle, with versions; ``digest`` is the sha256 of all the rest and so names the bundle as a whole.

    No time, host or path enters, so the same inputs give the same bytes.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    plan: str
    program: str
    source: Source
    engine: Engine
    serving: Serving
    toolchain: dict[str, str]
    files: dict[str, File]
    digest: str = ""

    def to_json(self) -> str:
        fields = self.model_dump(mode="json", by_alias=True)
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def content(self) -> str:
        """What ``digest`` has to be."""
        bare = self.model_copy(update={"digest": ""})
        return hashlib.sha256(bare.to_json().encode()).hexdigest()

    def sealed(self) -> Manifest:
        """The same with its digest filled in."""
        return self.model_copy(update={"digest": self.content})


def digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file(path: Path) -> File:
    return File(sha256=digest(path), bytes=path.stat().st_size)


def entries(root: Path) -> Iterator[str]:
    """Paths of everything below ``root`` that is not a plain folder, relative, with forward slashes, sorted.

    Links are entries too, never followed.
    """
    found = []
    for name, folders, files in os.walk(root):
        folder = Path(name)
        links = [inner for inner in folders if (folder / inner).is_symlink()]
        found += [(folder / inner).relative_to(root).as_posix() for inner in (*files, *links)]
    yield from sorted(found)


def list_files(root: Path, skip: frozenset[str] = frozenset()) -> dict[str, File]:
    """Every file below ``root`` but those in ``skip``."""
    return {path: file(root / path) for path in entries(root) if path not in skip}


def content_digest(files: Mapping[str, File]) -> str:
    """One digest of a set of files: of their paths and contents."""
    lines = [f"{files[path].sha256}  {path}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(bundle: Path) -> Manifest:
    """The manifest of ``bundle``. Raises IC401 where there is no bundle, IC402 where it is unreadable."""
    path = bundle / layout.MANIFEST
    if not path.is_file():
        unfinished = layout.partial(bundle).is_dir()
        raise InferCompileError(
            Problem(
                "IC401",
                "this is not a bundle",
                where=str(bundle),
                because="its build has not finished" if unfinished else f"it holds no {layout.MANIFEST}",
                fix="run the build again; it goes on where it stopped"
                if unfinished
                else "name a folder that `infer-compile build` made",
            ),
            Exit.USAGE,
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InferCompileError(
            Problem(
                "IC402",
                "the manifest cannot be read",
                where=str(path),
                because=f"{place}: {first['msg']}" if place else first["msg"],
                fix="build the bundle again, or use the version of infer-compile that made it",
            ),
            Exit.MISMATCH,
        ) from error
