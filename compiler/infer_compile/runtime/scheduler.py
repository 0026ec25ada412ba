"""Continuous batching under one budget of tokens per step."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from .formats.program import Limits
from .pages import Pages, PageTable
from .sequence import DECODED, Ending, Sequence
from .speculation.draft import NOTHING, Draft
from .step import SequenceStep


class QueueFull(Exception):
    """More sequences than the server is willing to let wait."""


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's share of a step: tokens of its own, and behind them ``draft``."""

    sequence: Sequence
    table: PageTable
    step: SequenceStep
    draft: Draft
    evicted: int
    """Tokens of the sequence that were dropped for it."""

    @property
    def decodes(self) -> bool:
        """Whether it is none of a prompt that is still computed."""
        return self.step.accepted <= DECODED


@dataclass(frozen=True, slots=True)
class Schedule:
    """The next step, who begins with it, and how many had to give their pages to others."""

    work: list[Work]
    admitted: list[Sequence]
    preempted: int


class Scheduler:
    """Who computes how many tokens in the next step.

    All are served by rank: lower priority first, of equals who came first. Every running sequence that drew
    is in every step: no more run than a step has tokens. Then the queue is admitted, in order,
    as long as the tokens of everybody who runs, and a page of new ones each, fit into the free pages; but who
    begins as somebody does whose prompt is under way waits for those pages, and others pass. What decodes
    leave of the budget goes to prompts: half of it to the first by rank, which thus always comes to
    its end, the rest, within a priority, to those that have least left, so that a long prompt does not hold
    up the short ones behind it. What is left at last verifies drafts.

    Pages are not reserved. Who finds none takes them from who ranks last, which computes its tokens again
    when there is room: engines' results depend on neither chunks nor company, so nobody's answer changes. The
    first by rank can take from everybody, and alone each fits; so it always gets on, and everybody ends.
    """

    def __init__(self, pages: Pages, limits: Limits, queue: int) -> None:
        self.pages = pages
        self.budget = limits.max_batch_tokens
        self.outputs = limits.max_outputs
        self.most_running = limits.max_sequences
        self.queue = queue
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        """Both by rank."""
        self._arrivals = 0
        self._blocked: tuple[Sequence, int, int, int] | None = None
        """Who waits for pages, and what there was when there were too few."""

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequences: list[Sequence]) -> None:
        """Queues all of ``sequences``, or none and raises QueueFull."""
        present = len(self.waiting) + len(self.running)
        if present + len(sequences) > self.most_running + self.queue:
            raise QueueFull
        for sequence in sequences:
            self._arrivals += 1
            sequence.rank = (sequence.request.priority, self._arrivals)
            insort(self.waiting, sequence, key=_rank)

    def schedule(self, now: float) -> Schedule:
        """The next step; without work only when nothing is left to do."""
        step = _Step(self)
        others = len(self.running)
        for sequence in [one for one in self.running if one.decoding]:
            # A token is left for everybody else.
            others -= 1
            step.take(sequence, min(sequence.pending, step.budget - others))
        admitted = self._admit(step, now)
        self._compute_prompts(step)
        step.verify_drafts()
        return Schedule(step.work(), admitted, step.preempted)

    def _admit(self, step: _Step, now: float) -> list[Sequence]:
        """Moves sequences from the queue into the batch; those that begin for the first time."""
        admitted: list[Sequence] = []
        for sequence in list(self.waiting):
            if self._full and self.running[-1].rank < sequence.rank:
                break
            if self._follows(sequence):
                continue
            while self._full or not self._open(sequence):
                if not self.running or self.running[-1].rank < sequence.rank:
                    return admitted
                step.preempt(self.running[-1])
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_rank)
            if not sequence.times.admitted:
                sequence.times.admitted = now
                sequence.cached_tokens = sequence.computed
                admitted.append(sequence)
        return admitted

    @property
    def _full(self) -> bool:
        return len(self.running) == min(self.most_running, self.budget)

    def _follows(self, sequence: Sequence) -> bool:
        """Whether ``sequence`` is better off waiting: somebody of better rank is about to compute pages that
        it begins with as well. That one is told to keep what a sequence needs to go on where they part."""
        if sequence.leader is not None:
            table, border = sequence.leader
            if table in self.pages.tables and table.sealed < border:
                return True
            sequence.leader = None
        sequence.name_pages()
        for other in self.running:
            if other.table is None or other.decoding or other.rank > sequence.rank:
                continue
            border = min(sequence.names.common(other.names), self.pages.most_held(sequence.length))
            if other.table.sealed < border > self.pages.held(sequence.names, sequence.length):
                other.table.borders = (*other.table.borders, border)
                sequence.leader = (other.table, border)
                return True
        return False

    def _open(self, sequence: Sequence) -> bool:
        """Opens a table for ``sequence`` if there are pages for it beside everybody who runs."""
        pages = self.pages
        state = (sequence, len(self.running), len(pages.exact.free), len(pages.packed.free))
        if state == self._blocked:
            return False
        table = pages.open(sequence.names, sequence.length)
        everybody = [(sequence, table), *((other, other.table) for other in self.running)]
        more = pages.layout.page_tokens
        if not pages.fits(
            (held, min(one.length + more, one.most_cached)) for one, held in everybody if held is not None
        ):
            pages.close(table)
            self._blocked = state
            return False
        sequence.table, sequence.computed = table, table.tokens
        return True

    def _compute_prompts(self, step: _Step) -> None:
        prompts = [sequence for sequence in self.running if sequence not in step.counts]
        if not prompts:
            return
        left = step.budget
        shares = dict.fromkeys(prompts, 0)
        first = prompts[0]
        shares[first] = min(first.pending, -(-left // 2))
        left -= shares[first]
        for sequence in sorted(prompts, key=lambda one: (one.request.priority, one.pending)):
            more = min(sequence.pending - shares[sequence], left)
            shares[sequence] += more
            left -= more
        for sequence in prompts:
            if shares[sequence] and sequence.table is not None:
                step.take(sequence, shares[sequence])

    def overdue(self, now: float) -> list[tuple[Sequence, Ending]]:
        """Sequences that nobody waits for any more, and why; the caller finishes them."""
        present = [*self.running, *self.waiting]
        return [(sequence, why) for sequence in present if (why := sequence.overdue(now)) is not None]

    def commit(self, work: Work, kept: int) -> None:
        """The step of ``work`` is done and its tokens are in the cache; what was drawn was added to the
        sequence, and the first ``kept`` tokens of the draft's chain are among it."""
        sequence = work.sequence
        sequence.computed += work.step.accepted + kept
        sequence.draft = NOTHING
        if self._fills(work.table, work.step):
            sequence.name_pages()
        self.pages.commit(work.table, sequence.computed, kept)

    def _fills(self, table: PageTable, step: SequenceStep) -> bool:
        return (step.start + step.accepted) // self.pages.layout.page_tokens > table.sealed

    def preempt(self, sequence: Sequence) -> None:
        """``sequence`` gives its pages to others, and waits for new ones."""
        self.running.remove(sequence)
        self._close(sequence)
        sequence.computed = 0
        sequence.draft = NOTHING
        insort(self.waiting, sequence, key=_rank)

    def finish(self, sequence: Sequence, ending: Ending, now: float) -> None:
        """Takes ``sequence`` out and gives its pages back."""
        if sequence.table is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._close(sequence)
        sequence.ending = ending
        sequence.times.ended = now

    def _close(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self.pages.close(sequence.table)
            sequence.table = None


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class _Step:
    """A step while it is put together: who computes how many tokens, and the pages for them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._pages = scheduler.pages
        self._drafts: dict[Sequence, Draft] = {}
        self._evicted: dict[Sequence, int] = {}
        self.counts: dict[Sequence, int] = {}
        """Tokens that are certain, of each sequence."""
        self.preempted = 0

    @property
    def budget(self) -> int:
        """Tokens that are left."""
        return self._scheduler.budget - sum(self.counts.values())

    def take(self, sequence: Sequence, count: int) -> None:
        """Up to ``count`` tokens of ``sequence``, and one at least, for which those who rank behind it give
        their pages; none if it ranks last itself, and gives its own."""
        table, start = sequence.table, sequence.computed
        if table is None:
            return
        before = sequence.evicted
        self._pages.evict(table, start)
        while not (room := self._pages.room(table, start, count)):
            last = self._scheduler.running[-1]
            self.preempt(last)
            if last is sequence:
                return
        self._pages.prepare(table, start, room, room)
        sequence.evicted = max(before, table.evicted)
        self._evicted[sequence] = sequence.evicted - before
        self.counts[sequence] = room

    def preempt(self, sequence: Sequence) -> None:
        self._scheduler.preempt(sequence)
        self.counts.pop(sequence, None)
        self.preempted += 1

    def verify_drafts(self) -> None:
        """Gives what is left of budget, rows and free pages to drafts, by rank."""
        drawing = [one for one, count in self.counts.items() if one.pending == count]
        left = min(self.budget, self._scheduler.outputs - len(drawing))
        for sequence in drawing:
            table, start, certain = sequence.table, sequence.computed, sequence.pending
            guess = sequence.guess
            if table is None or left <= 0 or not guess.rows:
                continue
            # Slots of siblings, too, lie within the context.
            most = max(0, min(left, self._pages.capacity + table.evicted - sequence.length))
            draft = guess.cut(most, certain)
            count = self._pages.room(table, start, certain + draft.rows, certain)
            self._pages.prepare(table, start, count, certain)
            draft = draft.cut(count - certain, certain)
            self._drafts[sequence] = draft
            left -= draft.rows

    def work(self) -> list[Work]:
        return [
            Work(
                sequence,
                sequence.table,
                sequence.step(sequence.table, count, self._drafts.get(sequence, NOTHING)),
                self._drafts.get(sequence, NOTHING),
                self._evicted[sequence],
            )
            for sequence, count in self.counts.items()
            if sequence.table is not None
        ]
