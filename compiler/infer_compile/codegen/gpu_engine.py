"""Program to the folder ``engine/`` of a GPU bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..catalog.resources import folder
from ..runtime.formats.launches import StepTable
from ..runtime.formats.program import Program
from .cuda_constants import Tiling
from .gpu_cubins import compile_step
from .launches import step_table
from .repack import TABLES
from .tiles import write_weights

PROGRAM, STEP, WEIGHTS, KERNELS = "program.json", "step.json", "weights.bin", "kernels"
CUBINS = "sm_{}"


def emit(
    program: Program,
    capability: int | None,
    model_dir: Path,
    engine_dir: Path,
    tilings: tuple[Tiling, ...] | None = None,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> StepTable:
    """Write program.json, step.json, weights.bin, the source of the kernels and, for compute capability
    ``capability`` (89 is 8.9) unless it is None, the compiled kernels into ``engine_dir``;
    ``advance`` is told how many of these are there, and how many there will be.

    ``model_dir`` holds the interchange weights, ``engine_dir`` the tables of a calibrated cache. Raises
    InferCompileError: IC315 for what the kernels do not run, IC313 and IC314 where they cannot be compiled,
    and what reading the weights raises.
    """
    table = step_table(program, tilings)
    emit_step(program, table, capability, engine_dir, advance)
    write_weights(program, model_dir, engine_dir / TABLES, engine_dir / WEIGHTS)
    return table


def emit_step(
    program: Program,
    table: StepTable,
    capability: int | None,
    engine_dir: Path,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write all but the weights; raises IC313 and IC314 where the kernels of ``table`` cannot be compiled."""
    (engine_dir / KERNELS).mkdir(parents=True, exist_ok=True)
    (engine_dir / PROGRAM).write_text(program.to_json())
    (engine_dir / STEP).write_text(table.to_json())
    for path in sorted((folder("kernels") / "cuda").glob("*.py")):
        (engine_dir / KERNELS / path.name).write_text(path.read_text())
    if capability is not None:
        compile_step(table, capability, engine_dir / CUBINS.format(capability), advance)
