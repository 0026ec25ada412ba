"""The facts of this folder that lie in YAML files."""

from __future__ import annotations

from pathlib import Path

import yaml


def read(name: str) -> object:
    """The content of the file ``name`` of the catalog."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    # libyaml, where PyYAML was built with it, is ten times faster.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
