"""The coefficients of the native engine on this processor: time its steps, fit the planner's terms.

    python benchmarks/cpu_coefficients.py FOLDER [--rounds N] [--target FILE] [--threads N]

Compiles an engine for each of ``FORMS``, all of one random model whose weights do not fit the caches
(synthetic_llama.py; 1.04 billion weights; 10 GB in FOLDER, kept), times steps of ``CASES`` with each and
prints what catalog/coefficients.yaml holds for ``native`` on ``cpu``. Of each step the fastest of all rounds
counts, for other programs only ever slow one down; rounds go over all engines in turn, so that a busy spell
spoils no engine alone. Efficiencies are shares of the bandwidth and the rate that ``infer-compile probe``
measures.

Terms are few: what is kept as numbers (bf16, fp8) is read at a share of the bandwidth; what is kept as codes
takes a time for each code of a strip, the same at every level, and attention multiplies codes at a rate of
their own. The shares of all levels follow from these.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import Target, load_target
from infer_compile.graph.build import build
from infer_compile.graph.storage import native_scheme
from infer_compile.lower.assemble import assemble
from infer_compile.planner.performance.cache import Cache, own_cache, packed_share, read_bytes, visible
from infer_compile.planner.performance.latency import matrix_tflops, prompt_operations
from infer_compile.planner.performance.shape import Shape, Stored, native_stored, shape
from infer_compile.probe.machine import this_machine
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import LEVELS, CacheLayout, LevelName, Plane, layer_cache
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import NAMES, WeightFormat, weight_format
from infer_compile.runtime.step import SequenceStep
from synthetic_engine import layout, opened, step
from synthetic_llama import CONFIG, HEAD_DIM, HEADS, KV_HEADS, LAYERS, write_checkpoint

FORMS: tuple[tuple[str, LevelName], ...] = (
    ("bf16", "bf16"),
    ("int8", "bf16"),
    ("int4-rtn", "bf16"),
    ("int4-rtn", "fp8"),
    ("int4-rtn", "int8"),
    ("int4-rtn", "tq4"),
    ("int4-rtn", "tq3"),
    ("int4-rtn", "tq2"),
    ("int4-rtn", "ct3"),
)
"""Weight format and cache level of each engine."""
CASES = (
    *((1, 1, 0), (1, 1, 1900), (1, 1, 8000), (4, 1, 0), (4, 1, 1900)),
    *((1, 64, 0), (1, 64, 1900), (1, 64, 6000)),
)
"""Sequences, new tokens of each, tokens before them."""
CONTEXT, SEQUENCES, CHUNK, GROUP = 8192, 4, 64, 128
BOUND = 0.999
"""A share from which on the fit would have gone above one."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine and what the planner knows of it."""

    name: str
    engine: CpuEngine
    shape: Shape
    stored: Stored
    weights: WeightFormat
    cache: Cache


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--target", type=Path, help="a target file of this machine, measured at rest")
    arguments.add_argument("--threads", type=int, help="default: one per core")
    given = arguments.parse_args()
    checkpoint = write_checkpoint(given.folder)
    subjects = [load(given.folder, checkpoint, *form, given.threads) for form in FORMS]
    seconds = {(subject.name, case): float("inf") for subject in subjects for case in CASES}
    for _ in range(given.rounds):
        for subject in subjects:
            for case in CASES:
                found = timed(subject, case)
                seconds[subject.name, case] = min(found, seconds[subject.name, case])
    target = load_target(str(given.target), Path()) if given.target else this_machine()
    rates, errors = fit(subjects, seconds, target)
    for (name, case), took in seconds.items():
        sequences, tokens, before = case
        print(
            f"{name}: {sequences} x {tokens} tokens after {before}: {1e3 * took:.3f} ms, "
            f"fitted {errors[name, case]:+.0%}"
        )
    print(json.dumps(rates, indent=1))


