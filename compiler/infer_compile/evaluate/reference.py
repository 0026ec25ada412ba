"""What a bundle is held against: the same model in bf16 with a bf16 cache, compiled for this machine.

It is another native engine, made from the unquantized checkpoint: no PyTorch is needed.
"""

from __future__ import annotations

from pathlib import Path

from ..catalog.source import ModelSource
from ..catalog.target import Architecture, Isa
from ..codegen.engine import emit
from ..codegen.generate import lacking
from ..graph.build import build
from ..graph.graph import Graph
from ..lower.assemble import assemble
from ..quantize.checkpoint import Checkpoint
from ..quantize.write import write
from ..runtime.engines.cpu import CpuEngine
from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.kv import CacheLayout, LevelName, uniform
from ..runtime.formats.program import Limits, Program
from ..runtime.formats.weights import BF16, WeightFormat
from ..runtime.step import Engine

EXACT: LevelName = "bf16"
SEQUENCES = 4
"""Most contexts that the reference reads at a time: few fill a step, and their cache is not small."""
ENGINE = "engine"
_MODEL = "model"
_STORED = "BF16"


def require_measurable(program: Program, where: str) -> None:
    """Raises IC359 for what no processor runs: neither a reference nor, for a GPU, an engine in its place."""
    lacks = lacking(program)
    if lacks:
        raise InferCompileError(
            Problem(
                "IC359",
                "what this model loses cannot be measured here",
                where,
                f"that takes an engine for this machine's processor: {lacks[0].message}",
                "leave out max_loss_percent; eval: --reference, a bundle of the same model in bf16",
            )
        )


def exact_program(
    graph: Graph, limits: Limits, page_tokens: int, context: int, weights: WeightFormat = BF16
) -> Program:
    """``graph`` with a bf16 cache, and unquantized unless ``weights`` says otherwise, for contexts of
    ``context`` tokens in steps as ``limits`` has them."""
    layout = CacheLayout(
        level=EXACT,
        page_tokens=page_tokens,
        sink_pages=0,
        recent_pages=0,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=uniform(EXACT, graph.cache_layers, graph.head_dim),
    )
    return assemble(
        graph,
        weights,
        layout,
        Limits(
            max_context=context,
            max_sequences=limits.max_sequences,
            max_batch_tokens=limits.max_batch_tokens,
            exact_pages=min(limits.max_sequences, SEQUENCES) * layout.pages(context),
            packed_pages=0,
        ),
    )


def write_reference(
    model: ModelSource, program: Program, architecture: Architecture, isa: Isa, out: Path
) -> None:
    """Compile ``program`` into ``out`` from ``model``, whose weights are here.

    Raises InferCompileError as writing weights and compiling do.
    """
    if model.folder is None:
        raise ValueError("a reference is compiled from weights that have been fetched")
    checkpoint = Checkpoint.open(model.folder)
    names = {name for tensor in program.tensors for name in tensor.sources}
    stored = model.folder
    if any(checkpoint.dtype(name) != _STORED for name in names & set(checkpoint.names)):
        stored = out / _MODEL
        write(checkpoint, program, stored, config=model.config)
    (out / ENGINE).mkdir(parents=True, exist_ok=True)
    emit(program, architecture, isa, stored, out / ENGINE)


def open_reference(out: Path, threads: int | None = None) -> Engine:
    """The engine that ``write_reference`` left in ``out``."""
    return CpuEngine(out / ENGINE, threads)


def graph_of(model: ModelSource) -> Graph:
    return build(model.config, model.source.rstrip("/").rpartition("/")[2])
