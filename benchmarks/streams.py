"""What a stream loses by what it forgets: ``python benchmarks/streams.py BUNDLE [--tokens N] [--streams N]``.

BUNDLE was built for a processor with ``serving: {overflow: evict}``. Its engine reads streams that are longer
than its context, token by token as they are, and the perplexity of each stretch is printed; beside it that of
engines compiled from the same weights: one that keeps everything as far as the model's positions go, one
whose sinks are seen where they lie (nothing is turned), and one that keeps no sinks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from infer_compile.catalog.resources import folder
from infer_compile.catalog.target import Isa
from infer_compile.codegen.engine import LIBRARY, emit
from infer_compile.codegen.generate import SOURCE
from infer_compile.codegen.toolchain import find
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.bundle import Bundle, open_bundle
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.pages import Pages
from infer_compile.runtime.step import SequenceStep
from infer_compile.runtime.tokenizer import Tokenizer

TURN = "-sequences[i].evicted"
"""In the generated source: how far queries are turned back."""


def losses(engine: CpuEngine, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """Negative log-likelihood of each token but the first, in nats."""
    limits, pages = engine.program.limits, Pages(engine.program.cache, engine.program.limits)
    table, start = pages.open(), 0
    found: list[NDArray[np.float32]] = []
    while start < len(tokens):
        pages.evict(table, start)
        count = pages.room(table, start, min(len(tokens) - start, limits.max_outputs))
        pages.prepare(table, start, count, count)
        step = SequenceStep(
            tokens[start : start + count],
            start,
            count,
            table.sealed,
            table.exact.places,
            table.packed.places,
            outputs=count,
            evicted=table.evicted,
        )
        logits = engine.step([step], logits=True).logits
        found.append(np.zeros((0, 1), np.float32) if logits is None else logits)
        start += count
        pages.commit(table, start)
    rows = np.concatenate(found)[:-1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(rows, tokens[1:, None].astype(np.int64), axis=1)[:, 0]
    return np.asarray(np.log(np.exp(rows).sum(axis=1)) - chosen)


def engines(bundle: Bundle, positions: int, work: Path) -> Iterator[tuple[str, Path, int]]:
    """Name, folder and longest sequence of each engine."""
    program, architecture = bundle.program, host_architecture() or "x86-64"
    isa = next(name for name in get_args(Isa) if name == bundle.manifest.engine.isa)
    yield "evicts", bundle.folder / "engine", 2**31 - 1

    def compiled(name: str, changed: Program) -> Path:
        (work / name).mkdir()
        emit(changed, architecture, isa, bundle.model_dir, work / name)
        return work / name

    cache, limits = program.cache, program.limits
    whole = limits.model_copy(
        update={
            "overflow": "stop",
            "max_context": positions,
            "exact_pages": cache.exact_pages(positions, limits.max_batch_tokens),
            "packed_pages": cache.packed_pages(positions, limits.max_batch_tokens),
        }
    )
    yield "keeps all", compiled("whole", program.model_copy(update={"limits": whole})), positions
    drifting = compiled("drifting", program)
    source = (drifting / SOURCE).read_text()
    (drifting / SOURCE).write_text(source.replace(TURN, "0"))
    (drifting / LIBRARY).unlink()
    find(architecture).compile(drifting / SOURCE, drifting / LIBRARY, isa)
    yield "does not turn", drifting, 2**31 - 1
    without = cache.model_copy(update={"sink_pages": 0})
    yield "no sinks", compiled("without", program.model_copy(update={"cache": without})), 2**31 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--trained", type=int, default=2048, help="tokens of the texts that the model knows")
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle)
    text = (folder("specs") / "texts" / "evaluation.txt").read_text(encoding="utf-8")
    ids = Tokenizer(bundle.model_dir).encode(text, special=False)[: asked.tokens * asked.streams]
    streams = ids.reshape(asked.streams, asked.tokens)
    positions = json.loads((bundle.model_dir / "config.json").read_text())["max_position_embeddings"]
    context = bundle.program.limits.max_context
    ends = sorted({0, context, *(asked.trained * 2**i for i in range(8))})
    print(f"context {context}, positions {positions}, {asked.streams} streams of {asked.tokens} tokens")
    with tempfile.TemporaryDirectory() as work:
        for name, where, longest in engines(bundle, positions, Path(work)):
            engine = CpuEngine(where)
            found = np.stack([losses(engine, stream[:longest]) for stream in streams])
            engine.close()
            bands = [
                f"{low}-{high}: {np.exp(found[:, low : high - 1].mean()):.2f}"
                for low, high in itertools.pairwise(ends)
                if found.shape[1] >= high - 1
            ]
            print(f"{name:>14}  {'  '.join(bands)}")


if __name__ == "__main__":
    main()
