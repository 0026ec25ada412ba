"""What speculation gains on the CPU engine: ``python benchmarks/speculation_cpu.py BUNDLE [--rounds N]``.

BUNDLE is one of the native engine with ``speculation: draft``, such as the quickstart's. Answers to the same
prompts are timed without drafts, with lookup, with the bundle's draft model and with lookahead, as chains and
with two choices for each token, as the server has them (lengths adapt) and with the plan's length in every
step; greedy and at temperature 1; alone and four at a time. In each round every way is timed once, between
two runs without drafts, and its tokens per second are divided by the mean of theirs, so that what else the
machine does weighs on both; the medians over the rounds are printed, and the lowest and highest. Every way
must give the same tokens.

"Kept" is by position: how often a draft was what was drawn, of those that came to be compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_compile.catalog.resources import folder
from infer_compile.runtime.bundle import Bundle, Opened, open_bundle
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request, Sequence
from infer_compile.runtime.speculation.lookahead import Lookahead
from infer_compile.runtime.speculation.ngram import Ngram
from infer_compile.runtime.speculation.proposer import Proposer
from infer_compile.runtime.speculation.speculator import Outcome, Speculator
from infer_compile.runtime.speculation.widths import full_widths
from infer_compile.runtime.tokenizer import Tokenizer

TOLD = 8
"""Positions that are told."""
WINDOW = (3, 3)
"""Level and columns of lookahead."""
SIBLINGS = 0.25
"""Expected share of the misses of a first choice that are the second, to begin with."""


@dataclass
class Drafts:
    """An observer of what is drafted: by position how many came to be compared, and how many were kept."""

    compared: NDArray[np.int64] = field(default_factory=lambda: np.zeros(TOLD, np.int64))
    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(TOLD, np.int64))
    steps: int = 0
    siblings: int = 0

    def drafted(self, outcome: Outcome) -> None:
        accepted = outcome.verdict.accepted
        self.compared[: min(len(outcome.draft.chain), accepted + 1)] += 1
        self.kept[:accepted] += 1
        self.siblings += outcome.verdict.choice > 0

    def stepped(self, tokens: int) -> None:
        self.steps += 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None


@dataclass(frozen=True)
class Run:
    tokens: list[list[int]]
    rate: float
    """Generated tokens of all sequences together per second, prompts included in the time."""


class Way:
    """One way of drafting, over all rounds."""

    def __init__(
        self, name: str, opened: Opened, tokenizer: Tokenizer, speculator: Speculator | None
    ) -> None:
        self.name = name
        self.drafts = Drafts()
        self._made = (opened.engine, tokenizer, 64, self.drafts, speculator)

    def run(self, requests: list[Request]) -> Run:
        loop = EngineLoop(*self._made)
        sequences: list[Sequence] = loop.submit((request, lambda piece: None) for request in requests)
        began = time.perf_counter()
        while not loop.scheduler.idle:
            loop.advance()
        seconds = time.perf_counter() - began
        generated = sum(sequence.generated for sequence in sequences)
        return Run([sequence.tokens.tolist() for sequence in sequences], generated / seconds)


def ways(bundle: Bundle, opened: Opened, tokenizer: Tokenizer) -> list[Way]:
    planned, limits = bundle.manifest.speculation, bundle.program.limits
    if planned is None or opened.speculator is None or planned.draft is None:
        raise SystemExit("the bundle has no draft model: build it with pin: {speculation: draft}")
    guesses = Lookahead(*WINDOW)
    methods: dict[str, tuple[Proposer, int, int]] = {
        "ngram": (Ngram(), planned.tokens, 0),
        "draft": (opened.speculator.proposer, planned.tokens, 0),
        "lookahead": (guesses, WINDOW[0] - 1, guesses.window),
    }

    def way(method: str, width: int, always: bool) -> Way:
        proposer, count, window = methods[method]
        made = Speculator(proposer, count, planned.acceptance, limits, width, SIBLINGS, window)
        name = method if width == 1 else f"{method}, {width} choices"
        if always:
            made.pace = Always(count, width, window)
            name += f", {count} in every step"
        return Way(name, opened, tokenizer, made)

    return [way(method, width, always) for always in (False, True) for width in (1, 2) for method in methods]


class Always:
    """Drafts as many as it may, whether it pays or not."""

    def __init__(self, tokens: int, width: int, window: int) -> None:
        self._shape, self._window = (tokens, width), window

    def widths(self, keys: list[object], total: int) -> list[NDArray[np.int64]]:
        most = min(total // len(keys) - self._window, math.prod(self._shape))
        return [full_widths(most, *self._shape)] * len(keys)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None


def prompts(tokenizer: Tokenizer, count: int, length: int) -> list[NDArray[np.int32]]:
    text = (folder("specs") / "texts" / "evaluation.txt").read_text(encoding="utf-8")
    tokens = tokenizer.encode(text, special=False)
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return [np.asarray(tokens[start : start + length], np.int32) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--busy",
        action="store_true",
        help="others use the machine: with one thread, the processor's time instead of the clock's",
    )
    options = parser.parse_args()
    if options.busy:
        options.threads, time.perf_counter = 1, time.process_time
    bundle = open_bundle(options.bundle)
    tokenizer = Tokenizer(bundle.model_dir)
    print("| sequences | temperature | drafts | against none | tokens per step | kept by position |")
    print("|---|---|---|---|---|---|")
    with bundle.opened(options.threads) as opened:
        for sequences in (1, 4):
            for temperature in (0.0, 1.0):
                for row in measure(bundle, opened, tokenizer, sequences, temperature, options):
                    print(row, flush=True)


def measure(
    bundle: Bundle,
    opened: Opened,
    tokenizer: Tokenizer,
    sequences: int,
    temperature: float,
    options: argparse.Namespace,
) -> Iterator[str]:
    """Rows of the table."""
    plain, drafting = Way("none", opened, tokenizer, None), ways(bundle, opened, tokenizer)
    texts = prompts(tokenizer, sequences * options.rounds, options.prompt)
    rates: list[float] = []
    gains: dict[str, list[float]] = {way.name: [] for way in drafting}
    for index in range(options.rounds):
        requests = [
            Request(text, options.answer, Controls(temperature=temperature, seed=seed))
            for seed, text in enumerate(texts[index :: options.rounds])
        ]
        before = plain.run(requests)
        rates.append(before.rate)
        for way in drafting:
            drafted, after = way.run(requests), plain.run(requests)
            if drafted.tokens != before.tokens:
                raise SystemExit(f"{way.name} gave other tokens than no drafts")
            gains[way.name].append(2 * drafted.rate / (before.rate + after.rate))
            rates.append(after.rate)
            before = after
    head = f"| {sequences} | {temperature:g} |"
    yield f"{head} none | {statistics.median(rates):.0f} tokens/s | {sequences} | |"
    for way in drafting:
        gain, steps = gains[way.name], way.drafts.steps
        share = way.drafts.kept / np.maximum(way.drafts.compared, 1)
        kept = " ".join(f"{each:.2f}" for each in share[way.drafts.compared > 0])
        kept += f", {way.drafts.siblings} siblings" if way.drafts.siblings else ""
        yield (
            f"{head} {way.name} | {statistics.median(gain):.2f} ({min(gain):.2f}-{max(gain):.2f}) | "
            f"{sequences * options.answer * options.rounds / steps:.2f} | {kept} |"
        )


if __name__ == "__main__":
    main()
