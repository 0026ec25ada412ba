"""What batching gains and what scheduling costs: 32 requests one after the other, and all at once.

    python benchmarks/batching.py --folder WORK [--weights int4-rtn] [--level tq3] [--rounds 3] [--json OUT]

The shape is that of synthetic_llama.py (1.04 billion random weights), the loop is the server's, without HTTP.
Prompts and answers have mixed lengths, the same in both cases; prompts are random tokens, so that nothing is
shared. A round runs one by one, then all together, then all together with each answer held to a JSON schema
(grammar_masks.py), so that a busy spell of a shared machine spoils no side alone; the best of the rounds is
taken for each. All that the loop does outside the engine's step counts as scheduling: who computes what,
pages, the text of the tokens; the masks are counted apart. With ``--threads 1`` times are processor time, to
which other programs of a busy machine do not add; with more threads, which wait for each other, they are
seconds of the day.

How much batching can gain is told by the table below: what a step of so many decoding sequences takes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import grammar_masks
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.probe.cpu import processor
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import LEVELS
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.grammar import Grammars, schema_text
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.rule import Guide, Rule
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.step import SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer
from synthetic_engine import WRITTEN, layout, opened, step
from synthetic_llama import CONFIG, VOCABULARY, write_checkpoint

ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
BEHIND = 64
"""Tokens before the one that a timed step computes."""
REPEATS = 5


@dataclass
class Clock:
    """Seconds spent in the engine's steps and in grammars, by ``now``, and the number of steps."""

    now: Callable[[], float]
    step: float = 0.0
    masks: float = 0.0
    steps: int = 0


class Clocked:
    """An engine whose steps are timed."""

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine
        self.program = engine.program
        self.clock = Clock(time.thread_time if engine.threads == 1 else time.perf_counter)

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        began = self.clock.now()
        result = self._engine.step(batch, logits=logits, hidden=hidden)
        self.clock.step += self.clock.now() - began
        self.clock.steps += 1
        return result

    def pool(self, name: str) -> NDArray[np.uint8]:
        return self._engine.pool(name)

    def close(self) -> None:
        self._engine.close()


