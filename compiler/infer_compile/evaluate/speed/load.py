"""A load on an engine's loop, and what its requests saw: without HTTP, by the scheduler that serves.

A closed load keeps so many sequences in flight and replaces each that ends at once; an open one takes
requests as they come. Answers go on to their full length, whatever is drawn. The first requests of a closed
load are shorter, by even steps, so that later ones do not all begin together; they are not counted. A round
is as many requests as there are sequences, in the order in which they end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import InferCompileError
from ...runtime.loop import EngineLoop
from ...runtime.sampling import Controls
from ...runtime.sequence import DECODED, Delta, Failure, Request
from ...runtime.sequence import Sequence as Flight
from ...runtime.speculation.speculator import Outcome, Speculator
from ...runtime.step import Engine, Int32, SequenceStep, StepResult
from ...runtime.tokenizer import Tokenizer
from ..quality import Advance

SEED = 0
QUEUE = 1 << 20
"""Requests of an open load that may wait: all of them."""
NAP = 0.01
"""Seconds that an open load sleeps at a time where nobody is in flight."""


@dataclass(frozen=True, slots=True)
class Load:
    """``rate``: requests per second of an open load, whose rounds are ``sequences`` requests too."""

    sequences: int
    input_tokens: int
    output_tokens: int
    rate: float | None = None

    @property
    def context(self) -> int:
        """Tokens of a sequence at its end."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Round:
    """Means over its requests, in seconds, and tokens generated per second of all sequences together. ``itl``
    is NaN for answers of one token."""

    ttft: float
    itl: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds that one call of the engine took; ``decodes``: no prompt was in it."""

    seconds: float
    sequences: int
    decodes: bool


@dataclass(frozen=True, slots=True)
class Drafted:
    """Sums over the steps of each sequence: tokens that they drew, steps, tokens of the chains that were
    verified, and how many of these were kept."""

    tokens: int
    steps: int
    chained: int
    kept: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a load saw after its first wave, ``seconds`` long. ``first`` are the seconds to the first token of
    each request, ``between`` those between two tokens of one sequence."""

    load: Load
    rounds: tuple[Round, ...]
    seconds: float
    first: tuple[float, ...]
    between: tuple[float, ...]
    steps: tuple[Step, ...]
    drafted: Drafted
    preempted: int

    def decode_step(self) -> float | None:
        """Median seconds of a step in which every sequence drew and no prompt was computed; None where there
        was none."""
        full = [each.seconds for each in self.steps if each.decodes and each.sequences == self.load.sequences]
        return float(np.median(full)) if full else None

    @property
    def engine_share(self) -> float:
        """Of the seconds, what the engine's steps took: the rest is scheduling, text and drafting."""
        return sum(each.seconds for each in self.steps) / self.seconds


class Prompts:
    """Prompts cut from ``tokens`` of a text, each from a place of its own: what is drawn behind real text is
    what drafts are kept for. No two share a cached beginning, whatever they begin with."""

    def __init__(self, tokens: Int32, seed: int = SEED) -> None:
        self._tokens = tokens
        self._places = np.random.default_rng(seed)
        self._made = 0

    def request(self, input_tokens: int, output_tokens: int) -> Request:
        first = int(self._places.integers(len(self._tokens)))
        places = np.arange(first, first + input_tokens) % len(self._tokens)
        self._made += 1
        greedy = Controls(temperature=0.0)
        return Request(self._tokens[places], output_tokens, greedy, salt=f"bench {self._made}")


class Clocked:
    """An engine whose steps are timed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.program = engine.program
        self.steps: list[Step] = []

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        began = time.monotonic()
        result = self._engine.step(batch, logits=logits, hidden=hidden)
        decodes = all(one.accepted <= DECODED for one in batch)
        self.steps.append(Step(time.monotonic() - began, len(batch), decodes))
        return result

    def pool(self, name: str) -> NDArray[np.uint8]:
        return self._engine.pool(name)

    def close(self) -> None:
        self._engine.close()


@dataclass(slots=True)
class Witness:
    """What the loop tells of its steps."""

    drawn: int = 0
    preemptions: int = 0
    chained: int = 0
    kept: int = 0
    between: list[float] = field(default_factory=list)

    def stepped(self, tokens: int) -> None:
        pass

    def evicted(self, tokens: int) -> None:
        pass

    def admitted(self, sequence: Flight) -> None:
        pass

    def preempted(self, sequences: int) -> None:
        self.preemptions += sequences

    def drafted(self, outcome: Outcome) -> None:
        self.chained += len(outcome.draft.chain)
        self.kept += outcome.verdict.accepted

    def drew(self, sequence: Flight, since: float) -> None:
        self.drawn += 1
        if sequence.generated:
            self.between.append(since)

    def ended(self, sequence: Flight) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far everything was at the end of a round."""

    at: float
    drawn: int
    steps: int
    between: int
    preempted: int
    chained: int
    kept: int


