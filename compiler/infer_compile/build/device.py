"""What a bundle's engine is compiled for, and by what."""

from __future__ import annotations

from ..catalog.target import Cpu, Gpu
from ..codegen import gpu_cubins
from ..codegen.launches import step_table
from ..codegen.toolchain import find
from ..evaluate.machine import host
from ..runtime.formats.program import Program

Device = Cpu | Gpu


def kind(device: Device) -> str:
    """Of the engine, as the manifest has it."""
    return "cpu" if isinstance(device, Cpu) else "cuda"


def this_processor() -> Cpu:
    """Raises ValueError where no engine can be compiled for this machine."""
    architecture, isa = host()
    if architecture is None:
        raise ValueError("a machine that a bundle is measured on has an architecture that is known")
    return Cpu(architecture=architecture, isa=isa, cores=1)


def compilers(device: Device, program: Program, measured_by: Cpu | None) -> dict[str, str]:
    """Name to version of what compiles the engine of ``program``, and one that is measured in its place.

    Raises InferCompileError IC311 without a C++ compiler, IC313 without one of kernels for GPUs, IC315 for a
    program that these do not run.
    """
    processor = device if isinstance(device, Cpu) else measured_by
    versions = {} if processor is None else {"c++": find(processor.architecture).version}
    return versions if isinstance(device, Cpu) else versions | gpu_cubins.compilers(step_table(program))
