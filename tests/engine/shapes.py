"""Randomly drawn small models, batches and page states, and engines compiled for them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from driver import Driver, Place
from levels import draw_layout, draw_tables
from safetensors.numpy import load_file, save_file

from infer_compile.codegen.engine import LIBRARY, PROGRAM, WEIGHTS
from infer_compile.codegen.generate import SOURCE, generate
from infer_compile.codegen.repack import TABLES, repack
from infer_compile.codegen.toolchain import Isa, Toolchain, find
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.read import reference_loader
from infer_compile.quantize.write import write
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.kv import LEVELS, CacheLayout, LevelName
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import WeightFormat, weight_format
from infer_compile.runtime.step import Sampling, SequenceStep

EVERY: tuple[LevelName, ...] = tuple(LEVELS)
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def draw_config(rng: np.random.Generator) -> dict[str, object]:
    """A ``config.json`` of one of the families, every size drawn."""
    family = str(rng.choice(FAMILIES))
    kv_heads = int(rng.choice([1, 2, 3]))
    window = int(rng.integers(5, 90)) if family == "MistralForCausalLM" and rng.random() < 0.7 else None
    return {
        "architectures": [family],
        "model_type": family.removesuffix("ForCausalLM").lower(),
        "vocab_size": int(rng.integers(40, 300)),
        "hidden_size": 32 * int(rng.integers(2, 6)),
        "intermediate_size": 32 * int(rng.integers(2, 7)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": kv_heads * int(rng.choice([1, 2, 3, 4])),
        "num_key_value_heads": kv_heads,
        "head_dim": int(rng.choice([64, 96, 128, 256], p=[0.4, 0.2, 0.3, 0.1])),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": float(rng.choice([500.0, 10000.0])),
        "sliding_window": window,
        "tie_word_embeddings": bool(rng.random() < 0.5),
        "hidden_act": "silu",
    }


def draw_program(
    rng: np.random.Generator,
    config: dict[str, object],
    levels: list[LevelName] | None = None,
    weights: WeightFormat | None = None,
) -> Program:
    """Formats, cache and limits for the model, drawn; so are the layers' ``levels`` and the ``weights``
    unless they are given."""
    graph = build(config, "drawn")
    form = weight_format(str(rng.choice(["bf16", "int8", "int4-rtn"], p=[0.2, 0.3, 0.5])), 32)
    if levels is None:
        compressed = bool(rng.random() < 0.7)
        levels = [LEVELS[str(rng.choice(EVERY)) if compressed else "bf16"] for _ in range(graph.cache_layers)]
    page_tokens = int(rng.choice([32, 64]))
    sink_pages, recent_pages = int(rng.integers(0, 3)), int(rng.integers(1, 3))
    layout = draw_layout(rng, levels, graph.kv_heads, graph.head_dim, page_tokens, sink_pages, recent_pages)
    limits = Limits(
        max_context=512,
        max_sequences=6,
        max_batch_tokens=160,
        exact_pages=48,
        packed_pages=48 if layout.compressed else 0,
    )
    return assemble(graph, weights or form, layout, limits)


def write_model(rng: np.random.Generator, config: dict[str, object], program: Program, folder: Path) -> Path:
    """A random checkpoint of the model, quantized as the Program says, and tables of its cache beside it; the
    folder of the model."""
    graph = build(config, "drawn")
    tensors = {}
    for source in graph.sources:
        noise = rng.standard_normal(source.shape) * (0.3 / np.sqrt(source.shape[-1]) * 4)
        values = noise if len(source.shape) > 1 else 1 + 0.3 * rng.standard_normal(source.shape)
        tensors[source.name] = np.asarray(values, ml_dtypes.bfloat16)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    save_file(tensors, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps(config))
    write(Checkpoint.open(checkpoint), program, folder / "model", config=config)
    tables = draw_tables(rng, program.cache) if isinstance(program.cache, CacheLayout) else {}
    save_file(tables, folder / TABLES)
    return folder / "model"


def reference_of(program: Program, model: Path) -> ReferenceEngine:
    """The slow engine on what ``write_model`` wrote."""
    return ReferenceEngine(program, reference_loader(model), tables=load_file(model.parent / TABLES))


@dataclass(frozen=True)
class Build:
    """How to compile for one instruction-set path here."""

    isa: Isa
    extra: tuple[str, ...] = ()
    """Further flags; they come last and so prevail."""
    toolchain: Toolchain | None = None


def compile_engine(program: Program, model: Path, engine: Path, how: Build) -> Path:
    """What ``codegen.engine.emit`` writes, with less optimisation: kernels are checked here, not timed."""
    (engine / "kernels").mkdir(parents=True)
    (engine / PROGRAM).write_text(program.to_json())
    for name, text in generate(program).items():
        (engine / name).write_text(text)
    shutil.copy(model.parent / TABLES, engine)
    repack(program, model, engine / WEIGHTS)
    toolchain = how.toolchain or find("x86-64")
    toolchain.compile(engine / SOURCE, engine / LIBRARY, how.isa, extra=("-Og", *how.extra))
    return engine


def draw_steps(
    rng: np.random.Generator, program: Program, driver: Driver, steps: int
) -> list[list[SequenceStep]]:
    """Batches of prefill chunks, single tokens, unaccepted chains and trees of several sequences; before them
    one of a single token, in which few values can round the other way."""
    layout, limits = program.cache, program.limits
    lengths = [int(rng.integers(40, 330)) for _ in range(int(rng.integers(2, 4)))]
    places = [driver.open(length) for length in lengths]
    batches = [[driver.open(1).feed([int(rng.integers(program.vocabulary))])]]
    for _ in range(steps):
        budget, batch = limits.max_batch_tokens, []
        for place, length in zip(places, lengths, strict=True):
            chunk = min(int(rng.choice([1, 1, 5, 33, 90])), length - place.start, budget)
            if chunk <= 0 or rng.random() < 0.1:
                continue
            batch.append(_draw_feed(rng, program, place, chunk))
            budget -= chunk
        if batch:
            batches.append(batch)
    assert any(step.outputs for batch in batches for step in batch)
    assert not layout.compressed or max(place.start for place in places) > layout.page_tokens
    return batches


def _draw_feed(rng: np.random.Generator, program: Program, place: Place, chunk: int) -> SequenceStep:
    tokens = rng.integers(0, program.vocabulary, chunk).tolist()
    speculates = 1 < chunk <= 8 and rng.random() < 0.7
    parents = [int(rng.integers(-1, i)) if i else -1 for i in range(chunk)] if speculates else None
    if parents is not None and rng.random() < 0.5:
        parents = None
    return place.feed(
        tokens,
        outputs=chunk if speculates else min(chunk, int(rng.integers(0, 3))),
        accepted=0 if speculates else chunk,
        parents=parents,
    )


def draw_sampling(rng: np.random.Generator) -> Sampling:
    return Sampling(
        temperature=float(rng.uniform(0.2, 1.5)),
        top_k=int(rng.choice([0, 5, 40])),
        top_p=float(rng.choice([1.0, 0.9, 0.5])),
        min_p=float(rng.choice([0.0, 0.05])),
        seed=int(rng.integers(2**63)),
    )
