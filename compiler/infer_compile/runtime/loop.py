"""The engine's thread: schedules, steps, hands out what was drawn."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from .errors import InferCompileError, Problem
from .logprobs import token_logprobs
from .pages import Pages
from .pool import broken
from .scheduler import Scheduler, Work
from .sequence import Delta, Ending, Failure, Request, Sequence, Sink
from .shadow import Shadow
from .speculation.draft import Verdict
from .speculation.proposer import Seen
from .speculation.speculator import Outcome, Speculator
from .step import Engine, Float32, StepResult
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

PACE = 0.2
"""Weight of the newest interval in the mean time between two finished sequences."""
MOST_POSITIONS = 2**31 - 1
"""A position has 32 bits."""
LONGEST_RETRY = 60
"""Seconds; nobody is told to come back later than this."""


class Observer(Protocol):
    """Told what happens, from the engine's thread."""

    def stepped(self, tokens: int) -> None:
        """A step computed ``tokens`` tokens."""

    def evicted(self, tokens: int) -> None:
        """A sequence dropped ``tokens`` of its oldest tokens."""

    def admitted(self, sequence: Sequence) -> None:
        """``sequence`` begins; the cache held ``cached_tokens`` of its prompt."""

    def preempted(self, sequences: int) -> None:
        """So many sequences gave their pages to others, and will begin anew."""

    def drafted(self, outcome: Outcome) -> None:
        """A step verified a draft of a sequence."""

    def drew(self, sequence: Sequence, since: float) -> None:
        """A token was drawn, ``since`` seconds after the previous one or, the first, after the arrival."""

    def ended(self, sequence: Sequence) -> None: ...