class Track:
    """An engine, its loop and prompts, on which one load runs after the other."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, prompts: Prompts, speculator: Speculator | None = None
    ) -> None:
        self._clocked = Clocked(engine)
        self._witness = Witness()
        self._prompts = prompts
        self._failures: list[Failure] = []
        self._loop = EngineLoop(self._clocked, tokenizer, QUEUE, self._witness, speculator)

    def run(self, load: Load, rounds: int, advance: Advance = lambda done, total: None) -> Run:
        """So many rounds after a first wave. Raises what a request fails with."""
        wave = load.sequences
        total = wave * (1 + rounds)
        arrivals = _arrivals(load)
        flying: list[Flight] = []
        ended: list[Flight] = []
        began = self._mark()
        marks: list[_Mark] = []
        due, sent = next(arrivals), 0
        while len(ended) < total:
            while due <= time.monotonic() - began.at if load.rate else len(flying) < wave:
                flying += self._submit(load, sent)
                due, sent = next(arrivals), sent + 1
            if flying:
                self._loop.advance()
            else:
                time.sleep(min(NAP, max(0.0, began.at + due - time.monotonic())))
            self._raise_failure()
            ended += [one for one in flying if one.ending is not None]
            flying = [one for one in flying if one.ending is None]
            while len(ended) >= wave * (len(marks) + 1) and len(marks) <= rounds:
                marks.append(self._mark())
            advance(min(total, len(ended)) * load.output_tokens, total * load.output_tokens)
        self._empty(flying)
        return self._told(load, ended[wave:total], marks)

    def _submit(self, load: Load, sent: int) -> list[Flight]:
        tokens = load.output_tokens
        if load.rate is None and sent < load.sequences:
            tokens = -(-tokens * (sent + 1) // load.sequences)
        return self._loop.submit([(self._prompts.request(load.input_tokens, tokens), self._sink)])

    def _sink(self, piece: Delta | Failure) -> None:
        if isinstance(piece, Failure):
            self._failures.append(piece)

    def _raise_failure(self) -> None:
        if self._failures:
            raise InferCompileError(self._failures[0].problem)

    def _empty(self, flying: Sequence[Flight]) -> None:
        self._loop.cancel(flying)
        while not self._loop.scheduler.idle:
            self._loop.advance()

    def _mark(self) -> _Mark:
        seen = self._witness
        counts = (seen.drawn, len(self._clocked.steps), len(seen.between), seen.preemptions)
        return _Mark(time.monotonic(), *counts, seen.chained, seen.kept)

    def _told(self, load: Load, ended: list[Flight], marks: list[_Mark]) -> Run:
        first, last, wave = marks[0], marks[-1], load.sequences
        between = self._witness.between[first.between : last.between]
        return Run(
            load=load,
            rounds=tuple(
                _round(ended[index * wave : (index + 1) * wave], marks[index], marks[index + 1])
                for index in range(len(marks) - 1)
            ),
            seconds=last.at - first.at,
            first=tuple(one.times.first - one.times.arrived for one in ended),
            between=tuple(between),
            steps=tuple(self._clocked.steps[first.steps : last.steps]),
            drafted=Drafted(
                tokens=len(between),
                # Of several tokens that one step drew, all but the first came at the same time.
                steps=sum(seconds > 0 for seconds in between),
                chained=last.chained - first.chained,
                kept=last.kept - first.kept,
            ),
            preempted=last.preempted - first.preempted,
        )


def _round(ended: Sequence[Flight], before: _Mark, after: _Mark) -> Round:
    times = [one.times for one in ended]
    gaps = [one.generated - 1 for one in ended]
    itl = [(each.last - each.first) / count for each, count in zip(times, gaps, strict=True) if count]
    return Round(
        ttft=float(np.mean([each.first - each.arrived for each in times])),
        itl=float(np.mean(itl)) if itl else float("nan"),
        tokens_per_second=(after.drawn - before.drawn) / (after.at - before.at),
    )


def _arrivals(load: Load) -> Iterator[float]:
    """Seconds from the beginning at which requests of an open load come, at random."""
    gaps = np.random.default_rng(SEED)
    at = 0.0
    while True:
        yield at
        at += float(gaps.exponential(1 / load.rate)) if load.rate else 0.0
