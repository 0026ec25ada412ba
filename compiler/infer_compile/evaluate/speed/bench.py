"""``bench``: a bundle's speed, held against what its plan predicted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ...bundle import layout
from ...planner.plan import Plan
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.engines.cpu import CpuEngine
from ...runtime.errors import Exit, InferCompileError, Problem
from ...runtime.pages import Pages
from ...runtime.ready import ready
from ...runtime.step import Int32
from ...runtime.stopwatch import Stopwatch
from ...runtime.tokenizer import Tokenizer
from ...spec.load import load as load_spec
from ..evaluation import Stages
from ..text import default_evaluation, read_text
from .comparison import Goal, Point, goals, point
from .load import Load, Prompts, Run, Track
from .machine import Company, Machine, machine, resident_bytes
from .prediction import Prediction, prediction

ROUNDS = 5
LETTERS = 1 << 18
"""Of the text that prompts are cut from."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for; empty or None is the default: the planned prompt and answer, of one sequence
    and of as many as were planned."""

    batch: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    rounds: int = ROUNDS
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a cached token as planned and as measured in the running cache; bytes of the deployment as
    planned, and those of this process that lie in RAM (None: not known, or it is a device's memory)."""

    planned_token_bytes: int
    token_bytes: int
    planned_bytes: int
    resident_bytes: int | None


@dataclass(frozen=True, slots=True)
class Bench:
    """``start``: seconds of each phase until the first request could be taken. ``threads`` is None of a
    GPU."""

    plan: Plan
    fingerprint: str
    engine: str
    isa: str
    threads: int | None
    rounds: int
    start: Stopwatch
    machine: Machine
    memory: Memory
    points: tuple[Point, ...]
    goals: tuple[Goal, ...]
    asked: bool
    """Whether the spec states goals, be they held or not."""
    stale: str

    @property
    def missed(self) -> tuple[Goal, ...]:
        return tuple(goal for goal in self.goals if not goal.held)


def bench(folder: Path, wanted: Wanted, stages: Stages) -> Bench:
    """Measure the bundle in ``folder`` with its own compiled engine, under the loop and the scheduler that
    serve it.

    Raises InferCompileError: what opening a bundle and its engine raises, IC221 for its plan, IC370 loads
    that it does not take.
    """
    watch = Stopwatch()
    bundle = open_bundle(folder)
    watch.lap("bundle")
    plan = Plan.from_json((folder / layout.PLAN).read_text(encoding="utf-8"), str(folder / layout.PLAN))
    spec = load_spec(folder / layout.SPEC).spec
    foreseen = prediction(folder, plan, spec)
    loads = tuple(_loads(wanted, foreseen))
    _require(loads, bundle)
    # What was planned is no part of a start.
    watch = Stopwatch(time.monotonic() - watch.phases["bundle"], watch.phases)
    tokenizer = Tokenizer(bundle.model_dir)
    watch.lap("tokenizer")
    with ready(bundle, wanted.threads, watch) as (opened, measured):
        with stages.phase("this machine", "tokens"):
            here = machine(plan.target)
        track = Track(opened.engine, tokenizer, Prompts(_text(tokenizer)), opened.speculator)
        company = Company()
        runs = [_run(track, load, wanted.rounds, foreseen, stages) for load in loads]
        here = replace(here, others=company.others())
        held = resident_bytes() if bundle.manifest.engine.kind == "cpu" else None
        threads = opened.engine.threads if isinstance(opened.engine, CpuEngine) else None
    now = foreseen.now(here)
    points = tuple(
        point(
            run,
            foreseen.of(run.load),
            plan,
            foreseen.outlook,
            run.load == foreseen.planned,
            now.reckoned(run.load),
        )
        for run in runs
    )
    return Bench(
        plan=plan,
        fingerprint=bundle.fingerprint,
        engine=bundle.manifest.engine.kind,
        isa=bundle.manifest.engine.isa,
        threads=threads,
        rounds=wanted.rounds,
        start=watch,
        machine=here,
        memory=Memory(
            planned_token_bytes=plan.kv.bytes_per_token,
            token_bytes=measured.token_bytes,
            planned_bytes=round(plan.predicted.memory_gib.total * 2**30),
            resident_bytes=held,
        ),
        points=points,
        goals=goals(spec.slo, points),
        asked=any(value is not None for value in spec.slo.model_dump().values()),
        stale=foreseen.stale,
    )


def _loads(wanted: Wanted, foreseen: Prediction) -> Iterator[Load]:
    """Every combination; without a batch one sequence, and the plan's load as it was planned, its arrivals
    among it."""
    planned = foreseen.planned
    lengths = product(wanted.input or (planned.input_tokens,), wanted.output or (planned.output_tokens,))
    for prompt, answer in lengths:
        loads = [Load(batch, prompt, answer) for batch in wanted.batch]
        if not wanted.batch:
            loads = [Load(1, prompt, answer), replace(planned, input_tokens=prompt, output_tokens=answer)]
        yield from dict.fromkeys(loads)


def _require(loads: Sequence[Load], bundle: Bundle) -> None:
    """Raises IC370 for every load that the bundle does not take."""
    program = bundle.program
    limits, fixed = program.limits, program.limits.overflow == "stop"
    capacity = Pages(program.cache, limits).capacity
    problems = [
        Problem(
            "IC370",
            f"prompts of {load.input_tokens:,} tokens with answers of {load.output_tokens:,} do not fit",
            str(bundle.folder),
            f"the bundle was built for sequences of {capacity:,} tokens",
            "smaller --input or --output, or build with a longer workload.context_tokens",
        )
        for load in loads
        if fixed and load.context > capacity
    ]
    problems += [
        Problem(
            "IC371",
            f"{load.sequences} sequences are never in flight together",
            str(bundle.folder),
            f"the bundle was built for {limits.max_sequences}; the others would only wait",
            f"--batch {limits.max_sequences} or less, or build with a larger workload.concurrency",
        )
        for load in loads
        if load.sequences > limits.max_sequences
    ]
    if problems:
        raise InferCompileError(problems, Exit.USAGE)


def _text(tokenizer: Tokenizer) -> Int32:
    """What prompts are cut from."""
    documents = read_text(default_evaluation()).documents
    return tokenizer.encode("\n".join(documents)[:LETTERS], special=False)


def _run(track: Track, load: Load, rounds: int, foreseen: Prediction, stages: Stages) -> Run:
    predicted = foreseen.of(load)
    label = words(load)
    if predicted is not None:
        tokens = (1 + rounds) * load.sequences * load.output_tokens
        label += f", about {tokens / predicted.tokens_per_second:.0f} s"
    with stages.phase(label, "tokens") as advance:
        return track.run(load, rounds, advance)


def words(load: Load) -> str:
    """A load for people."""
    many = "1 sequence" if load.sequences == 1 else f"{load.sequences} sequences"
    if load.rate is not None:
        each = "1 request" if load.rate == 1 else f"{load.rate:g} requests"
        many = f"{each} a second ({many} in flight at most)"
    return f"{many}, prompts of {load.input_tokens:,} tokens, answers of {load.output_tokens:,}"
