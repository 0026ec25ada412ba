"""Loading a spec: the file, its values, and the line of every key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .check import check
from .document import Document, read
from .spec import Spec


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A spec and where it came from; ``lines`` maps dotted keys to lines counted from 1."""

    spec: Spec
    path: Path
    lines: Mapping[str, int]

    @property
    def base(self) -> Path:
        """The folder that relative paths of the spec start from."""
        return self.path.resolve().parent

    def where(self, key: str) -> str:
        """``file:line`` of ``key``, or of the nearest key around it, for a Problem."""
        return Document(str(self.path), {}, self.lines).where(key)


def load(path: Path) -> LoadedSpec:
    """The spec in ``path``; raises InferCompileError (exit 2) with every problem of the file at once."""
    document = read(path)
    if "name" not in document.value:
        named = {**document.value, "name": name_from(path)}
        document = Document(document.path, named, document.lines, document.problems)
    return LoadedSpec(check(Spec, document), path, document.lines)


def name_from(path: Path) -> str:
    """The bundle's name when the spec has none: the file's, in the letters that a name may have."""
    name = re.sub(r"[^a-z0-9.-]+", "-", path.stem.lower()).strip("-.")[:63].strip("-.")
    return name or "deployment"
