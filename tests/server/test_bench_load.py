"""A load on an engine whose steps take known times: every figure is exact."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
import toy_model
from fake_engine import FakeEngine, saying, tiny_program

from infer_compile.evaluate.speed.load import Load, Prompts, Track
from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.speculation.ngram import Ngram
from infer_compile.runtime.speculation.speculator import Speculator
from infer_compile.runtime.step import SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer

STEP, TOKEN = 0.25, 0.125
"""Seconds of a step, and of each of its tokens: sums of them are exact."""


class Clock:
    now = 1.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Timed(FakeEngine):
    clock: Clock

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        result = super().step(batch, logits=logits, hidden=hidden)
        self.clock.now += STEP + TOKEN * sum(len(each.tokens) for each in batch)
        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    monkeypatch.setattr(time, "perf_counter", made)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(toy_model.write(tmp_path_factory.mktemp("toy")))


def engine(clock: Clock, **size: int) -> Timed:
    made = Timed(tiny_program(**size))
    made.clock = clock
    return made


def track(made: Timed, tokenizer: Tokenizer, speculator: Speculator | None = None) -> Track:
    return Track(made, tokenizer, Prompts(np.zeros(50, np.int32)), speculator)


def test_one_sequence(clock: Clock, tokenizer: Tokenizer) -> None:
    made = engine(clock)
    run = track(made, tokenizer).run(Load(1, 8, 5), 3)
    prompt, token = STEP + 8 * TOKEN, STEP + TOKEN
    assert len(run.rounds) == len(run.first) == 3 and set(run.first) == {prompt}
    for each in run.rounds:
        assert (each.ttft, each.itl) == (prompt, token)
        assert each.tokens_per_second == 5 / (prompt + 4 * token)
    assert run.between == (token,) * 12
    assert run.seconds == 3 * (prompt + 4 * token)
    assert run.decode_step() == token
    assert run.engine_share == 1 and run.preempted == 0
    # The first request is a whole one, and every prompt is computed, though all are alike.
    assert made.steps == [[8], [1], [1], [1], [1]] * 4


def test_a_long_prompt_takes_several_steps(clock: Clock, tokenizer: Tokenizer) -> None:
    run = track(engine(clock, batch_tokens=16), tokenizer).run(Load(1, 40, 1), 2)
    assert run.rounds[0].ttft == 3 * STEP + 40 * TOKEN
    assert math.isnan(run.rounds[0].itl) and run.between == () and run.decode_step() is None
    assert run.rounds[0].tokens_per_second == 1 / run.rounds[0].ttft


def test_a_load_stays_as_full_as_it_is_meant_to_be(clock: Clock, tokenizer: Tokenizer) -> None:
    made = engine(clock)
    run = track(made, tokenizer).run(Load(4, 8, 12), 3)
    assert len(run.first) == 12 and len(run.rounds) == 3
    # In every step each sequence draws a token, behind a prompt or behind the last one: 12 answers of 12.
    assert {each.sequences for each in run.steps} == {4} and len(run.steps) == 36
    assert sum(not each.decodes for each in run.steps) == 12
    assert run.seconds == 36 * STEP + (144 + 12 * 7) * TOKEN
    assert {each.tokens_per_second for each in run.rounds} == {3 * 48 / run.seconds}
    assert run.decode_step() == STEP + 4 * TOKEN
    # Others' prompts ride along in some steps, and nobody waits for all of them.
    assert STEP + 4 * TOKEN < run.rounds[-1].itl < STEP + 12 * TOKEN
    assert min(run.first) >= STEP + 8 * TOKEN and max(run.first) < 4 * (STEP + 12 * TOKEN)


def test_requests_of_an_open_load_come_when_they_come(clock: Clock, tokenizer: Tokenizer) -> None:
    """At a tenth of what the engine could do, each is nearly alone."""
    run = track(engine(clock), tokenizer).run(Load(2, 8, 2, rate=0.04), 4)
    alone = STEP + 8 * TOKEN
    assert sorted(run.first)[len(run.first) // 2] <= alone + STEP + TOKEN
    assert len(run.first) == 8 and run.seconds > 8 / 0.04 / 3
    assert run.engine_share < 0.3


def test_one_load_leaves_nothing_to_the_next(clock: Clock, tokenizer: Tokenizer) -> None:
    made = track(engine(clock), tokenizer)
    made.run(Load(4, 16, 8), 1)
    run = made.run(Load(1, 8, 5), 1)
    assert run.rounds[0].ttft == STEP + 8 * TOKEN and run.seconds == STEP + 8 * TOKEN + 4 * (STEP + TOKEN)


def test_tokens_of_a_step_that_verifies_drafts(clock: Clock, tokenizer: Tokenizer) -> None:
    made = engine(clock)
    made.logits = saying(lambda tokens: 65)
    drafting = Speculator(Ngram(), 3, 0.9, made.program.limits)
    run = track(made, tokenizer, drafting).run(Load(1, 8, 60), 4)
    drafted = run.drafted
    assert drafted.tokens == 4 * 59 == len(run.between)
    # All that is drafted is kept: each step gives what it drafted, and one more.
    assert drafted.kept == drafted.chained > 0
    assert drafted.tokens == drafted.steps + drafted.kept
    assert drafted.steps == len(run.steps) - 4


def test_a_request_that_fails_ends_it(clock: Clock, tokenizer: Tokenizer) -> None:
    made = engine(clock)
    made.failure = InferCompileError(Problem("IC522", "a key or a value is not a finite number"))
    with pytest.raises(InferCompileError) as raised:
        track(made, tokenizer).run(Load(1, 8, 5), 1)
    assert raised.value.problems[0].code == "IC522"


def test_progress_ends_with_all_of_it(clock: Clock, tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    track(engine(clock), tokenizer).run(Load(2, 4, 3), 2, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (18, 18) and seen == sorted(seen)


def test_prompts_are_cut_from_the_text_and_never_share_a_beginning() -> None:
    text = np.arange(10, dtype=np.int32)
    first, second = Prompts(text), Prompts(text)
    cut = [first.request(25, 4) for _ in range(3)]
    assert [each.prompt.tolist() for each in cut] == [second.request(25, 4).prompt.tolist() for _ in cut]
    for each in cut:
        assert np.all(np.diff(each.prompt) % 10 == 1) and each.max_tokens == 4
        assert not each.stop_ids and not each.stop
    assert len({each.salt for each in cut}) == 3
