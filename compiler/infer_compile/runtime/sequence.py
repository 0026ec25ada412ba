"""Requests, and the sequences that answer them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .errors import Problem
from .logprobs import TokenLogprobs
from .pages import PageTable
from .prefix import PageNames
from .rule import Rule
from .sampling import Controls, Sampler
from .speculation.draft import NOTHING, Draft
from .step import Int32, Sampling, SequenceStep
from .stops import StopStrings
from .tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length"]
Ending = Literal["stop", "length", "cancelled", "deadline", "error"]
FIRST_ROOM = 4096
"""Generated tokens that a sequence has room for at first."""
DECODED = 2
"""Tokens that a step which drew leaves to compute, at most: the last one, and the sibling of a draft before
it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued by at most ``max_tokens`` tokens."""

    prompt: Int32
    max_tokens: int
    controls: Controls = field(default_factory=Controls)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text and are no part of it."""
    logprobs: int | None = None
    """How many likeliest tokens to report beside each drawn one; None reports nothing."""
    rule: Rule | None = None
    """What the text follows; a text cut by ``max_tokens`` is the beginning of one that does."""
    forced: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    """Tokens that the answer begins with, whatever is drawn; they are the end of the prompt, for which
    log-probabilities are asked, and count among ``max_tokens``. ``rule`` is of what comes behind them."""
    keep_stop: bool = False
    """Whether the text holds the stop string that ends it."""
    keep_special: bool = False
    """Whether special tokens have a text."""
    priority: int = 0
    """Lower is served first, as in vLLM."""
    deadline: float | None = None
    """Monotonic seconds after which nobody waits for the answer."""
    salt: str = ""
    """Requests of another salt share no cached prefix with this one."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one carries the reason why it ends."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    evicted: int = 0
    """Of the last one: tokens that the sequence dropped on its way."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer ends here, by no fault of the request."""

    problem: Problem


Sink = Callable[[Delta | Failure], None]
"""Receives the pieces in order, from the engine's thread; must not block."""


@dataclass(slots=True)
class Times:
    """Monotonic seconds at which a sequence got somewhere; 0 is not yet."""

    arrived: float = 0.0
    admitted: float = 0.0
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0


