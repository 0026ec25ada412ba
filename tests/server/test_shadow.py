"""Answers that are checked against an exact cache: which, when, in whose pages, and who waits for it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, chain_after, random_logits, tiny_program
from test_scheduler import Answer, run, submit

from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.formats.paging import CHECK_STEP
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.measure import measure
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.shadow import WAITING, Shadow, drift_percent
from infer_compile.runtime.step import SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer

LONGEST = 100
PROMPT = np.random.default_rng(3).integers(0, 256, 90).astype(np.int32)


@dataclass
class Found:
    """What was reported."""

    checks: list[tuple[int, float]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def checked(self, tokens: int, nats: float) -> None:
        self.checks.append((tokens, nats))

    def unchecked(self, why: str) -> None:
        self.reasons.append(why)


class Lossy(FakeEngine):
    """What is seen compressed shifts the logits of token 7 by ``shift``: the divergence is known."""

    shift = 0.0

    def step(self, batch: list[SequenceStep], **asked: bool) -> StepResult:
        result = super().step(batch, **asked)
        if result.logits is not None and batch[0].packed is not None:
            result.logits[:, 7] += self.shift
        return result


def checking(
    tokenizer: Tokenizer, fraction: float = 1.0, *, kind: type[FakeEngine] = FakeEngine, **program: object
) -> tuple[EngineLoop, FakeEngine, Found]:
    engine, found = kind(tiny_program(**{"checked": LONGEST} | program)), Found()
    loop = EngineLoop(engine, tokenizer, 64, shadow=Shadow(engine, fraction, found))
    return loop, engine, found


def request(prompt: int = 20, tokens: int = 30, **rest: object) -> Request:
    return Request(PROMPT[:prompt], tokens, Controls(temperature=1.0, seed=1), **rest)


def finish(loop: EngineLoop) -> int:
    """Checks what waits to be checked; in so many steps of the loop."""
    for steps in range(10_000):
        if loop._resting:
            return steps
        loop.advance()
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    "layout",
    [
        {"sink": 1, "recent": 1},
        {"sink": 0, "recent": 0},
        {"level": "bf16"},
        {"sink": 1, "window": 13},
        {"sink": 1, "overflow": "evict"},
    ],
)
def test_both_caches_are_held_to_the_contract(tokenizer: Tokenizer, layout: dict[str, object]) -> None:
    """The engine refuses to read a page that is missing, stale or somebody else's; of a cache that changes
    nothing, nothing is found."""
    loop, _, found = checking(tokenizer, **layout)
    for prompt, tokens in ((1, 1), (20, 30), (60, 40), (3, 97)):
        submit(loop, request(prompt, tokens))
        run(loop)
        finish(loop)
    assert found.checks == [(1, 0), (30, 0), (40, 0), (97, 0)]
    assert (loop.pages.exact.used, loop.pages.packed.used) == (0, 0)


def test_the_divergence_is_that_of_the_answers_rows(tokenizer: Tokenizer) -> None:
    loop, engine, found = checking(tokenizer, kind=Lossy)
    (answer,) = submit(loop, request(prompt=20, tokens=30))
    run(loop)
    engine.shift = 1.5
    finish(loop)
    tokens, expected, chain = answer.sequence.tokens.tolist(), 0.0, 0
    for place, token in enumerate(tokens[:-1]):
        chain = chain_after(chain, token)
        if place < 19:
            continue
        exact = random_logits(tokens[: place + 1], chain).astype(np.float64)
        served = exact.copy()
        served[7] += 1.5
        logs = [row - math.log(np.exp(row).sum()) for row in (exact, served)]
        expected += float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())
    ((count, nats),) = found.checks
    assert count == 30
    assert nats == pytest.approx(expected, rel=1e-5)
    assert drift_percent(nats, count) == pytest.approx(100 * (math.exp(expected / 30) - 1), rel=1e-5)


def test_which_answers_are_checked(tokenizer: Tokenizer) -> None:
    loop, _, found = checking(tokenizer, checked=40)
    submit(loop, request(20, 30))
    run(loop)
    assert (found.reasons, loop._resting) == (["too_long"], True)
    # Of forced tokens, the end of a prompt, nothing is checked.
    sequences = loop.submit([(request(10, 20), lambda piece: None)])
    loop.advance()
    loop.cancel(sequences)
    run(loop)
    assert loop._resting, "nobody waited for this one"
    for _ in range(WAITING + 3):
        submit(loop, request(4, 2))
    run(loop)
    assert found.reasons == ["too_long", "busy", "busy", "busy"]
    finish(loop)
    assert [tokens for tokens, _ in found.checks] == [2] * WAITING


def test_the_fraction(tokenizer: Tokenizer) -> None:
    counts = []
    for fraction in (0.0, 0.25, 1.0):
        loop, engine, found = checking(tokenizer, fraction)
        loop._shadow._draw = random.Random(1)
        for _ in range(40):
            submit(loop, request(4, 2))
            run(loop)
            before = len(engine.steps)
            finish(loop)
            assert fraction or len(engine.steps) == before
        counts.append(len(found.checks))
    draw = random.Random(1)
    assert counts == [0, sum(draw.random() < 0.25 for _ in range(40)), 40]


def test_a_request_waits_for_two_small_steps_at_most(tokenizer: Tokenizer) -> None:
    loop, engine, found = checking(tokenizer)
    submit(loop, request(40, 50))
    run(loop)
    whole = finish(loop)
    assert whole == math.ceil(89 / CHECK_STEP)
    for after in range(whole):
        submit(loop, request(40, 50))
        run(loop)
        for _ in range(after):
            loop.advance()
        before = len(engine.steps)
        (other,) = submit(loop, request(3, 1))
        loop.advance()
        assert other.finish == "length", "it is served before the check goes on"
        assert engine.steps[before:] == [[3]]
        loop.advance()
        assert len(engine.steps) <= before + 3, "one step in either cache, and then it is looked up again"
        finish(loop)
    # What a step of a check takes is all that anybody ever waits for.
    checks = [step for step in engine.steps if step not in ([1], [3], [40])]
    assert max(sum(step) for step in checks) <= CHECK_STEP
    assert len(found.checks) == 1 + 2 * whole


def test_it_takes_nothing_from_the_sequences(tokenizer: Tokenizer) -> None:
    """The same requests, with checks and without: the same answers, the same hits of the prefix cache, the
    same pages, in pools that are full."""
    outcomes = []
    for fraction in (0.0, 1.0):
        loop, _, found = checking(tokenizer, fraction, exact_pages=14, packed_pages=24, context=96)
        answers: list[Answer] = []
        for turn in range(12):
            start = 7 * (turn % 2)
            answers += submit(loop, Request(PROMPT[start : start + 40], 8, Controls(1.0, seed=turn)))
            run(loop)
            finish(loop)
        cached = [answer.sequence.cached_tokens for answer in answers]
        names = [pool._names for pool in (loop.pages.exact, loop.pages.packed)]
        outcomes.append(([answer.sequence.tokens.tolist() for answer in answers], cached, names))
        assert any(cached)
        assert len(found.checks) == 12 * fraction
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("failure", [InferCompileError(Problem("IC522", "not finite")), MemoryError()])
def test_a_check_that_fails_ends_checking_and_no_answer(tokenizer: Tokenizer, failure: Exception) -> None:
    loop, engine, found = checking(tokenizer)
    submit(loop, request())
    run(loop)
    engine.failure = failure
    loop.advance()
    assert loop._resting
    (answer,) = submit(loop, request())
    run(loop)
    assert answer.finish == "length"
    assert (found.checks, loop._resting) == ([], True)


def test_a_bundle_without_pages_for_it_says_so(tokenizer: Tokenizer) -> None:
    with pytest.raises(InferCompileError) as refused:
        checking(tokenizer, checked=0)
    assert refused.value.problems[0].code == "IC512"


def test_the_server_exports_it(model_dir: Path) -> None:
    engine = Lossy(tiny_program(checked=LONGEST))
    engine.shift = 1.0
    with serving(engine, model_dir, shadow=1.0) as running:
        ask(running)
        running.wait(lambda: running.metric("infer_shadow_answers_total", outcome="checked") == 1)
        nats = running.metric("infer_shadow_divergence_nats_total")
        assert running.metric("infer_shadow_tokens_total") == 12
        assert nats > 0
        drift = running.metric("infer_perplexity_drift_percent_sum")
        assert drift == pytest.approx(drift_percent(nats, 12))
        # What is measured at the start lies in the pages that are served, and stays right.
        assert measure(engine) == running.service.measured


def ask(running: Running) -> None:
    body = {"prompt": "abc", "max_tokens": 12, "temperature": 1, "seed": 3, "ignore_eos": True}
    assert running.http.post("/v1/completions", json=body).status_code == 200
