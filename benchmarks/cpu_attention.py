"""Attention on this processor, alone: per cache level, depth and count of queries.

    python benchmarks/cpu_attention.py [--levels bf16,tq3,ct3] [--depths 4096,16384] [--rounds N]

The attention of the 1.04B Llama shape (16 layers, 16 query heads and 4 key-value heads of 128), in the
generated engine, around matrices so small that they take next to no time. What a step takes at depth 0 is
taken away. Pools are as deep as the sequence; synthetic_engine.py tells what they hold. Levels take turns,
and of each the fastest round counts. The share is of the bandwidth that ``infer-compile probe`` measures with
as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import synthetic_llama
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.probe.machine import this_machine
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import LEVELS, LevelName
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format
from synthetic_engine import WRITTEN, layout, opened, step

CONFIG: dict[str, object] = synthetic_llama.CONFIG | {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 131072,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--levels", default="bf16,fp8,int8,k8v4,tq4,tq3,tq2,ct4,ct3,ct2")
    arguments.add_argument("--depths", default="4096,16384")
    arguments.add_argument("--queries", default="1")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--json", type=Path, help="where to write the figures")
    given = arguments.parse_args()
    levels = [LEVELS[name] for name in given.levels.split(",")]
    depths = [0, *sorted(int(depth) for depth in given.depths.split(","))]
    queries = [int(count) for count in given.queries.split(",")]
    target = this_machine()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint")
        engines = {
            level: opened(
                Path(folder), program_of(level, depths[-1] + max(queries)), checkpoint, given.threads, CONFIG
            )
            for level in levels
        }
        cases = [(level, depth, count) for count in queries for depth in depths for level in levels]
        fastest = dict.fromkeys(cases, float("inf"))
        for _ in range(given.rounds):
            for level, depth, count in cases:
                found = timed(engines[level], depth, count)
                fastest[level, depth, count] = min(found, fastest[level, depth, count])
    rows = []
    for level, depth, count in cases:
        if not depth:
            continue
        seconds = fastest[level, depth, count] - fastest[level, 0, count]
        bytes_read = depth * engines[level].program.cache.token_bytes
        rows.append(
            {
                "level": level,
                "queries": count,
                "depth": depth,
                "ms": 1e3 * seconds,
                "ns_per_cached_token": 1e9 * seconds / depth,
                "gbs": bytes_read / seconds / 1e9,
                "share_of_bandwidth": bytes_read / seconds / 1e9 / target.bandwidth_gbs,
            }
        )
    print(f"{given.threads} threads, best of {given.rounds} rounds, peak {target.bandwidth_gbs} GB/s")
    print("level queries depth      ms  ns/token   GB/s  share")
    for row in rows:
        print(
            f"{row['level']:5} {row['queries']:7} {row['depth']:5} {row['ms']:7.3f} "
            f"{row['ns_per_cached_token']:9.1f} {row['gbs']:6.1f} {row['share_of_bandwidth']:6.0%}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def program_of(level: LevelName, tokens: int) -> Program:
    cache = layout(level)
    limits = Limits(
        max_context=tokens,
        max_sequences=1,
        max_batch_tokens=WRITTEN,
        exact_pages=cache.exact_pages(tokens, WRITTEN),
        packed_pages=cache.pages(tokens) if cache.compressed else 0,
    )
    return assemble(build(CONFIG, "attention"), weight_format("int8", 32), cache, limits)


def timed(engine: CpuEngine, depth: int, queries: int) -> float:
    """Seconds of one step of ``queries`` speculated tokens behind ``depth`` others."""
    new = step(engine.program, depth, queries, accepted=0)
    start = time.perf_counter()
    engine.step([new])
    return time.perf_counter() - start


def write_checkpoint(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        source.name: rng.standard_normal(source.shape).astype(ml_dtypes.bfloat16)
        for source in build(CONFIG, "attention").sources
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


if __name__ == "__main__":
    main()
