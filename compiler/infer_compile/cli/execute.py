"""Becoming the program inside a bundle: what ships is what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ..bundle import layout
from ..runtime.formats.manifest import read


def execute(bundle: Path, command: str, options: Mapping[str, str | bool | None], *words: str) -> NoReturn:
    """Replace this process by ``python -m runtime COMMAND`` of ``bundle``.

    It gets the signals and gives the exit status itself, and checks the ``options``, of which those that were
    given are passed on. Raises IC401 or IC402 for what is not a bundle.
    """
    read(bundle)
    folder = str(bundle.resolve())
    passed = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            passed.append(option)
        elif isinstance(value, str):
            passed.append(f"{option}={value}")
    # -P: a folder `runtime` in the current folder is not ours. -B: nothing is written into the bundle.
    program = [sys.executable, "-P", "-B", "-m", layout.RUNTIME, command, "--bundle", folder, *passed]
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable,
        [*program, "--", *words] if words else program,
        os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
