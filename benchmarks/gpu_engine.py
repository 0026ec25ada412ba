"""GPU engines of random weights, made where they compute: no file of weights is written or read.

Kernels are compiled once into a folder that is named for all they depend on; a folder that was prepared where
there is no GPU serves on a machine with one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from infer_compile.catalog.cuda_kernels import sources_digest
from infer_compile.codegen.gpu_engine import CUBINS, emit_step
from infer_compile.codegen.tiles import FREQUENCIES, SIGNS, rotations, scales
from infer_compile.runtime.engines.cuda import TORCH, CudaEngine, Parts
from infer_compile.runtime.engines.kernels import INDEX
from infer_compile.runtime.formats.launches import Cubins, Part, StepTable
from infer_compile.runtime.formats.program import Program, Tensor
from infer_compile.runtime.kv.rotation import unpack_signs
from synthetic_cache import drawn

SPREAD = 0.02
"""Of weights, as models are initialized with."""
Tables = dict[str, np.ndarray]


def folder_of(work: Path, name: str) -> Path:
    """Where the kernels of ``name`` lie as they are now."""
    return work / f"{name}-{sources_digest()[:12]}"


def prepare(place: Path, program: Program, table: StepTable, capability: int | None) -> None:
    """Write the step of ``program`` to ``place``, and its kernels compiled for ``capability`` (None: left to
    be compiled from their source when they are first launched), unless they lie there."""
    kept = capability is not None and compiled(place, table, capability)
    emit_step(program, table, None if kept else capability, place)


def compiled(place: Path, table: StepTable, capability: int) -> bool:
    """Whether all kernels of ``table`` lie there for that architecture."""
    index = place / CUBINS.format(capability) / INDEX
    if not index.is_file():
        return False
    held = Cubins.model_validate_json(index.read_text(encoding="utf-8")).kernels
    return all(table.variant(launch) in held for launch in table.launches())


def opened(
    place: Path, program: Program, table: StepTable, device: str, ahead: bool, tables: Tables | None = None
) -> CudaEngine:
    """The engine of ``program``; its kernels compiled ``ahead`` of time, or from their source at start."""
    place = laid(place, program, table, device, ahead)
    return CudaEngine(place, device, random_parts(program, device, tables or tables_of(program)))


def laid(place: Path, program: Program, table: StepTable, device: str, ahead: bool) -> Path:
    """Where all of that engine lies but its weights."""
    capability = None
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(torch.device(device))
        capability = 10 * major + minor
    place = place if ahead else place.with_name(place.name + "-source")
    prepare(place, program, table, capability if ahead else None)
    return place


def tables_of(program: Program) -> Tables:
    """Of the calibrated planes."""
    rng = np.random.default_rng(0)
    return {table.name: drawn(rng, table) for table in program.cache.tables()}


def random_parts(program: Program, device: str, tables: Tables) -> Parts:
    """Weights as models are initialized with, codes of every value; rotations and signs as they are."""
    known: Tables = dict(tables)
    for index, rotary in enumerate(rotations(program)):
        known[FREQUENCIES.format(index)] = np.array(rotary.frequencies, np.float64)
    if program.cache.compressed:
        known[SIGNS] = unpack_signs(program.cache.signs, program.cache.head_dim)
    vectors = {tensor.name for tensor in program.tensors if tensor.rows == 1}
    steps = {scales(tensor.name): step_of(tensor) for tensor in program.tensors if tensor.format.scaled}
    torch.manual_seed(0)

    def part(name: str, wanted: Part) -> torch.Tensor:
        kind = TORCH[wanted.dtype]
        if name in known:
            return torch.from_numpy(known[name]).to(device, kind).reshape(wanted.shape)
        if wanted.dtype == "int8":
            return torch.randint(-128, 128, wanted.shape, dtype=kind, device=device)
        if wanted.dtype == "e4m3":
            return torch.empty(wanted.shape, dtype=torch.bfloat16, device=device).normal_().to(kind)
        if name in steps:
            return torch.full(wanted.shape, steps[name], dtype=kind, device=device)
        if name in vectors:
            return torch.ones(wanted.shape, dtype=kind, device=device)
        if wanted.dtype == "f32":
            return torch.zeros(wanted.shape, dtype=kind, device=device)
        return torch.empty(wanted.shape, dtype=kind, device=device).normal_(0, SPREAD)

    return part


def step_of(tensor: Tensor) -> float:
    """What codes, or numbers of e4m3 around one, are multiplied by."""
    return SPREAD if tensor.format.type == "float" else SPREAD / (1 << tensor.format.bits - 2)
