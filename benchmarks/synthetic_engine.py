"""Engines of random weights, with pools full of what a short prompt left in them.

What a step takes depends on shapes, formats and places in memory. Calibrated levels get segments as
calibration finds them on the quickstart model, and random tables; every page of a sequence is one of its own,
in places drawn at random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from infer_compile.codegen.engine import emit
from infer_compile.codegen.generate import generate
from infer_compile.codegen.repack import TABLES
from infer_compile.probe.cpu import processor
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.write import write
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import CacheLayout, LevelName
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.step import SequenceStep
from synthetic_cache import drawn, layout_of
from synthetic_llama import CONFIG, HEAD_DIM, KV_HEADS, LAYERS

WRITTEN = 512
"""Tokens that are really computed; their pages are copied to all others."""


def layout(level: LevelName) -> CacheLayout:
    """The cache of the random Llama."""
    return layout_of(level, LAYERS, KV_HEADS, HEAD_DIM)


def opened(
    folder: Path,
    program: Program,
    checkpoint: Path,
    threads: int | None,
    config: Mapping[str, object] = CONFIG,
) -> CpuEngine:
    """The engine of ``program``, its pools filled; compiled in ``folder`` unless the same was before."""
    text = "".join(text for _, text in sorted(generate(program).items()))
    place = folder / f"engine-{program.cache.level}-{_digest(text)}"
    if not (place / "libengine.so").exists():
        machine = processor()
        if machine.architecture is None:
            raise SystemExit("there is no native engine for this processor")
        place.mkdir(parents=True, exist_ok=True)
        model = folder / f"model-{_digest(repr(program.tensors))}"
        write(Checkpoint.open(checkpoint), program, model, config=dict(config))
        rng = np.random.default_rng(0)
        if tables := {table.name: drawn(rng, table) for table in program.cache.tables()}:
            save_file(tables, place / TABLES)
        emit(program, machine.architecture, machine.isa, model, place)
    engine = CpuEngine(place, threads=threads)
    _fill(engine)
    return engine


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def step(
    program: Program, start: int, count: int, *, accepted: int | None = None, place: int = 0, token: int = 0
) -> SequenceStep:
    """``count`` new tokens behind ``start`` others. A page has its place in the pools by its number, in an
    order drawn once; ``place`` shifts a second sequence's."""
    layout, limits = program.cache, program.limits
    pages, own = layout.pages(start + count), start // layout.page_tokens
    tables = []
    for size, held in (
        (limits.exact_pages, lambda page: page >= own or layout.exact(own, page)),
        (limits.packed_pages, layout.packs),
    ):
        order = np.random.default_rng(0).permutation(size)
        chosen = np.array([page for page in range(pages) if held(page)], np.int32)
        table = np.full(pages, -1, np.int32)
        if len(chosen):
            table[chosen] = order[(place + chosen) % size]
        tables.append(table)
    tokens = ((np.arange(count) * 7919 + token) % program.vocabulary).astype(np.int32)
    return SequenceStep(tokens, start, count if accepted is None else accepted, own, *tables)


def _fill(engine: CpuEngine) -> None:
    """Puts a real prompt's pages into every page of the pools."""
    program = engine.program
    layout, limits = program.cache, program.limits
    held: dict[str, set[int]] = {"exact": set(), "packed": set()}
    for start in range(0, WRITTEN, limits.max_batch_tokens):
        count = min(limits.max_batch_tokens, WRITTEN - start)
        new = step(program, start, count)
        engine.step([new])
        held["exact"] |= set(new.exact[start // layout.page_tokens :].tolist())
        held["packed"] |= set(new.packed[start // layout.page_tokens :].tolist())
    sizes = {"exact": layout.exact_page_bytes, "packed": layout.packed_page_bytes}
    for name, written in held.items():
        sources = sorted(written - {-1})
        if not sources:
            continue
        pool = engine.pool(name).reshape(-1, sizes[name])
        for i, page in enumerate(np.setdiff1d(np.arange(len(pool)), sources)):
            pool[page] = pool[sources[i % len(sources)]]
