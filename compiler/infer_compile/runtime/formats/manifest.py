"""The manifest of a bundle: what it was made from and every file in it, by digest and size."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import Exit, InferCompileError, Problem

NAME = "bundle.json"
DRAFTED = "tokens.bin"
"""Beside an engine that drafts tokens of a vocabulary of its own: the model's tokens that these are, int32,
little-endian."""
_AGAIN = "build the bundle again, or copy it again from where it was built"


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
    """``kind`` is ``cpu`` or ``cuda``, ``isa`` the instruction set (``avx2``) or architecture (``sm_89``).
    Not ``verified``: its kernels were not run on such a device since they were last changed."""

    kind: str
    isa: str
    verified: bool = True


class Serving(_Frozen):
    """``shadow_fraction`` of the answers are checked against an exact cache; ``traces``: requests are traced,
    whatever the environment says."""

    port: int
    shadow_fraction: float = 0.0
    traces: bool = False


class Draft(_Frozen):
    """The model or the heads that draft: the checkpoint, and the sha256 of the program."""

    source: Source
    program: str


class Speculation(_Frozen):
    """At most ``tokens`` are drafted for a sequence in a step, one behind the other, of which the share
    ``acceptance`` is expected to be kept, and ``width`` choices for each, of which another is drawn in the
    share ``sibling_acceptance`` of those where the first is not; ``draft`` is None where no model drafts.
    Lookahead has a window of so many ``columns``."""

    method: Literal["ngram", "draft", "medusa", "eagle3", "lookahead"]
    tokens: int
    width: int = 1
    columns: int = 0
    acceptance: float
    sibling_acceptance: float = 0.0
    draft: Draft | None


class Asked(_Frozen):
    """What was to be built, before anything was measured or fitted: the sha256 of the program as planned, and
    of the texts that the build held its quality on and calibrated its cache on, if it did."""

    program: str
    evaluation: str | None = None
    calibration: str | None = None


class Manifest(_Frozen):
    """``plan`` is the sha256 of the plan as it was decided, without what the build measured, ``program`` that
    of the file of that name; ``toolchain`` names what made the bundle, with versions; ``digest`` is the
    sha256 of all the rest and so names the bundle as a whole.

    No time, host or path enters, so the same inputs give the same bytes.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    plan: str
    program: str
    asked: Asked
    source: Source
    engine: Engine
    serving: Serving
    speculation: Speculation | None = None
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


def read(bundle: Path) -> Manifest:
    """The manifest of the bundle in that folder.

    Raises InferCompileError: IC401 there is no bundle, IC402 the manifest is unreadable, IC421 it changed.
    """
    path = bundle / NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InferCompileError(_no_bundle(bundle, error), Exit.USAGE) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        because = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        fix = "build the bundle again, or use the version of infer-compile that made it"
        problem = Problem("IC402", "the manifest cannot be read", str(path), because, fix)
        raise InferCompileError(problem, Exit.MISMATCH) from error
    if manifest.digest != manifest.content:
        because = "its content differs from its own digest"
        problem = Problem("IC421", "this file has changed", str(path), because, _AGAIN)
        raise InferCompileError(problem, Exit.MISMATCH)
    return manifest


def digest(path: Path) -> str:
    """sha256 of a file, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(path: Path, file: File, *, hashed: bool = True) -> Problem | None:
    """What is wrong with the file that should be ``file``: IC422 it is missing, IC421 it is another.

    Unless ``hashed`` its size alone is looked at.
    """
    try:
        if path.is_symlink():
            because = "it is a link"
        elif not path.exists():
            return Problem("IC422", "this file of the bundle is missing", str(path), fix=_AGAIN)
        elif not path.is_file():
            because = "it is no longer a plain file"
        elif (size := path.stat().st_size) != file.bytes:
            because = f"it has {size} bytes, not {file.bytes}"
        elif hashed and (found := digest(path)) != file.sha256:
            because = f"its sha256 is {found}, not {file.sha256}"
        else:
            return None
    except OSError as error:
        because = f"it cannot be read: {error.strerror}"
    return Problem("IC421", "this file has changed", str(path), because, _AGAIN)


def _no_bundle(bundle: Path, error: OSError) -> Problem:
    whole = bundle.resolve()
    if whole.with_name(whole.name + ".partial").is_dir():
        because, fix = "its build has not finished", "run the build again; it goes on where it stopped"
    else:
        because, fix = f"{NAME}: {error.strerror}", "name a folder that `infer-compile build` made"
    return Problem("IC401", "this is not a bundle", str(bundle), because, fix)