def load(folder: Path, checkpoint: Path, weights: str, level: LevelName, threads: int | None) -> Subject:
    """The engine of one form, compiled if it is not there."""
    graph, form = build(CONFIG, "synthetic"), formed(weights)
    engine = opened(folder, assemble(graph, form, *sized(level)), checkpoint, threads)
    facts, summed = load_facts(), shape(graph)
    cache = own_cache(summed, facts.formats.of_kv(level, "native"), facts.choices.cache, True)
    return Subject(f"{weights} {level}", engine, summed, native_stored(graph, form), form, cache)


def formed(weights: str) -> WeightFormat:
    return weight_format(weights) if weights == "bf16" else weight_format(weights, GROUP)


def sized(level: LevelName) -> tuple[CacheLayout, Limits]:
    cache = layout(level)
    limits = Limits(
        max_context=CONTEXT,
        max_sequences=SEQUENCES,
        max_batch_tokens=CHUNK,
        exact_pages=cache.exact_pages(CONTEXT, CHUNK) + 3 * cache.exact_pages(2048),
        packed_pages=cache.packed_pages(CONTEXT, CHUNK),
    )
    return cache, limits


def timed(subject: Subject, case: tuple[int, int, int]) -> float:
    """Of a short step the fastest of three after one that warms up, of a long one the first."""
    batch = steps(subject.engine.program, *case)
    took: list[float] = []
    for _ in range(4 if case[1] == 1 else 1):
        start = time.perf_counter()
        subject.engine.step(batch)
        took.append(time.perf_counter() - start)
    return min(took[-3:])


def steps(program: Program, sequences: int, tokens: int, before: int) -> list[SequenceStep]:
    """Sequences that lie one behind the other in the pools."""
    pages = program.cache.pages(before + tokens)
    return [step(program, before, tokens, place=index * pages) for index in range(sequences)]


