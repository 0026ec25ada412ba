"""Speed on this processor beside llama.cpp: decoding at several depths, and a prompt, in one run.

    python benchmarks/cpu_decode.py --llama-bin BUILD/bin --folder WORK [--levels bf16,tq3] [--json OUT]

Both programs run the same shape, 1.04 billion random weights (synthetic_llama.py), in 4 bits: Q4_K_M there,
int4-rtn here. They run in turn, so that a busy spell spoils no side alone; best and median of all rounds are
printed, and the ratios of the best. A depth is that many tokens in the cache (synthetic_engine.py says how
they come there).

The share of read bandwidth is what a decoding step at the first depth reads of weights, over the time it
takes, over what ``infer-compile probe`` measures with as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.probe.cpu import processor
from infer_compile.probe.machine import memory_bytes
from infer_compile.probe.measure import bandwidth
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import LEVELS, LevelName
from infer_compile.runtime.formats.program import Limits, Linear, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.step import SequenceStep
from synthetic_engine import layout, opened, step
from synthetic_llama import CONFIG, CONTEXT, write_checkpoint, write_gguf

PROMPT = 512
ANSWER = 32
"""Tokens decoded at a depth: with the default page, one page is compressed."""


@dataclass
class Case:
    """Tokens per second of one program in one case, of every round."""

    name: str
    rates: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return max(self.rates)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Row:
    """One kind of work: what both programs reached."""

    title: str
    theirs: tuple[Case, ...]
    ours: tuple[Case, ...]


def main() -> None:
    given = _arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    model = write_gguf(given.folder, given.llama_bin / "llama-quantize", "Q4_K_M")
    checkpoint = write_checkpoint(given.folder)
    engines = {
        level: opened(given.folder, program_of(given, level), checkpoint, given.threads)
        for level in given.levels
    }
    rows = [Row("prompt", (Case("f16"),), tuple(Case(level) for level in given.levels))]
    rows += [
        Row(f"depth {depth}", tuple(map(Case, given.types)), tuple(map(Case, given.levels)))
        for depth in given.depths
    ]
    for turn in range(max(given.rounds, given.deep_rounds)):
        for row, depth in zip(rows, (None, *given.depths), strict=True):
            if turn >= (given.deep_rounds if depth else given.rounds):
                continue
            for case in row.theirs:
                case.rates.append(llama(given, model, case.name, depth))
                for mine in row.ours:
                    engine = engines[mine.name]
                    mine.rates.append(
                        prompt_rate(engine) if depth is None else decode_rate(engine, depth, turn)
                    )
        _show(rows)
    streamed = {level: read_bytes(engine.program) for level, engine in engines.items()}
    for engine in engines.values():
        engine.close()
    peak = bandwidth(given.threads, memory_bytes())
    print(f"read bandwidth {peak / 1e9:.1f} GB/s ({given.threads} threads)")
    shares = {}
    for case in rows[1].ours:
        shares[case.name] = streamed[case.name] * case.best / peak
        read = f"{streamed[case.name] / 1e6:.0f} MB of weights a step"
        print(f"{rows[1].title}, {case.name}: {read}, {shares[case.name]:.0%} of the read bandwidth")
    if given.json:
        given.json.write_text(json.dumps(_report(given, rows, peak, shares), indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--llama-bin", type=Path, required=True, help="llama.cpp's llama-bench and llama-quantize"
    )
    words.add_argument("--folder", type=Path, required=True, help="for models and engines, 6 GB; kept")
    words.add_argument("--levels", type=_level_names, default=("bf16", "tq3"), help="of our cache")
    words.add_argument("--types", type=_names, default=("f16", "q8_0", "q4_0"), help="of llama.cpp's cache")
    words.add_argument("--depths", type=_numbers, default=(0, 4096, 16384))
    words.add_argument("--weights", default="int4-rtn")
    words.add_argument("--group", type=int, default=128)
    words.add_argument("--chunk", type=int, default=PROMPT, help="tokens of our largest step")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--rounds", type=int, default=5, help="of the prompt and of depth 0")
    words.add_argument("--deep-rounds", type=int, default=2, help="of other depths, which llama.cpp computes")
    words.add_argument("--json", type=Path)
    return words.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _level_names(text: str) -> tuple[LevelName, ...]:
    return tuple(next(level for level in LEVELS if level == name) for name in _names(text))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))


def program_of(given: argparse.Namespace, level: LevelName) -> Program:
    cache = layout(level)
    context = min(CONTEXT, max(*given.depths, PROMPT) + ANSWER)
    limits = Limits(
        max_context=context,
        max_sequences=1,
        max_batch_tokens=given.chunk,
        exact_pages=cache.exact_pages(context, given.chunk),
        packed_pages=cache.packed_pages(context, given.chunk),
    )
    return assemble(build(CONFIG, "synthetic"), weight_format(given.weights, given.group), cache, limits)


def prompt_rate(engine: CpuEngine) -> float:
    """Tokens per second of a prompt of ``PROMPT`` tokens with nothing before it."""
    chunk = engine.program.limits.max_batch_tokens
    return _rate(
        engine,
        [step(engine.program, first, min(chunk, PROMPT - first)) for first in range(0, PROMPT, chunk)],
    )


def decode_rate(engine: CpuEngine, depth: int, seed: int) -> float:
    """Tokens per second of ``ANSWER`` tokens after ``depth`` others."""
    engine.step([step(engine.program, depth, 1)])
    places = range(depth, depth + ANSWER)
    return _rate(engine, [step(engine.program, place, 1, token=seed + place) for place in places])


def _rate(engine: CpuEngine, steps: Sequence[SequenceStep]) -> float:
    start = time.perf_counter()
    for each in steps:
        engine.step([each])
    return sum(len(each.tokens) for each in steps) / (time.perf_counter() - start)


def read_bytes(program: Program) -> int:
    """Bytes of weights that one step reads: all but the embedding, of which it reads a row."""
    products = [op for layer in program.layers for op in layer] + list(program.epilogue)
    matrices = {op.weight for op in products if isinstance(op, Linear)}
    return sum(tensor.bytes for tensor in program.tensors if tensor.name in matrices)


def llama(given: argparse.Namespace, model: Path, kind: str, depth: int | None) -> float:
    """Best tokens per second of three runs of llama-bench: of the prompt, or of an answer at a depth."""
    work = ("-p", PROMPT, "-n", 0) if depth is None else ("-p", 0, "-n", ANSWER, "-d", depth)
    common = ("-t", given.threads, "-fa", "on", "-ctk", kind, "-ctv", kind, "-r", 3, "-o", "json")
    command = [str(word) for word in (given.llama_bin / "llama-bench", "-m", model, *work, *common)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(max(json.loads(said)[0]["samples_ts"]))


def _show(rows: Sequence[Row]) -> None:
    print(f"{'tokens per second':20} {'llama.cpp':>26} {'ours':>26}  ours/best of llama.cpp")
    for row in rows:
        measured = [case for case in row.theirs if case.rates]
        if not measured:
            continue
        peer = max(case.best for case in measured)
        for theirs, mine in _beside(measured, row.ours):
            ratio = f"{mine.best / peer:.2f}" if mine else ""
            print(f"{row.title:20} {_cell(theirs)} {_cell(mine)}  {ratio}")
    print(flush=True)


def _beside(theirs: Sequence[Case], mine: Sequence[Case]) -> Iterable[tuple[Case | None, Case | None]]:
    for i in range(max(len(theirs), len(mine))):
        yield (theirs[i] if i < len(theirs) else None), (mine[i] if i < len(mine) else None)


def _cell(case: Case | None) -> str:
    return " " * 26 if case is None else f"{case.name:>8} {case.best:8.2f} ({case.median:6.2f})"


def _report(
    given: argparse.Namespace, rows: Sequence[Row], peak: float, shares: dict[str, float]
) -> dict[str, object]:
    def sides(cases: Iterable[Case]) -> dict[str, object]:
        return {
            case.name: {"best": case.best, "median": case.median, "rounds": case.rates}
            for case in cases
            if case.rates
        }

    return {
        "schema": 1,
        "processor": processor().name,
        "isa": processor().isa,
        "threads": given.threads,
        "weights": {"ours": f"{given.weights} in groups of {given.group}", "llama.cpp": "Q4_K_M"},
        "chunk": given.chunk,
        "read_bandwidth_gbs": peak / 1e9,
        "bandwidth_share": shares,
        "tokens_per_second": {
            row.title: {"llama.cpp": sides(row.theirs), "ours": sides(row.ours)} for row in rows
        },
    }


if __name__ == "__main__":
    main()
