"""The signs of the cache's rotation: fixed, so that equal plans make equal bundles."""

from __future__ import annotations

import hashlib


def signs(head_dim: int) -> str:
    """One bit per dimension, hexadecimal: SHAKE-256 of the project's name and ``head_dim``."""
    return hashlib.shake_256(f"infer-compile {head_dim}".encode()).hexdigest(head_dim // 8)