def terms(subject: Subject, case: tuple[int, int, int], target: Target) -> dict[str, float]:
    """Seconds of one step by what they go to, at a share of one, a picosecond or a microsecond each."""
    sequences, tokens, before = case
    totals, cache, weights = subject.shape.totals, subject.cache, subject.weights.name
    bandwidth, plain = target.bandwidth_gbs * 1e9, (target.rates.bf16_tflops or 0.0) * 1e12
    products = (matrix_tflops(target, native_scheme(subject.weights)) or 0.0) * 1e12
    context = before + tokens
    read = read_bytes(subject.shape, cache, context)
    level, layer = cache.scheme.name, subject.engine.program.cache.layers[0]
    found = {
        f"weight_efficiency {weights}": (subject.stored.shared_bytes + cache.table_bytes) / bandwidth,
        f"{'decode_' if tokens == 1 else ''}matrix_efficiency {weights}": sequences
        * (tokens * totals.flops_per_token + totals.flops_per_output)
        / products,
        "cache_efficiency bf16": sequences * float(read.exact) / bandwidth,
        "layer_us": subject.shape.layers * 1e-6,
        "sequence_us": sequences * 1e-6,
    }
    pairs = sequences * float(prompt_operations(totals, context) - prompt_operations(totals, before))
    coded = 0.0
    if layer.keys.kind == "codes":
        _, far = visible(cache, context, totals.attention[0])
        coded = float(packed_share(subject.shape, cache, max(1, before + tokens // 2)))
        each = codes(layer.keys) + codes(layer.values)
        found["codes_ps"] = sequences * float(far) * LAYERS * KV_HEADS * each * 1e-12
        if tokens > 1:  # one query's products are part of what a code takes
            found["coded_attention"] = coded * pairs / plain
    elif level != "bf16":
        found[f"cache_efficiency {level}"] = sequences * float(read.packed) / bandwidth
    found[f"{'decode_' if tokens == 1 else ''}attention_efficiency"] = (1 - coded) * pairs / plain
    return found


def codes(plane: Plane) -> int:
    """Codes of a vector, those of two strips twice."""
    return sum(strip.columns for strip in plane.strips)


def fit(
    subjects: Sequence[Subject], seconds: Mapping[tuple[str, tuple[int, int, int]], float], target: Target
) -> tuple[dict[str, object], dict[tuple[str, tuple[int, int, int]], float]]:
    """Least squares of relative errors, no term negative and no share above one: what coefficients.yaml
    holds, and by what each step is missed."""
    places = [(subject, case) for subject in subjects for case in CASES]
    rows = [terms(subject, case, target) for subject, case in places]
    names = list(dict.fromkeys(name for row in rows for name in row))
    times = np.array([seconds[subject.name, case] for subject, case in places])
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    shares = [bounded(name) for name in names]
    factors = descend(matrix / times[:, None], np.ones(len(times)), shares)
    missed = matrix @ factors / times - 1
    found = dict(zip(names, factors, strict=True))
    errors = {
        (subject.name, case): float(error) for (subject, case), error in zip(places, missed, strict=True)
    }
    return written(found, target, float(np.mean(np.abs(missed)))), errors


def written(found: Mapping[str, float], target: Target, error: float) -> dict[str, object]:
    """The factors as coefficients.yaml states them."""
    made: dict[str, object] = {}
    for part in ("weight_efficiency", "decode_matrix_efficiency", "matrix_efficiency"):
        made[part] = {name: share(found[f"{part} {name}"]) for name in NAMES}
    bandwidth = target.bandwidth_gbs * 1e9
    made["cache_efficiency"] = {
        name: share(
            bandwidth
            * plane_seconds(level, found, target)
            / layer_cache(level, HEAD_DIM).token_bytes(HEAD_DIM, 1)
        )
        for name, level in LEVELS.items()
    }
    for part in ("attention_efficiency", "decode_attention_efficiency"):
        made[part] = share(found[part])
    made["coded_attention"] = round(found["attention_efficiency"] / found["coded_attention"], 2)
    made |= {name: round(found[name], 1) for name in ("layer_us", "sequence_us", "codes_ps")}
    at_bound = [name for name, factor in found.items() if bounded(name) and 1 / factor > BOUND]
    return made | {"mean error": round(error, 3), "at their bound": at_bound}


def plane_seconds(level: LevelName, found: Mapping[str, float], target: Target) -> float:
    """To read a key and a value of one head. The planner counts the products of codes apart."""
    bandwidth, took = target.bandwidth_gbs * 1e9, 0.0
    products = 2 * HEAD_DIM * HEADS // KV_HEADS / ((target.rates.bf16_tflops or 0.0) * 1e12)
    faster = found["coded_attention"] / found["attention_efficiency"]
    for plane in (layer_cache(level, HEAD_DIM).keys, layer_cache(level, HEAD_DIM).values):
        read = plane.vector_bytes(HEAD_DIM) / bandwidth
        if plane.kind == "codes":
            multiplied = products * found["decode_attention_efficiency"] * faster
            took += max(codes(plane) * found["codes_ps"] * 1e-12 - multiplied, read)
        else:
            took += read * found[f"cache_efficiency {plane.kind}"]
    return took


def bounded(name: str) -> bool:
    """Whether the factor of a term is one over a share, and so at least one: of what is read. Products of
    integers may beat the rate, which is one of floats, and those of a single query wait for what is read."""
    return name.startswith(("weight_efficiency", "cache_efficiency"))


def share(factor: float) -> float:
    return round(1 / factor, 3)


def descend(rows: np.ndarray, goal: np.ndarray, shares: Sequence[bool], turns: int = 40_000) -> np.ndarray:
    """Coordinate descent; the factor of a share is 1 over it and so at least 1, of others at least 0."""
    least = np.array([1.0 if share else 0.0 for share in shares])
    factors = np.where(least > 0, 2.0, 1.0)
    left = goal - rows @ factors
    squares = (rows**2).sum(axis=0)
    for turn in range(turns):
        column = turn % rows.shape[1]
        if squares[column] == 0:
            continue
        moved = max(least[column], factors[column] + rows[:, column] @ left / squares[column])
        left -= rows[:, column] * (moved - factors[column])
        factors[column] = moved
    return factors


if __name__ == "__main__":
    main()