class EngineLoop:
    """Runs sequences on ``engine``. All public methods may be called from any thread.

    A coded error of a step fails the sequences that were in it. Any other error is a defect: it ends the
    thread, fails every sequence, and ``alive`` stays false.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        queue: int,
        observer: Observer | None = None,
        speculator: Speculator | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        program = engine.program
        self.engine = engine
        self.tokenizer = tokenizer
        self.pages = Pages(program.cache, program.limits)
        self.scheduler = Scheduler(self.pages, program.limits, queue)
        self.context = self.pages.capacity
        """Most tokens of one sequence that the cache holds."""
        self.longest = MOST_POSITIONS if program.limits.overflow == "evict" else self.context
        """Most tokens of one prompt and its answer."""
        self.alive = True
        self._observer = observer
        self._speculator = speculator
        self._shadow = shadow
        self._tells_tokens = self._told and program.tells_tokens
        self._wake = threading.Condition()
        self._closing = False
        self._interval = 0.0
        self._last_end = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the step under way; what is unfinished fails."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def submit(self, requests: Iterable[tuple[Request, Sink]]) -> list[Sequence]:
        """Queues all requests, or none and raises QueueFull. Each must fit into ``longest``."""
        now = time.monotonic()
        size = self.pages.layout.page_tokens
        sequences = [Sequence(request, self.tokenizer, sink, now, size) for request, sink in requests]
        with self._wake:
            if self._closing or not self.alive:
                raise InferCompileError(STOPPED)
            self.scheduler.add(sequences)
            self._wake.notify()
        return sequences

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Nobody waits for ``sequences`` any more: they end with the step under way."""
        with self._wake:
            for sequence in sequences:
                sequence.cancelled = True
            self._wake.notify()

    def answer_tokens(self, prompt: int) -> int:
        """Tokens of an answer that names no limit: up to the end of the context. Where a sequence may outgrow
        it, a whole context more than the prompt: who wants an endless answer says so."""
        left = self.longest - prompt
        return left if self.longest == self.context else min(self.context, left)

    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely to be free."""
        return min(LONGEST_RETRY, max(1, math.ceil(self._interval)))

    def advance(self) -> None:
        """One step, if there is work, or where nobody waits for an answer the next tokens of a check; the
        thread does this, or a caller without one."""
        if self._shadow is not None and self._shadow.pending and self.scheduler.idle:
            self._shadow.advance()
            return
        if self._speculator is not None:
            self._speculator.draft(self.scheduler.running)
        with self._wake:
            now = time.monotonic()
            overdue = self.scheduler.overdue(now)
            for sequence, why in overdue:
                self._finish(sequence, why, now)
            step = self.scheduler.schedule(now)
        for sequence, why in overdue:
            if why == "deadline":
                sequence.sink(Failure(OVERDUE))
        if self._observer is not None:
            for sequence in step.admitted:
                self._observer.admitted(sequence)
            if step.preempted:
                self._observer.preempted(step.preempted)
        if step.work:
            self._step(step.work)

    def _run(self) -> None:
        try:
            while self._wait():
                self.advance()
        except InferCompileError as error:
            log.error("%s", error)
        finally:
            self._fail_everything()

    def _wait(self) -> bool:
        """Returns when there is work; false when it is time to end."""
        with self._wake:
            if self._resting:
                self._check_idle()
            while self._resting and not self._closing:
                self._wake.wait()
            return not self._closing

    @property
    def _resting(self) -> bool:
        """Whether there is nothing to compute."""
        return self.scheduler.idle and not (self._shadow is not None and self._shadow.pending)

    def _check_idle(self) -> None:
        if self._speculator is not None:
            self._speculator.idle()
        self.pages.check()
        if self.pages.tables:
            raise broken(f"{len(self.pages.tables)} page tables are open, but no sequence is")

    def _step(self, work: list[Work]) -> None:
        logits = any(part.sequence.request.logprobs is not None and part.step.outputs for part in work)
        try:
            result = self.engine.step([part.step for part in work], logits=logits, hidden=self._told)
        except InferCompileError as error:
            self._fail([part.sequence for part in work], error.problems[0])
            return
        except MemoryError:
            self._fail([part.sequence for part in work], OUT_OF_MEMORY)
            return
        if self._observer is not None:
            self._observer.stepped(sum(len(part.step.tokens) for part in work))
            self._observer.evicted(sum(part.evicted for part in work))
        self._hand_out(work, result)

    @property
    def _told(self) -> bool:
        """Whether somebody wants the hidden states of steps."""
        return self._speculator is not None and self._speculator.reads

    def _hand_out(self, work: list[Work], result: StepResult) -> None:
        now = time.monotonic()
        row = 0
        outcomes = []
        verdicts = []
        for part, tokens in zip(work, result.tokens, strict=True):
            rows = None if result.logits is None else result.logits[row : row + part.step.outputs]
            row += part.step.outputs
            forced = part.sequence.forced[: len(tokens)].tolist()
            sampled = forced + tokens[len(forced) :].tolist()
            verdict = part.draft.verdict(sampled)
            verdicts.append(verdict)
            if part.draft.rows and not forced:
                outcomes.append(Outcome(part.sequence, part.draft, verdict, part.draft.looked(sampled)))
            try:
                self._draw(part, verdict, sampled, rows, now)
            except InferCompileError as error:
                self._fail([part.sequence], error.problems[0])
        if self._observer is not None:
            for outcome in outcomes:
                self._observer.drafted(outcome)
        if self._speculator is not None:
            computed = sum(len(part.step.tokens) for part in work)
            self._speculator.stepped(outcomes, computed, all(part.decodes for part in work))
            if result.hidden is not None:
                self._speculator.read(self._seen(work, verdicts, result.hidden))

    def _seen(self, work: list[Work], verdicts: list[Verdict], hidden: Float32) -> list[Seen]:
        """The hidden states of tokens that stay, of the sequences that go on."""
        seen, row, whole = [], 0, self._tells_tokens
        for part, verdict in zip(work, verdicts, strict=True):
            step, sequence = part.step, part.sequence
            before = len(step.tokens) - step.outputs
            first = before if whole else 0
            kept = [*range(first), *(first + drawn for drawn in verdict.rows)]
            if kept and sequence.ending is None and not sequence.cancelled:
                end = step.start + before + len(verdict.rows)
                seen.append(Seen(sequence, sequence.tokens, end, hidden[row:][kept]))
            row += len(step.tokens) if whole else step.outputs
        return seen

    def _draw(
        self, part: Work, verdict: Verdict, sampled: list[int], logits: Float32 | None, now: float
    ) -> None:
        """Adds what a step drew to its sequence, up to the token that ends it, and hands it out."""
        sequence, wanted = part.sequence, part.sequence.request.logprobs
        deltas: list[Delta] = []
        drawn = 0
        for row in () if sequence.cancelled else verdict.rows:
            token, told = sampled[row], None
            if wanted is not None and logits is not None:
                told = token_logprobs(logits[row], token, wanted)
            if self._observer is not None:
                self._observer.drew(sequence, now - (sequence.times.last or sequence.times.arrived))
            delta = sequence.push(token, told, now)
            drawn += 1
            deltas += [] if delta is None else [delta]
            if delta is not None and delta.finish is not None:
                break
        self.scheduler.commit(part, min(verdict.accepted, max(0, drawn - 1)))
        if deltas and (finish := deltas[-1].finish) is not None:
            with self._wake:
                self._finish(sequence, finish, now)
        for delta in deltas:
            sequence.sink(delta)

    def _finish(self, sequence: Sequence, ending: Ending, now: float) -> None:
        self.scheduler.finish(sequence, ending, now)
        interval = now - max(self._last_end, sequence.times.arrived)
        self._interval = interval if not self._last_end else PACE * interval + (1 - PACE) * self._interval
        self._last_end = now
        if self._observer is not None:
            self._observer.ended(sequence)
        if self._shadow is not None:
            self._shadow.ended(sequence)

    def _fail(self, sequences: list[Sequence], problem: Problem) -> None:
        log.error("%s", problem)
        now = time.monotonic()
        with self._wake:
            for sequence in sequences:
                self._finish(sequence, "error", now)
        for sequence in sequences:
            sequence.sink(Failure(problem))

    def _fail_everything(self) -> None:
        with self._wake:
            self.alive = False
            sequences = [*self.scheduler.running, *self.scheduler.waiting]
        if sequences:
            self._fail(sequences, STOPPED)


STOPPED = Problem(
    "IC507", "the server is stopping", fix="send the request to another replica, or again later"
)
OVERDUE = Problem(
    "IC511",
    "the answer was not finished in time",
    because="the request's deadline has passed",
    fix="allow it more time, or ask for fewer tokens",
)
OUT_OF_MEMORY = Problem(
    "IC506", "a step ran out of memory", fix="lower concurrency or the planned batch limits, or free memory"
)