class ClockedRule:
    """A rule whose masks are timed."""

    def __init__(self, rule: Rule, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock

    def matcher(self) -> ClockedGuide:
        return ClockedGuide(self._rule.matcher(), self._clock)


class ClockedGuide:
    def __init__(self, guide: Guide, clock: Clock) -> None:
        self._guide = guide
        self._clock = clock

    @property
    def mask(self) -> NDArray[np.uint32] | None:
        return self._guide.mask

    def push(self, token: int) -> None:
        began = self._clock.now()
        self._guide.push(token)
        self._clock.masks += self._clock.now() - began


@dataclass(frozen=True)
class Run:
    """Seconds of one run over all requests, in all and in parts."""

    seconds: float
    step: float
    masks: float
    steps: int
    prompts: int
    answers: int

    @property
    def rate(self) -> float:
        """Tokens of answers per second."""
        return self.answers / self.seconds

    @property
    def scheduling(self) -> float:
        """What the loop adds to the steps, as a share of them."""
        return (self.seconds - self.step - self.masks) / self.step


@dataclass
class Case:
    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def best(self) -> Run:
        return min(self.runs, key=lambda run: run.seconds / run.answers)


def run(engine: Clocked, tokenizer: Tokenizer, requests: Sequence[Request], *, together: bool) -> Run:
    loop = EngineLoop(engine, tokenizer, len(requests))
    clock = engine.clock
    before = (clock.step, clock.masks, clock.steps)
    sequences = []
    began = clock.now()
    for batch in [requests] if together else [[request] for request in requests]:
        sequences += loop.submit((request, lambda _: None) for request in batch)
        while not loop.scheduler.idle:
            loop.advance()
    seconds = clock.now() - began
    loop.pages.check()
    parts = (clock.step - before[0], clock.masks - before[1], clock.steps - before[2])
    prompts = sum(sequence.prompt_tokens for sequence in sequences)
    return Run(seconds, *parts, prompts, sum(sequence.generated for sequence in sequences))


def requests_of(lengths: Sequence[tuple[int, int]], seed: int, rule: Rule | None) -> list[Request]:
    """Requests of prompt and answer of the given lengths, with prompts of their own."""
    rng = np.random.default_rng(seed)
    return [
        Request(rng.integers(0, VOCABULARY, prompt).astype(np.int32), answer, Controls(seed=seed), rule=rule)
        for prompt, answer in lengths
    ]


def program_of(given: argparse.Namespace, context: int) -> Program:
    cache = layout(given.level)
    limits = Limits(
        max_context=context,
        max_sequences=given.requests,
        max_batch_tokens=given.chunk,
        exact_pages=given.requests * cache.exact_pages(context, given.chunk),
        packed_pages=given.requests * cache.packed_pages(context, given.chunk),
    )
    return assemble(build(CONFIG, "synthetic"), weight_format(given.weights, given.group), cache, limits)


def step_times(engine: Clocked, most: int) -> dict[int, float]:
    """Best milliseconds of a step of so many sequences that each draw a token."""
    program, times = engine.program, {}
    pages = program.cache.pages(BEHIND + 1)
    for rows in (rows for rows in ROWS if rows <= most):
        batch = [step(program, BEHIND, 1, place=row * pages, token=row) for row in range(rows)]
        seconds = []
        for _ in range(REPEATS):
            began = engine.clock.now()
            engine.step(batch)
            seconds.append(engine.clock.now() - began)
        times[rows] = 1e3 * min(seconds)
    return times


def main() -> None:
    given = _arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    if not (given.folder / "tokenizer.json").exists():
        grammar_masks.tokenizer(given.folder)
    tokenizer = Tokenizer(given.folder)
    grammars = Grammars(given.folder, VOCABULARY, frozenset({grammar_masks.END}))
    schema = grammars.compile("json", schema_text(grammar_masks.SCHEMA))
    rng = np.random.default_rng(given.seed)
    drawn = [
        rng.integers(low, high + 1, given.requests).tolist() for low, high in (given.prompt, given.answer)
    ]
    lengths = list(zip(*drawn, strict=True))
    context = max(WRITTEN, given.prompt[1] + given.answer[1])
    engine = Clocked(
        opened(given.folder, program_of(given, context), write_checkpoint(given.folder), given.threads)
    )
    cores = len(os.sched_getaffinity(0))
    print(f"{processor().name}, {given.threads} of {cores} cores; {given.weights}, cache {given.level}")
    print("decoding sequences  ms a step  tok/s  over one")
    times = step_times(engine, given.requests)
    for rows, milliseconds in times.items():
        rate = rows / milliseconds * 1e3
        print(f"{rows:18} {milliseconds:10.1f} {rate:6.1f} {rate * times[1] / 1e3:9.2f}", flush=True)
    ranges = [f"{low} to {high}" for low, high in (given.prompt, given.answer)]
    print(f"{given.requests} requests, prompts of {ranges[0]}, answers of {ranges[1]} tokens")
    cases = {name: Case(name) for name in ("one by one", "together", "by a schema")}
    for turn in range(given.rounds):
        plain = requests_of(lengths, 2 * turn, None)
        cases["one by one"].runs.append(run(engine, tokenizer, plain, together=False))
        cases["together"].runs.append(run(engine, tokenizer, plain, together=True))
        held = requests_of(lengths, 2 * turn + 1, ClockedRule(schema, engine.clock))
        cases["by a schema"].runs.append(run(engine, tokenizer, held, together=True))
        print(f"best of {turn + 1}   answers tok/s  all tok/s  steps  ms a step  scheduling  masks of a step")
        for case in cases.values():
            _show(case)
        print(f"together over one by one: {gain(cases):.2f}", flush=True)
    engine.close()
    if given.json:
        report = {case.name: [asdict(run) for run in case.runs] for case in cases.values()}
        given.json.write_text(
            json.dumps(
                {
                    "schema": 1,
                    "weights": given.weights,
                    "level": given.level,
                    "threads": given.threads,
                    "gain": gain(cases) if given.rounds else None,
                    "step_ms": times,
                    "runs": report,
                },
                indent=1,
            )
            + "\n"
        )


def gain(cases: Mapping[str, Case]) -> float:
    """Answers per second together over those one by one."""
    return cases["together"].best.rate / cases["one by one"].best.rate


def _show(case: Case) -> None:
    best = case.best
    every = (best.prompts + best.answers) / best.seconds
    share = min(run.scheduling for run in case.runs)
    print(
        f"{case.name:12} {best.rate:14.1f} {every:10.1f} {best.steps:6} {1e3 * best.step / best.steps:10.1f}"
        f" {share:11.1%} {best.masks / best.step:15.1%}"
    )


def _arguments() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, required=True, help="for weights and engines, 3 GB; kept")
    words.add_argument("--weights", default="int4-rtn")
    words.add_argument("--group", type=int, default=128)
    words.add_argument("--level", default="tq3", choices=LEVELS)
    words.add_argument("--requests", type=int, default=32)
    words.add_argument("--prompt", type=_range, default=(16, 128), help="tokens, from-to")
    words.add_argument("--answer", type=_range, default=(16, 128), help="tokens, from-to")
    words.add_argument("--chunk", type=int, default=256, help="tokens of the largest step")
    words.add_argument("--rounds", type=int, default=3, help="0: only the table of steps")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--json", type=Path)
    return words.parse_args()


def _range(text: str) -> tuple[int, int]:
    low, high = map(int, text.split("-"))
    return low, high


if __name__ == "__main__":
    main()
