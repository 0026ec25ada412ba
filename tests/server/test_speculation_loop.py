"""Speculation in the loop: whatever is guessed, every sequence gets the tokens it would have had without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import toy_model
from fake_engine import VOCABULARY, FakeEngine, chain_after, random_logits, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import ARRIVALS, LAYOUTS, Answer, driven, request, run, submit

from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.speculation import speculator
from infer_compile.runtime.speculation.draft import Draft
from infer_compile.runtime.speculation.draft_model import DraftModel
from infer_compile.runtime.speculation.lookahead import Lookahead
from infer_compile.runtime.speculation.ngram import Ngram
from infer_compile.runtime.speculation.proposer import Ask, Proposer
from infer_compile.runtime.speculation.speculator import Outcome, Speculator
from infer_compile.runtime.speculation.widths import full_widths
from infer_compile.runtime.step import Int32, SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer

Logits = Callable[[Sequence[int], int], np.ndarray]
SOME = 5
"""Tokens that the texts of some tests are made of."""


def few_tokens(tokens: Sequence[int], chain: int) -> np.ndarray:
    """A text of ``SOME`` tokens, in which one follows the last two more likely than others."""
    return _behind(*tokens[-2:]).copy()


@cache
def _behind(*tokens: int) -> np.ndarray:
    row = np.full(VOCABULARY, -60.0, np.float32)
    last = chain_after(chain_after(0, tokens[-1]), tokens[0])
    row[:SOME] = np.random.default_rng(last).standard_normal(SOME)
    row[last % SOME] += 1.5
    return row


def sometimes_wrong(logits: Logits, right: float) -> Logits:
    """Logits whose likeliest token is that of ``logits`` with that chance."""

    def wrong(tokens: Sequence[int], chain: int) -> np.ndarray:
        row = logits(tokens, chain)
        if np.random.default_rng([chain, 1]).random() >= right:
            row[(int(np.argmax(row)) + 1) % VOCABULARY] = 99
        return row

    return wrong


class Told:
    """Drafts by a function of the text, which gives a row of choices for each depth."""

    engines, reads = (), False

    def __init__(self, draft: Callable[[Int32], list[list[int]]]) -> None:
        self.draft = draft
        self.kept: list[set[Hashable]] = []
        self.drafted = 0

    def catch_up(self, *_: object) -> None:
        """Nothing is read ahead, and nothing held."""

    read = check = catch_up

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        choices = [np.array(self.draft(ask.tokens)[: ask.most], np.int32) for ask in asks]
        self.drafted += sum(map(len, choices))
        return [Draft(each[:, 0], each[:, 1 : ask.width]) for ask, each in zip(asks, choices, strict=True)]

    def keep(self, keys: Collection[Hashable]) -> None:
        self.kept.append(set(keys))


class Counted:
    """An observer that counts."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.preemptions = 0

    def drafted(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def preempted(self, sequences: int) -> None:
        self.preemptions += sequences

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None

    @property
    def accepted(self) -> int:
        return sum(outcome.verdict.accepted for outcome in self.outcomes)

    @property
    def siblings(self) -> int:
        """Those that were drawn."""
        return sum(outcome.verdict.choice > 0 for outcome in self.outcomes)


def loop_with(
    tokenizer: Tokenizer,
    engine: FakeEngine,
    proposer: Proposer,
    tokens: int = 4,
    observer: object = None,
    always: bool = False,
    width: int = 1,
) -> EngineLoop:
    """``always``: all is drafted that may be, whether it pays or not."""
    window = proposer.window if isinstance(proposer, Lookahead) else 0
    made = Speculator(proposer, tokens, 0.9, engine.program.limits, width, 0.5, window)
    if always:
        made.pace.widths = lambda keys, total: (
            [full_widths(total // len(keys) - window, tokens, width)] * len(keys)
        )
    return EngineLoop(engine, tokenizer, 4000, observer, made)


def draft_model(logits: Logits, **program: object) -> DraftModel:
    wanted = {"level": "bf16", "sequences": 8, "batch_tokens": 24} | program
    return DraftModel(FakeEngine(tiny_program(**wanted), logits))


def proposers(kind: str, layout: dict[str, object]) -> Proposer:
    if kind == "ngram":
        return Ngram()
    if kind == "lookahead":
        return Lookahead(3, 3)
    evicts = {name: layout[name] for name in ("overflow", "context") if "overflow" in layout}
    pages = {"few pages": {"exact_pages": 12}, "compressed": {"level": "tq3"}}.get(kind, {})
    return draft_model(sometimes_wrong(few_tokens, 0.8), **evicts, **pages)


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.sequence.tokens.tolist() for answer in answers]


@settings(max_examples=30, deadline=None)
@given(
    layout=LAYOUTS,
    arrivals=ARRIVALS,
    kind=st.sampled_from(["ngram", "model", "few pages", "compressed", "lookahead"]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    width=st.sampled_from([1, 2, 4]),
)
def test_tokens_are_those_without_drafts_and_every_page_comes_back(
    tokenizer: Tokenizer,
    layout: dict[str, object],
    arrivals: list[tuple[int, int, int, int | None]],
    kind: str,
    temperature: float,
    width: int,
) -> None:
    proposer = proposers(kind, layout)
    engine = FakeEngine(tiny_program(**layout), few_tokens)
    loop = loop_with(tokenizer, engine, proposer, always=True, width=width)
    requests = [
        replace(request(length, count, seed), controls=Controls(temperature=temperature, seed=seed))
        for seed, (_, length, count, _) in enumerate(arrivals)
    ]
    check = proposer.pages.check if isinstance(proposer, DraftModel) else lambda: None
    answers = driven(loop, arrivals, requests, check)
    loop._check_idle()
    assert not loop.pages.tables

    alone = EngineLoop(FakeEngine(tiny_program(**layout), few_tokens), tokenizer, 100)
    for index, answer in answers.items():
        (expected,) = submit(alone, requests[index])
        run(alone)
        found, whole = answer.sequence.tokens.tolist(), expected.sequence.tokens.tolist()
        assert found == (whole if answer.sequence.ending != "cancelled" else whole[: len(found)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["ngram", "model", "lookahead"])
def test_drafts_are_kept_and_save_steps(tokenizer: Tokenizer, kind: str, temperature: float) -> None:
    """What the others show would hold for a drafter that is never heard."""
    observer, engine = Counted(), FakeEngine(tiny_program(batch_tokens=64), few_tokens)
    loop = loop_with(tokenizer, engine, proposers(kind, {}), observer=observer, always=True)
    asked = [
        replace(request(20, 100, seed), controls=Controls(temperature=temperature, seed=seed))
        for seed in range(3)
    ]
    answers = submit(loop, *asked)
    run(loop)
    assert observer.accepted > 30
    assert len(engine.steps) < 100
    assert sum(len(outcome.verdict.rows) for outcome in observer.outcomes) <= 300
    assert [answer.sequence.generated for answer in answers] == [100] * 3


@pytest.mark.parametrize(("kind", "temperature"), [("ngram", 1.0), ("model", 0.0), ("model", 1.0)])
def test_siblings_that_are_drawn_save_steps(tokenizer: Tokenizer, kind: str, temperature: float) -> None:
    """Each brings the token behind it as well: with the same drafts, but for their siblings, there are more
    steps."""
    steps = {}
    for width in (1, 3):
        observer, engine = Counted(), FakeEngine(tiny_program(batch_tokens=64), few_tokens)
        proposer = proposers(kind, {})
        loop = loop_with(tokenizer, engine, proposer, 2, observer=observer, always=True, width=width)
        prompt = np.random.default_rng(5).integers(0, SOME, 60).astype(np.int32)
        asked = [Request(prompt, 100, Controls(temperature=temperature, seed=seed)) for seed in range(3)]
        answers = submit(loop, *asked)
        run(loop)
        assert [answer.sequence.generated for answer in answers] == [100] * 3
        steps[width] = sum(map(len, engine.steps))
        assert (observer.siblings > 10) == (width == 3)
        drawn = sum(len(outcome.verdict.rows) for outcome in observer.outcomes)
        alone = sum(1 + outcome.verdict.accepted for outcome in observer.outcomes)
        assert drawn - alone == observer.siblings
    assert steps[3] < 0.95 * steps[1]


def test_a_sibling_that_was_drawn_is_computed_in_its_place(tokenizer: Tokenizer) -> None:
    """The step after it takes two certain tokens and drafts behind them; no slot of a sibling is kept."""
    certain: list[tuple[int, list[int], int]] = []

    class Watched(FakeEngine):
        def step(self, batch: Sequence[SequenceStep], **asked: bool) -> StepResult:
            (step,) = batch
            certain.append((step.start, step.tokens[: step.accepted].tolist(), len(step.tokens)))
            return super().step(batch, **asked)

    def second(tokens: Int32) -> list[list[int]]:
        row = few_tokens(tokens.tolist(), 0)
        right = int(np.argmax(row))
        return [[(right + 1) % SOME, right]]

    engine = Watched(tiny_program(), few_tokens)
    loop = loop_with(tokenizer, engine, Told(second), 1, always=True, width=2)
    (answer,) = submit(loop, replace(request(9, 41), controls=Controls(temperature=0)))
    run(loop)
    text = answer.sequence.tokens.tolist()
    prompt, first, *others = certain
    assert (prompt[0], prompt[1]) == (0, text[:9])
    assert (first[0], first[1], first[2]) == (9, text[9:10], 3)
    for index, (start, tokens, rows) in enumerate(others[:-1]):
        assert (start, tokens) == (10 + 2 * index, text[10 + 2 * index : 12 + 2 * index])
        assert rows == 4
    assert len(certain) == 1 + 20


def test_decodes_that_are_two_tokens_behind_share_a_small_step(tokenizer: Tokenizer) -> None:
    """Nobody who draws waits, though not all can compute both of their tokens."""
    right = Told(lambda tokens: [[VOCABULARY - 1, int(np.argmax(few_tokens(tokens.tolist(), 0)))]])
    engine = FakeEngine(tiny_program(sequences=8, batch_tokens=5), few_tokens)
    loop = loop_with(tokenizer, engine, right, 1, always=True, width=2)
    answers = submit(
        loop, *(replace(request(1, 30, seed), controls=Controls(temperature=0)) for seed in range(4))
    )
    while not loop.scheduler.idle:
        before = {one: (one.generated, one.pending) for one in loop.scheduler.running if one.generated}
        loop.advance()
        for one, (generated, pending) in before.items():
            assert one.generated > generated or one.pending < pending
    assert [answer.sequence.generated for answer in answers] == [30] * 4


@pytest.mark.parametrize("width", [1, 3])
def test_rejected_tokens_never_pass_for_certain(tokenizer: Tokenizer, width: int) -> None:
    """Certain tokens, which alone are compressed, are those of the answer; among the drafts are others."""
    certain: dict[int, int] = {}
    guessed: dict[int, set[int]] = {}
    sealed: list[tuple[int, int]] = []

    class Watched(FakeEngine):
        def step(self, batch: Sequence[SequenceStep], **asked: bool) -> StepResult:
            (step,) = batch
            for place, token in enumerate(step.tokens.tolist()):
                position = step.start + place
                if place < step.accepted:
                    assert certain.setdefault(position, token) == token
                elif step.parents is None or step.parents[place] == place - 1:
                    guessed.setdefault(position, set()).add(token)
            end = step.start + step.accepted
            sealed.extend((page, end) for page in range(step.sealed, end // 4))
            return super().step(batch, **asked)

    # Pages of four tokens, and chains of four drafts: they cross a border all the time.
    engine = Watched(tiny_program(), few_tokens)
    loop = loop_with(tokenizer, engine, proposers("model", {}), always=True, width=width)
    (answer,) = submit(loop, request(10, 200))
    run(loop)
    tokens = dict(enumerate(answer.sequence.tokens.tolist()))
    known = certain | {position: tokens[position] for position in guessed if position not in certain}
    assert known == {position: tokens[position] for position in known}
    rejected = [p for p, tried in guessed.items() if tried - {tokens.get(p)}]
    assert len(rejected) > 10
    assert [page for page, _ in sealed] == list(range(len(sealed))), "each page is sealed once, in order"
    assert all((page + 1) * 4 <= end for page, end in sealed)
    assert len(sealed) >= 200 // 4


def chi_square(counts: np.ndarray, chances: np.ndarray) -> float:
    expected = counts.sum() * chances
    return float((((counts - expected) ** 2) / expected).sum())


SEEDS = 1000
CRITICAL = 23.51
"""Of chi-square with four degrees of freedom at a probability of 0.0001."""


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("kind", ["ngram", "model", "lookahead"])
def test_drawn_tokens_have_the_models_distribution(tokenizer: Tokenizer, kind: str, width: int) -> None:
    """The same prompt with many seeds: what follows each pair of tokens is distributed as the model's row
    behind it, and the drafts were part of it."""
    prompt = np.array([0, 1, 2, 0, 1, 4, 0, 1, 3, 0, 1], np.int32)
    observer = Counted()
    engine = FakeEngine(
        tiny_program(level="bf16", sequences=64, batch_tokens=512, context=32, page_tokens=32), few_tokens
    )
    wide = {"sequences": 64, "batch_tokens": 1024}
    proposer = draft_model(few_tokens, **wide) if kind == "model" else proposers(kind, {})
    loop = loop_with(tokenizer, engine, proposer, observer=observer, always=True, width=width)
    answers = submit(
        loop, *(Request(prompt, 6, Controls(temperature=0.9, seed=seed)) for seed in range(SEEDS))
    )
    run(loop)
    assert observer.accepted > SEEDS / 6
    assert (observer.siblings > SEEDS / 20) == (width > 1)
    behind: dict[tuple[int, int], list[int]] = {}
    for answer in answers:
        tokens = answer.sequence.tokens.tolist()
        for place in range(len(prompt), len(tokens)):
            behind.setdefault((tokens[place - 2], tokens[place - 1]), []).append(tokens[place])
    tested = [(pair, drawn) for pair, drawn in behind.items() if len(drawn) >= 100]
    for pair, drawn in tested:
        row = few_tokens(pair, 0)[:SOME] / 0.9
        chances = np.exp(row) / np.exp(row).sum()
        assert chi_square(np.bincount(drawn, minlength=SOME), chances) < CRITICAL
    assert len(tested) > 10


def test_a_biased_choice_would_be_seen(tokenizer: Tokenizer) -> None:
    """The test above tells the model's distribution from one that prefers its likeliest token by a fifth."""
    row = few_tokens([0, 1], 0)[:SOME] / 0.9
    chances = np.exp(row) / np.exp(row).sum()
    biased = 0.8 * chances + 0.2 * (np.arange(SOME) == np.argmax(chances))
    counts = np.random.default_rng(0).multinomial(SEEDS, biased)
    assert chi_square(counts, chances) > CRITICAL


def test_sequences_whose_draws_depend_on_one_another_are_not_drafted_for(tokenizer: Tokenizer) -> None:
    proposer = Told(lambda tokens: [[1], [2], [3]])
    loop = loop_with(tokenizer, FakeEngine(tiny_program()), proposer)
    submit(loop, Request(np.arange(5, dtype=np.int32), 30, Controls(frequency_penalty=0.5)))
    run(loop)
    assert proposer.drafted == 0


def test_a_drafter_that_is_always_wrong_is_soon_not_asked(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(speculator, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Slow(FakeEngine):
        """A row takes half as long as a step without any."""

        def step(self, batch: Sequence[SequenceStep], **asked: bool) -> StepResult:
            clock[0] += 2 + sum(len(step.tokens) for step in batch)
            return super().step(batch, **asked)

    observer, proposer = Counted(), Told(lambda tokens: [[VOCABULARY - 1]] * 4)
    engine = Slow(tiny_program(), few_tokens)
    loop = loop_with(tokenizer, engine, proposer, observer=observer)
    submit(loop, request(10, 200))
    run(loop)
    assert observer.accepted == 0
    assert 0 < sum(outcome.draft.rows for outcome in observer.outcomes) < 60
    assert clock[0] < 1.2 * (3 * 200)
    assert [len(step) for step in engine.steps[-20:]] == [1] * 20


@pytest.mark.parametrize("width", [1, 3])
def test_preempted_sequences_come_back_to_the_same_tokens(tokenizer: Tokenizer, width: int) -> None:
    """Too few pages for all: some lose theirs while drafts are in flight, and the draft's with them."""
    layout = {"exact_pages": 9, "packed_pages": 24, "sequences": 4}
    observer, proposer = Counted(), proposers("model", {})
    loop = loop_with(
        tokenizer,
        FakeEngine(tiny_program(**layout), few_tokens),
        proposer,
        observer=observer,
        always=True,
        width=width,
    )
    answers = submit(loop, *(request(12, 60, seed) for seed in range(4)))
    run(loop)
    assert observer.preemptions and observer.accepted
    loop._check_idle()
    alone = EngineLoop(FakeEngine(tiny_program(**layout), few_tokens), tokenizer, 100)
    for seed, answer in enumerate(answers):
        (expected,) = submit(alone, request(12, 60, seed))
        run(alone)
        assert tokens_of([answer]) == tokens_of([expected])


def test_what_ends_with_drafts_in_flight_is_forgotten_by_the_drafter(tokenizer: Tokenizer) -> None:
    proposer = proposers("model", {})
    loop = loop_with(tokenizer, FakeEngine(tiny_program(), few_tokens), proposer, always=True)
    answers = submit(loop, *(request(12, 100, seed) for seed in range(3)))
    for _ in range(20):
        loop.advance()
    assert len(proposer.pages.tables) == 3
    loop.cancel([answers[0].sequence])
    loop.advance()
    loop.advance()
    assert len(proposer.pages.tables) == 2
    run(loop)
    loop._check_idle()
    assert not proposer.pages.tables


def test_guesses_that_come_true_are_compressed_by_the_step_after(tokenizer: Tokenizer) -> None:
    """A draft's own cache may be compressed: its pages that guesses filled were sealed by no step yet."""
    proposer = draft_model(few_tokens, level="tq3")
    loop = loop_with(tokenizer, FakeEngine(tiny_program(), few_tokens), proposer, always=True)
    submit(loop, replace(request(12, 100), controls=Controls(temperature=0)))
    held = []
    while not loop.scheduler.idle:
        loop.advance()
        for table in proposer.pages.tables:
            places = table.packed.places[1 : table.sealed]
            assert (places >= 0).all(), "a page counts as sealed that has no compressed form"
            held.append(len(places))
    assert max(held) > 15


def test_a_draft_without_pages_left_is_done_without(tokenizer: Tokenizer) -> None:
    """The first sequence has all pages of the draft; the second is answered undrafted."""
    observer, proposer = Counted(), draft_model(few_tokens, exact_pages=16)
    loop = loop_with(
        tokenizer, FakeEngine(tiny_program(), few_tokens), proposer, observer=observer, always=True
    )
    answers = submit(loop, request(40, 80, 1), request(40, 80, 2))
    run(loop)
    assert observer.accepted
    assert [answer.sequence.generated for answer in answers] == [80, 80]
    assert proposer.pages.exact.used == 0 or len(proposer.pages.tables) < 2


def test_a_drafter_that_fails_ends_drafting_and_no_answer(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    proposer, observer = proposers("model", {}), Counted()
    loop = loop_with(
        tokenizer, FakeEngine(tiny_program(), few_tokens), proposer, observer=observer, always=True
    )
    (answer,) = submit(loop, request(10, 60))
    for _ in range(20):
        loop.advance()
    before = len(observer.outcomes)
    assert before
    (engine,) = proposer.engines
    engine.failure = InferCompileError(Problem("IC522", "not a number"))
    with caplog.at_level(logging.ERROR):
        run(loop)
    assert answer.sequence.generated == 60
    assert len(observer.outcomes) <= before + 1
    assert "IC522" in caplog.text
    loop._check_idle()


def test_drafts_stop_where_the_answer_ends(tokenizer: Tokenizer) -> None:
    """Neither behind max_tokens nor behind a token that ends the text is anything handed out."""
    ends = frozenset({toy_model.END})

    def to_the_end(tokens: Sequence[int], chain: int) -> np.ndarray:
        row = random_logits(tokens, chain)
        row[toy_model.END if len(tokens) == 30 else 7] = 50
        return row

    loop = loop_with(tokenizer, FakeEngine(tiny_program(), to_the_end), Told(lambda tokens: [[7]] * 4))
    prompt = np.arange(10, dtype=np.int32)
    stopped, cut = submit(
        loop,
        Request(prompt, 100, Controls(temperature=0), stop_ids=ends),
        Request(prompt, 15, Controls(temperature=0), stop_ids=ends),
    )
    run(loop)
    assert (stopped.finish, stopped.sequence.length) == ("stop", 31)
    assert (cut.finish, cut.sequence.length) == ("length", 25)
