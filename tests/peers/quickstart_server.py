"""The quickstart's model, compiled and served as people do it, for programs of others to talk to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "specs" / "models" / "quickstart"
sys.path.insert(0, str(ROOT / "benchmarks"))
from serving_load import COMMAND, served  # noqa: E402


def tool(name: str, package: str) -> str:
    """A program of ``package``, or a skip that says what was not tested."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NOT TESTED: there is no {name} on the path; pip's package {package} has it")
    return path


def called(*command: object, folder: Path) -> str:
    """What a program printed that knows of no network but this machine's; what it says is the error."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@contextmanager
def serving(folder: Path, **pins: str) -> Iterator[str]:
    """The address of a server of the quickstart's spec with other ``pins``; at the end its log must hold no
    defect."""
    spec = yaml.safe_load((ROOT / "specs" / "quickstart.yaml").read_text())
    spec["model"]["source"] = str(MODEL)
    spec["pin"] |= pins
    path, bundle = folder / "spec.yaml", folder / "bundle"
    path.write_text(yaml.safe_dump(spec))
    called(*COMMAND, "build", path, "-o", bundle, folder=folder)
    with served(bundle, []) as server:
        yield server.url
        assert server.stop() == []
