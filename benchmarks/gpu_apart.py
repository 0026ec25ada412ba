"""Measurements in processes of their own: one that fails or hangs takes no other along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SAID = 6
"""Last lines of what a process said that are told where it failed."""


def apart(script: str, words: Sequence[object], out: Path, seconds: float) -> tuple[dict[str, Any], str]:
    """What ``script`` wrote to ``out``, which it is told by ``--json``, and why there is not all of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    command = [sys.executable, script, *map(str, words), "--json", str(out)]
    why = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-SAID:]
            why = " | ".join(last) or f"ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"took longer than {seconds:.0f} s"
    return (json.loads(out.read_text()) if out.exists() else {}), why
