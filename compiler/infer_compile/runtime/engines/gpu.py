"""An engine opened on this machine's GPU. It needs PyTorch, which is imported where there is one."""

from __future__ import annotations

from pathlib import Path

from ..step import Engine
from .device import need_torch


def open_gpu(folder: Path) -> Engine:
    """The engine in ``folder``. Raises InferCompileError IC529 without PyTorch, and as ``CudaEngine``."""
    need_torch()
    from .cuda import CudaEngine

    return CudaEngine(folder)
