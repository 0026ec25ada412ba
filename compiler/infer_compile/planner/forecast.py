"""What users see: time to the first token, time between tokens, tokens per second."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from ..catalog.coefficients import Queueing
from .latency import Runner, Times


@dataclass(frozen=True, slots=True)
class Load:
    """``concurrency`` sequences in flight, each replaced when it ends; with a ``rate`` (requests per second)
    not before the next one arrives."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    rate: float | None = None

    @property
    def decode_context(self) -> int:
        """Mean context of a decode step."""
        return self.input_tokens + max(1, self.output_tokens // 2)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds and tokens per second under a load; ``step`` is a decode step, ``prefill`` what the prompts of
    the other sequences add to it."""

    load: Load
    ttft: float
    step: Times
    prefill: Times
    prefill_tokens_per_second: float

    @property
    def itl(self) -> float:
        return self.step.total + self.prefill.total

    @property
    def request(self) -> float:
        """From arrival to the last token."""
        return self.ttft + (self.load.output_tokens - 1) * self.itl

    @property
    def tokens_per_second(self) -> float:
        """What is generated: with a rate, not more than arrivals ask for."""
        rate, most = self.load.rate, self.requests_per_second
        return self.load.output_tokens * (most if rate is None else min(rate, most))

    @property
    def tokens_per_second_per_user(self) -> float:
        return 1 / self.itl

    @property
    def requests_per_second(self) -> float:
        """As many as these sequences in flight could end."""
        return self.load.concurrency / self.request

    @property
    def terms(self) -> dict[str, float]:
        """Seconds of a decode step by what it waits for."""
        return {
            "weight bandwidth": self.step.weights,
            "cache bandwidth": self.step.cache,
            "compute": self.step.compute,
            "fixed cost": self.step.fixed,
            "interconnect": self.step.links,
            "prefill of other prompts": self.prefill.total,
        }

    @property
    def bottleneck(self) -> str:
        """The largest of ``terms``."""
        return max(self.terms, key=lambda name: self.terms[name])


def forecast(runner: Runner, load: Load, batch_tokens: int, queueing: Queueing) -> Forecast:
    """The behaviour of ``runner`` under ``load`` with at most ``batch_tokens`` tokens in a step.

    While a sequence decodes its answer, each of the others computes one prompt: that is what rides along in
    its decode steps. Where the token budget leaves less room, prompts wait and the first token is later.
    """
    others = load.concurrency - 1
    wanted = others * load.input_tokens / load.output_tokens
    room = max(1, batch_tokens - load.concurrency)
    step = runner.decode(load.concurrency, load.decode_context)
    prefill = runner.interleaved(min(wanted, room), load.input_tokens) if others else Times()
    alone = runner.prefill(load.input_tokens, batch_tokens).total
    waiting = max(0.0, wanted / room - 1) * load.output_tokens * (step.total + prefill.total)
    return Forecast(
        load=load,
        ttft=alone * queue_factor(load.concurrency, queueing) + waiting,
        step=step,
        prefill=prefill,
        prefill_tokens_per_second=load.input_tokens / alone,
    )


def queue_factor(concurrency: int, queueing: Queueing) -> float:
    """Time to the first token over the bare prefill: linear in the logarithm between the table's entries, and
    proportional to the concurrency beyond."""
    sizes, factors = queueing.concurrency, queueing.factor
    if concurrency >= sizes[-1]:
        return factors[-1] * concurrency / sizes[-1]
    if concurrency <= sizes[0]:
        return factors[0]
    above = next(i for i, size in enumerate(sizes) if size > concurrency)
    low, high = log2(sizes[above - 1]), log2(sizes[above])
    share = (log2(concurrency) - low) / (high - low)
    return factors[above - 1] + share * (factors[above] - factors[above - 1])
