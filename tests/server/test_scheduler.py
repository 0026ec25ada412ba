"""Continuous batching: who is in a step, and that company never changes an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import toy_model
from fake_engine import FakeEngine, saying, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.scheduler import QueueFull
from infer_compile.runtime.sequence import Delta, Failure, Request, Sequence
from infer_compile.runtime.tokenizer import Tokenizer


@dataclass
class Answer:
    pieces: list[Delta | Failure] = field(default_factory=list)
    sequence: Sequence | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Delta))

    @property
    def finish(self) -> str | None:
        last = self.pieces[-1] if self.pieces else None
        return last.finish if isinstance(last, Delta) else None


def submit(loop: EngineLoop, *requests: Request) -> list[Answer]:
    answers = [Answer() for _ in requests]
    sequences = loop.submit(
        (request, answer.pieces.append) for request, answer in zip(requests, answers, strict=True)
    )
    for answer, sequence in zip(answers, sequences, strict=True):
        answer.sequence = sequence
    return answers


def run(loop: EngineLoop, most: int = 10_000) -> None:
    for _ in range(most):
        if loop.scheduler.idle:
            return
        loop.advance()
    raise AssertionError("it does not end")


def driven(
    loop: EngineLoop,
    arrivals: list[tuple[int, int, int, int | None]],
    requests: list[Request],
    check: Callable[[], None] = lambda: None,
) -> dict[int, Answer]:
    """Submits ``requests`` when they arrive, cancels them when their patience ends, until all are over; the
    pages are held to their counts after every step, and what ``check`` says."""
    answers: dict[int, Answer] = {}
    step = 0
    while len(answers) < len(arrivals) or not loop.scheduler.idle:
        for index, (arrives, _, _, patience) in enumerate(arrivals):
            if index not in answers and arrives <= step:
                (answers[index],) = submit(loop, requests[index])
            if index in answers and patience is not None and step >= arrives + patience:
                loop.cancel([answers[index].sequence])
        loop.advance()
        loop.pages.check()
        check()
        step += 1
        assert step < 2000
    return answers


def request(length: int, max_tokens: int, seed: int = 0, **settings: object) -> Request:
    prompt = np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)
    controls = Controls(temperature=1.0, seed=seed)
    return Request(prompt, max_tokens, controls, **settings)


def loop_of(tokenizer: Tokenizer, queue: int = 100, **program: object) -> EngineLoop:
    return EngineLoop(FakeEngine(tiny_program(**program)), tokenizer, queue)


LAYOUTS = st.sampled_from(
    [
        {"level": "bf16"},
        {"sink": 1, "recent": 1},
        {"sink": 0, "recent": 0},
        {"sink": 2, "recent": 2, "page_tokens": 2},
        {"exact_pages": 6, "packed_pages": 20},
        {"level": "bf16", "exact_pages": 16},
        {"sequences": 8, "batch_tokens": 3},
        {"level": "bf16", "window": 9},
        {"window": 13},
        {"overflow": "evict", "context": 24},
        {"overflow": "evict", "context": 19, "level": "bf16", "exact_pages": 9},
        {"overflow": "evict", "context": 24, "window": 15, "sink": 2},
    ]
)
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 20),  # at which step
        st.integers(1, 40),  # tokens of the prompt
        st.integers(1, 20),  # tokens of the answer
        st.one_of(st.none(), st.none(), st.integers(0, 40)),  # steps until it is cancelled
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=20, deadline=None)
@given(layout=LAYOUTS, arrivals=ARRIVALS)
def test_answers_do_not_depend_on_company_and_every_page_comes_back(
    tokenizer: Tokenizer, layout: dict[str, object], arrivals: list[tuple[int, int, int, int | None]]
) -> None:
    loop = loop_of(tokenizer, **layout)
    ends = frozenset({toy_model.END})
    requests = [
        request(length, count, seed, stop_ids=ends) for seed, (_, length, count, _) in enumerate(arrivals)
    ]
    answers = driven(loop, arrivals, requests)
    assert (loop.pages.exact.used, loop.pages.packed.used) == (0, 0)

    alone = loop_of(tokenizer, **layout)
    for index, answer in answers.items():
        (expected,) = submit(alone, requests[index])
        run(alone)
        if answer.sequence.ending == "cancelled":
            assert expected.text.startswith(answer.text)
        else:
            assert (answer.text, answer.finish) == (expected.text, expected.finish)


def test_decodes_never_wait_for_a_prompt(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, batch_tokens=8)
    (early,) = submit(loop, request(4, 30))
    for _ in range(3):
        loop.advance()
    submit(loop, request(100, 2))
    while loop.engine.steps[-1] != [1] or early.sequence.generated < 3:
        loop.advance()
    loop.engine.steps.clear()
    run(loop)
    assert all(step[0] == 1 for step in loop.engine.steps[: 30 - 3 - 1])


def test_a_prompt_takes_what_the_decodes_leave_of_the_budget(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, batch_tokens=8)
    submit(loop, request(2, 30), request(3, 30))
    loop.advance()
    loop.engine.steps.clear()
    submit(loop, request(20, 2))
    for _ in range(4):
        loop.advance()
    assert loop.engine.steps == [[1, 1, 6], [1, 1, 6], [1, 1, 6], [1, 1, 2]]


def test_several_prompts_share_a_step(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, batch_tokens=16)
    submit(loop, request(5, 2), request(6, 2, 1), request(30, 2, 2))
    loop.advance()
    assert loop.engine.steps == [[5, 6, 5]]


def test_admission_is_in_order_of_arrival_even_if_a_later_one_would_fit(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, level="bf16", exact_pages=12, page_tokens=4)
    first, big, small = submit(loop, request(20, 9), request(28, 5, 1), request(2, 2, 2))
    loop.advance()
    assert [sequence is first.sequence for sequence in loop.scheduler.running] == [True]
    run(loop)
    assert first.sequence.times.ended <= big.sequence.times.admitted <= small.sequence.times.admitted


def test_nobody_reserves_what_it_may_never_need(tokenizer: Tokenizer) -> None:
    """Four answers, each of which may fill the pools, run side by side; who came last gives way."""
    pools = {"level": "bf16", "exact_pages": 12, "page_tokens": 4}
    loop = loop_of(tokenizer, **pools)
    requests = [request(3, 45, seed) for seed in range(4)]
    answers = submit(loop, *requests)
    loop.advance()
    assert len(loop.scheduler.running) == 4
    order: list[int] = []
    while not loop.scheduler.idle:
        loop.advance()
        order += [i for i, answer in enumerate(answers) if answer.finish and i not in order]
    assert order == [0, 1, 2, 3]
    for asked, answer in zip(requests, answers, strict=True):
        (alone,) = submit(other := loop_of(tokenizer, **pools), asked)
        run(other)
        assert answer.text == alone.text


def test_a_better_priority_is_served_first_and_takes_the_place_of_a_worse_one(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=2)
    slow, usual = submit(loop, request(2, 40, priority=5), request(2, 40, 1))
    loop.advance()
    late, urgent = submit(loop, request(2, 5, 2), request(2, 5, 3, priority=-1))
    loop.advance()
    running = [answer.sequence in loop.scheduler.running for answer in (slow, usual, late, urgent)]
    assert running == [False, True, False, True]
    assert loop.scheduler.waiting == [late.sequence, slow.sequence]
    run(loop)
    assert all(answer.finish == "length" for answer in (slow, usual, late, urgent))
    ended = [answer.sequence.times.ended for answer in (urgent, late, usual, slow)]
    assert ended == sorted(ended)


def test_who_gave_way_goes_on_from_what_is_left_of_its_pages(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=1, sink=1, recent=1)
    (first,) = submit(loop, request(22, 20, priority=1))
    while first.sequence.generated < 10:
        loop.advance()
    submit(loop, request(2, 3, 1))
    loop.advance()
    assert first.sequence.computed == 0
    while first.sequence.table is None:
        loop.advance()
    # Of 31 tokens that were computed, seven pages were full; nobody needed them since.
    assert loop.engine.steps[-1] == [32 - 28]
    run(loop)
    (alone,) = submit(other := loop_of(tokenizer), request(22, 20))
    run(other)
    assert first.text == alone.text


def test_a_long_prompt_does_not_hold_up_the_short_ones_behind_it(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, batch_tokens=16)
    submit(loop, request(100, 2), request(5, 2, 1), request(100, 2, 2), request(6, 2, 3))
    loop.advance()
    # Half for the first, then who has least left; what they leave goes to the first again.
    assert loop.engine.steps == [[8, 5, 3]]
    loop.advance()
    assert sorted(loop.engine.steps[-1]) == [1, 3, 12]
    run(loop)


def test_a_request_past_its_deadline_ends_with_a_failure(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=1)
    soon = time.monotonic() + 0.02
    running, waiting = submit(loop, request(2, 200, deadline=soon), request(2, 5, 1, deadline=soon))
    (patient,) = submit(loop, request(2, 5, 2, deadline=soon + 60))
    loop.advance()
    time.sleep(0.03)
    loop.advance()
    for late in (running, waiting):
        assert late.sequence.ending == "deadline"
        assert late.pieces[-1].problem.code == "IC511"
    assert running.sequence.generated == 1
    run(loop)
    assert patient.finish == "length"
    assert loop.pages.usage == 0


def test_no_more_run_than_the_engine_takes(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=3)
    submit(loop, *(request(2, 5, seed) for seed in range(7)))
    run(loop)
    assert max(map(len, loop.engine.steps)) == 3


def test_every_running_decode_is_in_every_step(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=8, batch_tokens=3)
    submit(loop, *(request(1, 12, seed) for seed in range(5)))
    while not loop.scheduler.idle:
        before = {sequence: sequence.generated for sequence in loop.scheduler.running if sequence.generated}
        loop.advance()
        assert all(sequence.generated > count for sequence, count in before.items())


def test_a_prompt_that_is_known_is_not_computed_again(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sink=1, recent=2)
    asked = [request(41, 9, salt=salt) for salt in ("", "", "somebody", "")]
    answers = []
    for each in asked:
        answers += submit(loop, each)
        run(loop)
    assert [answer.sequence.cached_tokens for answer in answers] == [0, 40, 0, 40]
    assert len({answer.text for answer in answers}) == 1
    # The next turn of a talk begins with the whole of the last one.
    talk = np.concatenate([answers[0].sequence.tokens, request(5, 1, 7).prompt])
    (turn,) = submit(loop, Request(talk, 3))
    run(loop)
    assert turn.sequence.cached_tokens == (50 - 1) // 4 * 4


def test_a_prompt_is_shared_while_it_runs(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sink=1, recent=2)
    (first,) = submit(loop, request(41, 60))
    while first.sequence.generated < 30:
        loop.advance()
    (second,) = submit(loop, request(41, 60))
    loop.advance()
    assert second.sequence.cached_tokens == 40
    assert loop.engine.steps[-1] == [1, 1]
    run(loop)
    assert first.text == second.text


@pytest.mark.parametrize("layout", [{"level": "bf16"}, {"sink": 1, "recent": 2, "exact_pages": 60}])
def test_a_prompt_that_many_bring_at_once_is_computed_once(
    tokenizer: Tokenizer, layout: dict[str, object]
) -> None:
    """All but the last few tokens, even where they part in the middle; who differs is not held up."""
    loop = loop_of(tokenizer, sequences=8, **layout)
    same = [request(61, 5) for _ in range(3)]
    parting = [Request(np.concatenate([same[0].prompt[:42], one.prompt]), 5) for one in (request(9, 1, 5),)]
    other = request(20, 5, 6)
    answers = submit(loop, *same, *parting, other)
    loop.advance()
    assert len(loop.engine.steps[0]) == 2
    run(loop)
    assert [answer.sequence.cached_tokens for answer in answers] == [0, 60, 60, 40, 0]
    computed = sum(map(sum, loop.engine.steps))
    assert computed == 61 + 1 + 1 + (51 - 40) + 20 + 5 * 4
    for asked, answer in zip([*same, *parting, other], answers, strict=True):
        (alone,) = submit(fresh := loop_of(tokenizer, **layout), asked)
        run(fresh)
        assert answer.text == alone.text


def test_who_waits_for_another_goes_on_without_it(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer)
    first, second = submit(loop, request(61, 5), request(61, 5))
    loop.advance()
    loop.cancel([first.sequence])
    run(loop)
    assert second.finish == "length"
    assert second.sequence.cached_tokens == 16  # what the first had computed


def test_everyone_gets_the_log_probabilities_of_its_own_tokens(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer)
    asked = [
        Request(request(length, 5).prompt, 5, Controls(temperature=0), logprobs=1) for length in (3, 20, 4)
    ]
    answers = submit(loop, *asked)
    run(loop)
    for answer in answers:
        told = [token for piece in answer.pieces for token in piece.logprobs]
        assert len(told) == 5
        assert all(token.top == ((token.token, token.logprob),) for token in told)


def test_the_queue_is_bounded_and_takes_all_of_a_request_or_nothing(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, queue=2, sequences=3)
    submit(loop, *(request(2, 2, seed) for seed in range(4)))
    with pytest.raises(QueueFull):
        submit(loop, request(2, 2), request(2, 2))
    submit(loop, request(2, 2))
    with pytest.raises(QueueFull):
        submit(loop, request(2, 2))
    assert len(loop.scheduler.waiting) == 5
    run(loop)


def test_a_waiting_sequence_can_be_cancelled(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=1)
    first, second = submit(loop, request(2, 5), request(2, 5))
    loop.advance()
    loop.cancel([second.sequence])
    loop.advance()
    assert second.sequence.ending == "cancelled"
    assert second.pieces == []
    run(loop)
    assert first.sequence.generated == 5


def test_the_likeliest_tokens_follow_a_script(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tiny_program(), saying(lambda tokens: tokens[-3]))
    loop = EngineLoop(engine, tokenizer, 4)
    (answer,) = submit(loop, Request(tokenizer.encode("abc", special=False), 7))
    run(loop)
    assert answer.text == "abcabca"
    assert answer.finish == "length"


def test_a_coded_failure_of_a_step_fails_what_was_in_it_and_nothing_else(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=2)
    failing = submit(loop, request(2, 5), request(2, 5, 1))
    (waiting,) = submit(loop, request(2, 5, 2))
    problem = Problem("IC999", "the engine refused")
    loop.engine.failure = InferCompileError(problem)
    loop.advance()
    assert all(answer.pieces == [Failure(problem)] for answer in failing)
    loop.pages.check()
    assert loop.pages.usage == 0
    run(loop)
    assert waiting.finish == "length"


def test_running_out_of_memory_fails_the_step_alone(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer)
    (answer,) = submit(loop, request(2, 5))
    loop.engine.failure = MemoryError()
    loop.advance()
    assert isinstance(answer.pieces[0], Failure)
    assert answer.pieces[0].problem.code == "IC506"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_ends_the_thread_and_fails_everybody(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer, sequences=1)
    loop.engine.failure = ZeroDivisionError()
    answers = submit(loop, request(2, 5), request(2, 5, 1))
    loop.start()
    loop._thread.join(5)
    assert not loop.alive
    assert [answer.pieces[0].problem.code for answer in answers] == ["IC507", "IC507"]
    with pytest.raises(InferCompileError, match="IC507"):
        submit(loop, request(2, 5))


def test_lost_pages_end_the_thread_when_it_is_idle(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer)
    loop.pages.exact.free.popitem()
    loop.start()
    loop._thread.join(5)
    assert not loop.alive


def test_closing_fails_what_is_unfinished(tokenizer: Tokenizer) -> None:
    loop = loop_of(tokenizer)
    loop.engine.gate.clear()
    (answer,) = submit(loop, request(2, 200))
    loop.start()
    closing = threading.Thread(target=loop.close)
    closing.start()
    loop.engine.gate.set()
    closing.join(5)
    assert not loop.alive
    assert answer.sequence.generated < 200
    assert isinstance(answer.pieces[-1], Failure)
