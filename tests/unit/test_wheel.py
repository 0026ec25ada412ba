"""The wheel: what is not Python ships in it, and it works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).resolve().parents[2]
MAPPED = {
    "kernels": "infer_compile/runtime/kernels",
    "specs": "infer_compile/specs",
    "targets": "infer_compile/targets",
    "templates": "infer_compile/templates",
    "compiler/infer_compile": "infer_compile",
}
OUTSIDE = ("README.md", "LICENSE", "pyproject.toml")


def project_files() -> list[str]:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the project's files, unpacked."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in project_files():
        if name.startswith(tuple(MAPPED)) or name in OUTSIDE:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            # Weights are big, and the build only copies them.
            if name.endswith(".safetensors"):
                (source / name).touch()
            else:
                shutil.copy(ROOT / name, source / name)
    for name in OUTSIDE:
        (source / name).touch()
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(built)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site")
    return built / "site"


def test_every_file_ships(installed: Path) -> None:
    expected = set()
    for name in project_files():
        for place, mapped in MAPPED.items():
            if name.startswith(f"{place}/"):
                expected.add(mapped + name.removeprefix(place))
    found = {
        path.relative_to(installed).as_posix()
        for path in (installed / "infer_compile").rglob("*")
        if path.is_file()
    }
    assert len(expected) > 200
    assert found == expected


def test_it_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import infer_compile; from infer_compile.catalog.resources import folder;"
        "print(infer_compile.__file__);"
        "[print(folder(name)) for name in ('targets', 'templates', 'kernels', 'specs')];"
        "from infer_compile.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "models", "llama-3.2-1b"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert all(line.startswith(str(installed)) for line in lines[:5])
    assert any(line.startswith("hub ") for line in lines[5:])
