"""Which modules of ``runtime/`` a bundle takes along: those that its entry reaches, copied as they are."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..runtime import errors

ENTRY = "__main__.py"
ENGINES = {"cpu": "engines/cpu.py", "cuda": "engines/gpu.py"}
"""By the kind of the bundle's engine; what only another one imports does not ship."""


def runtime_folder() -> Path:
    return Path(errors.__file__).parent


def modules(root: Path, kind: str) -> list[str]:
    """Paths below ``root`` of every module that the entry imports, at once or later, and packages; of the
    engines that of ``kind`` alone."""
    stays = {path for other, path in ENGINES.items() if other != kind}
    reached: set[str] = set()
    waiting = [ENTRY]
    while waiting:
        path = waiting.pop()
        if path in reached | stays:
            continue
        reached.add(path)
        waiting += [str(Path(parent, "__init__.py")) for parent in Path(path).parents]
        waiting += imported(root, path)
    return sorted(reached)


def imported(root: Path, path: str) -> Iterator[str]:
    """Files below ``root`` that the module at ``path`` imports relatively."""
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        package = (root / path).parents[node.level - 1]
        base = package.joinpath(*node.module.split(".")) if node.module else package
        for candidate in (base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)):
            if candidate.is_file():
                yield candidate.relative_to(root).as_posix()
        # A package may be imported whole, or give one of the names its own module defines.
        for folder in (base, *(base / alias.name for alias in node.names)):
            if (folder / "__init__.py").is_file():
                yield (folder / "__init__.py").relative_to(root).as_posix()


def copy(destination: Path, kind: str) -> None:
    """Copy the modules to ``destination``: their bytes, not their dates or modes."""
    root = runtime_folder()
    for path in modules(root, kind):
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, destination / path)
