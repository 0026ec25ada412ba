"""kernels/cuda/skinny.cu for a launch of ``linear``: which launches it serves, and the constants that it is
compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cuda_sources import compile_cuda

ENTRY = "skinny"
ARGUMENTS = ("input", "scales", "weight", "weight_scales", "bias", "output", "rows")
"""As the kernel takes them: those of ``linear``."""
BLOCK = 16
"""Rows of weights of a block, and the most of inputs."""
GROUPS = (32, 64, 128)
PASSED = 4096
"""Bytes of weights that a warp passes in a round of its loop."""
RESIDENT = 16
"""Warps that a multiprocessor is to hold at least: a lane has 128 registers."""


def serves(constants: Mapping[str, Any]) -> bool:
    """Whether the kernel does what ``linear`` does with ``constants``."""
    cut = constants["BLOCK_M"] == BLOCK and constants["BLOCK_N"] == BLOCK
    return cut and constants["ROUNDED"] and constants["GROUP"] in GROUPS


def compile_skinny(constants: Mapping[str, Any], warps: int, capability: int) -> tuple[bytes, str]:
    """The cubin for compute capability ``capability`` (89 is 8.9), and its PTX, with blocks of ``warps``.
    Raises InferCompileError IC313 and IC314."""
    return compile_cuda("skinny.cu", header(constants, warps), capability)


def header(constants: Mapping[str, Any], warps: int) -> str:
    """constants.h."""
    numbers = {name: constants[name] for name in ("ROWS", "COLS", "BITS", "GROUP", "BIAS", "ADD")}
    numbers |= {"WARPS": warps, "RESIDENT": RESIDENT}
    return "".join(f"constexpr int {name} = {int(number)};\n" for name, number in numbers.items())
