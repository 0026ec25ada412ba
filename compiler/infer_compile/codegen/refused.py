"""Programs that the GPU kernels do not run."""

from __future__ import annotations

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.program import ExpertLinear, Program
from .tiles import ROWS

E4M3_SIZES = 16
"""Both sizes of a matrix of e4m3 numbers are multiples of it (torch._scaled_mm)."""


def refuse(program: Program) -> None:
    """Raises InferCompileError IC315 with all that there is no kernel for."""
    problems = []
    if program.cache.page_tokens % 16:
        problems.append(f"pages of {program.cache.page_tokens} tokens, which are no multiple of 16")
    if isinstance(program.cache, LatentLayout):
        if program.limits.checked_tokens:
            problems.append("checks of answers against an exact cache of latent attention")
    elif program.cache.head_dim % 32:
        problems.append(f"heads of {program.cache.head_dim} elements")
    for tensor in program.tensors:
        if tensor.format.name == "fp8" and (tensor.rows % E4M3_SIZES or tensor.cols % E4M3_SIZES):
            problems.append(
                f"{tensor.name} in fp8: {tensor.rows} x {tensor.cols}, no multiples of {E4M3_SIZES}"
            )
    rounded = {tensor.name: tensor.format.scaled for tensor in program.tensors}
    for operation in program.operations:
        if isinstance(operation, ExpertLinear) and rounded[operation.weight] and operation.rows % ROWS:
            problems.append(f"{operation.weight}: experts of {operation.rows} rows, no multiple of {ROWS}")
    if problems:
        fix = "choose another engine"
        raise InferCompileError(
            [
                Problem("IC315", f"the GPU kernels do not run {text}", program.model, fix=fix)
                for text in problems
            ]
        )
