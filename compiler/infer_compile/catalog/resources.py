"""Where the files that are not Python lie: device files, templates, kernels and example specs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Name = Literal["targets", "templates", "kernels", "specs"]

_PACKAGE = Path(__file__).resolve().parents[1]
# Keyed by the folder at the repository root; pyproject.toml maps each to this place in the wheel.
_INSTALLED: dict[Name, Path] = {
    "targets": _PACKAGE / "targets",
    "templates": _PACKAGE / "templates",
    "kernels": _PACKAGE / "runtime" / "kernels",
    "specs": _PACKAGE / "specs",
}


def folder(name: Name) -> Path:
    """The folder ``name``: inside the installed package, or at the root of the checkout."""
    installed = _INSTALLED[name]
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name