class Sequence:
    """A request under way: its tokens, and how many of them the cache holds (``computed``).

    Scheduling knows one rule: ``computed`` chases ``length``. A prompt is far behind, a decode one token or
    two, and who lost its pages begins anew. ``draft`` guesses what comes behind ``length``: the next step may
    verify it.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, sink: Sink, now: float, page_tokens: int
    ) -> None:
        self.request = request
        self.sink = sink
        self.prompt_tokens = len(request.prompt)
        self.most = self.prompt_tokens + request.max_tokens
        """Tokens at which it ends."""
        self._tokens: Int32 = np.empty(min(self.most, self.prompt_tokens + FIRST_ROOM), np.int32)
        self._tokens[: self.prompt_tokens] = request.prompt
        self.length = self.prompt_tokens
        self.computed = 0
        self.cached_tokens = 0
        """Tokens of the prompt that the cache held already when the sequence began."""
        self.evicted = 0
        """Tokens that the cache held and dropped."""
        self.draft = NOTHING
        self.rank = (request.priority, 0)
        """Who is served first: by priority, then by arrival."""
        self.table: PageTable | None = None
        self.names = PageNames(page_tokens, request.salt)
        self.leader: tuple[PageTable, int] | None = None
        """Whose pages it waits for, and how many."""
        self.cancelled = False
        self.ending: Ending | None = None
        self.times = Times(arrived=now)
        guide = request.rule.matcher() if request.rule is not None else None
        prompt = np.concatenate([request.prompt, request.forced])
        self._sampler = Sampler(request.controls, prompt, guide, request.stop_ids, len(request.forced))
        self._detokenizer = Detokenizer(tokenizer, request.prompt, request.keep_special)
        self._stops = StopStrings(request.stop, request.keep_stop)

    @property
    def tokens(self) -> Int32:
        """The prompt and all that was drawn."""
        return self._tokens[: self.length]

    @property
    def sampling(self) -> Sampling:
        return self._sampler.sampling()

    @property
    def pending(self) -> int:
        """Tokens that the cache does not hold yet."""
        return self.length - self.computed

    @property
    def decoding(self) -> bool:
        """Whether it is as far as a step leaves it that drew a token."""
        return self.pending <= (DECODED if self.generated else 1)

    @property
    def generated(self) -> int:
        return self.length - self.prompt_tokens

    @property
    def answered(self) -> int:
        """Generated tokens behind those that were forced."""
        return max(0, self.generated - len(self.request.forced))

    @property
    def most_cached(self) -> int:
        """Tokens that the cache ever holds; the last drawn token is never computed."""
        return self.most - 1

    @property
    def draftable(self) -> bool:
        """Whether the next step draws one token, and could draw more behind it if they were guessed: what is
        drawn must not change how the next is."""
        return (
            self.decoding and self.length < self.most_cached and self._sampler.plain and not len(self.forced)
        )

    @property
    def forced(self) -> Int32:
        """What the next draws have to give."""
        return self.request.forced[self.generated :]

    @property
    def guess(self) -> Draft:
        """What the next step may compute behind the sequence's own tokens."""
        if len(self.forced):
            return Draft.line(self.forced[:-1])
        return self.draft if self.draftable else NOTHING

    def overdue(self, now: float) -> Ending | None:
        """Why nobody waits for it any more, if so."""
        if self.cancelled:
            return "cancelled"
        deadline = self.request.deadline
        return "deadline" if deadline is not None and now > deadline else None

    def name_pages(self) -> None:
        """Names the pages that its tokens fill."""
        self.names.reach(self.tokens)

    def step(self, table: PageTable, count: int, draft: Draft) -> SequenceStep:
        """The next ``count`` pending tokens as the engine takes them, and ``draft`` behind them; a token is
        drawn behind the last of the sequence's own, and one behind each that is guessed."""
        end = self.computed + count
        tokens = self._tokens[self.computed : end]
        return SequenceStep(
            tokens=np.concatenate([tokens, draft.tokens]) if draft.rows else tokens,
            start=self.computed,
            accepted=count,
            sealed=table.sealed,
            exact=table.exact.places,
            packed=table.packed.places,
            outputs=1 + draft.rows if end == self.length else 0,
            parents=draft.parents(count) if draft.rows else None,
            evicted=table.evicted,
            sampling=self._sampler.sampling(),
            mask=self._sampler.mask,
        )

    def push(self, token: int, logprobs: TokenLogprobs | None, now: float) -> Delta | None:
        """``token`` was drawn: the piece of the answer that it makes certain, None if none yet."""
        if self.length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self.length] = token
        self.length += 1
        self._sampler.push(token)
        self.times.first = self.times.first or now
        self.times.last = now
        told = (logprobs,) if logprobs is not None else ()
        if not self.answered:
            return Delta(self._detokenizer.push(token), told)
        if token in self.request.stop_ids:
            return self._end(self._detokenizer.flush(), told, "stop")
        text = self._detokenizer.push(token)
        if self.length == self.most:
            return self._end(text + self._detokenizer.flush(), told, "length")
        text, stopped = self._stops.push(text)
        if stopped:
            return Delta(text, told, "stop", self.evicted)
        return Delta(text, told) if text or told else None

    def _end(self, text: str, logprobs: tuple[TokenLogprobs, ...], finish: FinishReason) -> Delta:
        text, stopped = self._stops.push(text)
        if stopped:
            return Delta(text, logprobs, "stop", self.evicted)
        return Delta(text + self._stops.flush(), logprobs, finish, self.evicted)


def summary(sequences: list[Sequence]) -> str:
    """Tokens and speeds of the sequences of one request, for the log."""
    times = [sequence.times for sequence in sequences]
    prompt = sum(sequence.prompt_tokens for sequence in sequences)
    generated = sum(sequence.generated for sequence in sequences)
    parts = [f"in {prompt}", f"out {generated}"]
    if evicted := sum(sequence.evicted for sequence in sequences):
        parts.append(f"evicted {evicted}")
    if all(time.first for time in times):
        admitted, first, last = (
            min(t.admitted for t in times),
            max(t.first for t in times),
            max(t.last for t in times),
        )
        if first > admitted:
            parts[0] += f" ({prompt / (first - admitted):.1f} tok/s)"
        began = min(time.first for time in times)
        if last > began:
            parts[1] += f" ({(generated - len(times)) / (last - began):.1f} tok/s)"
    took = max(time.ended for time in times) - min(time.arrived for time in times)
    endings = "+".join(sorted({sequence.ending or "unfinished" for sequence in sequences}))
    return f"{', '.join(parts)}, {took:.2f} s, {endings}"
