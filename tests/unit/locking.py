"""The quickstart's spec, for a device whose figures do not depend on where the tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planning
import yaml

from infer_compile.catalog.resources import folder
from infer_compile.probe.machine import to_yaml

SPEC = "chat.yaml"


def write_spec(name: str = SPEC, **workload: Any) -> Path:
    """Write the spec into the current folder, with its model and its device beside it."""
    fields = yaml.safe_load((folder("specs") / "quickstart.yaml").read_text())
    models = Path("models")
    if not models.exists():
        models.symlink_to(folder("specs") / "models")
    Path("machine.yaml").write_text(to_yaml(planning.cpu()))
    fields["target"] = "./machine.yaml"
    fields["workload"] |= workload
    path = Path(name)
    path.write_text(yaml.safe_dump(fields))
    return path
