"""Tests that need an NVIDIA GPU; README.md tells how to run them."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/engine", "tests/unit", "benchmarks")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="renew this file (catalog/cuda_kernels.yaml) if all pass")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With all tests passed every kernel ran, as it is now."""
    path = session.config.getoption("--record", default=None)
    worker = hasattr(session.config, "workerinput")
    if path is None or worker or exitstatus != pytest.ExitCode.OK:
        return
    import torch

    from gpu_record import EVERY, record

    major, minor = torch.cuda.get_device_capability()
    source = f"pytest tests/gpu on {torch.cuda.get_device_name()}, {date.today().isoformat()}"
    record(path, EVERY, f"{major}.{minor}", source)
