"""What a bundle's runtime needs from the package index, pinned to the versions installed here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution

from ..runtime.errors import InferCompileError, Problem
from .ship import runtime_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def direct() -> list[str]:
    """Names of what the modules of ``runtime/`` import: no PyTorch, nothing of the compiler."""
    lines = (runtime_folder() / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [_name(line) for line in lines if line]


def pinned(names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, version) of ``names`` and of everything they need here, sorted.

    Raises IC341 for one of ``names`` that is not installed. What they need only on other systems is not
    installed either, and is left out.
    """
    versions: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = _normal(waiting.pop())
        if name in versions:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            if name not in names:
                continue
            raise InferCompileError(
                Problem(
                    "IC341",
                    f'the package "{name}" is not installed',
                    because="the bundle's server needs it, and is pinned to the version installed here",
                    fix=f"python -m pip install {name}",
                )
            ) from error
        versions[name] = found.version
        waiting += [_name(line) for line in found.requires or () if "extra ==" not in line]
    return sorted(versions.items())


def _name(requirement: str) -> str:
    match = _NAME.match(requirement)
    return match[0] if match else requirement


def _normal(name: str) -> str:
    """The name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
