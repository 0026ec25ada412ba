"""The coefficients of the native engine on this processor: time steps of bundles, fit the planner's terms.

    python benchmarks/cpu_coefficients.py BUNDLE... [--rounds N]

Bundles of one model, one per weight format and cache level, large enough that their weights do not fit the
caches. Prints what catalog/coefficients.yaml holds for ``native`` on ``cpu``, whose steps have one rate for
prompts and decoding. Of each step the fastest of all rounds counts, for other programs only ever slow one
down; rounds go over all bundles in turn, so that a busy spell spoils no bundle alone. Efficiencies are shares
of the bandwidth and the float32 rate that ``infer-compile probe`` measures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import Target, load_target
from infer_compile.graph.build import build
from infer_compile.planner.performance.cache import Cache, read_bytes
from infer_compile.planner.performance.latency import prompt_operations
from infer_compile.planner.performance.shape import Shape, Stored, native_stored, shape
from infer_compile.probe.machine import this_machine
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.formats.weights import NAMES, WeightFormat
from infer_compile.runtime.step import SequenceStep

CASES = ((1, 1, 0), (1, 1, 500), (1, 1, 1900), (4, 1, 0), (4, 1, 1900), (1, 32, 0), (1, 64, 0), (1, 64, 1900))
"""Sequences, new tokens of each, tokens before them."""


@dataclass(frozen=True, slots=True)
class Bundle:
    name: str
    engine: CpuEngine
    shape: Shape
    stored: Stored
    weights: WeightFormat
    cache: Cache


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("bundle", nargs="+", type=Path)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--target", type=Path, help="a target file of this machine, measured at rest")
    given = arguments.parse_args()
    bundles = [load(path) for path in given.bundle]
    seconds = {(bundle.name, case): float("inf") for bundle in bundles for case in CASES}
    for _ in range(given.rounds):
        for bundle in bundles:
            for case in CASES:
                found = timed(bundle, case)
                seconds[bundle.name, case] = min(found, seconds[bundle.name, case])
    for name, case in seconds:
        sequences, tokens, before = case
        print(f"{name}: {sequences} x {tokens} tokens after {before}: {1e3 * seconds[name, case]:.3f} ms")
    target = load_target(str(given.target), Path()) if given.target else this_machine()
    print(json.dumps(fit(bundles, seconds, target), indent=1))


def load(path: Path) -> Bundle:
    program = Program.from_json((path / "engine" / "program.json").read_text())
    graph = build(json.loads((path / "model" / "config.json").read_text()), path.name)
    weights = next(tensor.format for tensor in program.tensors if tensor.name == "layers.0.mlp.down")
    layout = program.cache
    scheme = load_facts().formats.of_kv(layout.level)
    cache = Cache(scheme, layout.page_tokens, layout.sink_pages, layout.recent_pages)
    engine = CpuEngine(path / "engine")
    return Bundle(path.name, engine, shape(graph), native_stored(graph, weights), weights, cache)


def timed(bundle: Bundle, case: tuple[int, int, int]) -> float:
    """The fastest of three steps after one that warms up; what the cache holds does not matter."""
    batch = steps(bundle.engine.program, *case)
    fastest = float("inf")
    for turn in range(4):
        start = time.perf_counter()
        bundle.engine.step(batch)
        if turn:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def steps(program: Program, sequences: int, tokens: int, before: int) -> list[SequenceStep]:
    """Sequences that share the pools' pages; pages are handed out round robin."""
    layout, limits = program.cache, program.limits
    pages = layout.pages(before + tokens)
    own = before // layout.page_tokens
    made, exact_used, packed_used = [], 0, 0
    for _ in range(sequences):
        exact, packed = np.full(pages, -1, np.int32), np.full(pages, -1, np.int32)
        for page in range(pages):
            if page >= own or layout.exact(own, page):
                exact[page], exact_used = exact_used % limits.exact_pages, exact_used + 1
            if layout.packs(page):
                packed[page], packed_used = packed_used % limits.packed_pages, packed_used + 1
        new = np.full(tokens, 5, np.int32)
        made.append(SequenceStep(new, before, tokens, own, exact, packed))
    return made


def fit(
    bundles: Sequence[Bundle], seconds: dict[tuple[str, tuple[int, int, int]], float], target: Target
) -> dict[str, float]:
    """Least squares of relative errors, no term negative and no efficiency above one."""
    bandwidth = target.bandwidth_gbs * 1e9
    rate = (target.rates.bf16_tflops or 0.0) * 1e12
    names = [f"{kind} {form}" for form in NAMES for kind in ("weight_efficiency", "matrix_efficiency")]
    names += [
        "cache_efficiency bf16",
        "cache_efficiency tq3",
        "attention_efficiency",
        "layer_us",
        "sequence_us",
    ]
    rows, times = [], []
    for bundle in bundles:
        totals = bundle.shape.totals
        for case in CASES:
            sequences, tokens, before = case
            context = before + tokens
            read = read_bytes(bundle.shape, bundle.cache, context)
            operations = prompt_operations(totals, context) - prompt_operations(totals, before)
            terms = {
                f"weight_efficiency {bundle.weights.name}": bundle.stored.shared_bytes / bandwidth,
                f"matrix_efficiency {bundle.weights.name}": sequences
                * (tokens * totals.flops_per_token + totals.flops_per_output)
                / rate,
                "cache_efficiency bf16": sequences * float(read.exact) / bandwidth,
                "cache_efficiency tq3": sequences * float(read.packed) / bandwidth,
                "attention_efficiency": sequences * float(operations) / rate,
                "layer_us": bundle.shape.layers * 1e-6,
                "sequence_us": sequences * 1e-6,
            }
            rows.append([terms.get(name, 0.0) for name in names])
            times.append(seconds[bundle.name, case])
    weights = 1 / np.array(times)
    factors = descend(
        np.array(rows) * weights[:, None], np.ones(len(times)), ["efficiency" in n for n in names]
    )
    predicted = np.array(rows) @ factors
    error = float(np.mean(np.abs(predicted / np.array(times) - 1)))
    found = {
        name: round(float(1 / factor if "efficiency" in name else factor), 3)
        for name, factor in zip(names, factors, strict=True)
    }
    return found | {"mean error": round(error, 3)}


def descend(rows: np.ndarray, goal: np.ndarray, shares: Sequence[bool], turns: int = 20_000) -> np.ndarray:
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
