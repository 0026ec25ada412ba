"""Heads in the loop: whatever they guess nobody's answer changes, and what they read is of the right place.

The model's hidden state at a token is the chain value of all tokens up to it. Heads that are right find the
model's next tokens by it: a row that is off by one place, or of another sequence, guesses nonsense.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from fake_engine import VOCABULARY, FakeEngine, chain_after, require, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import ARRIVALS, LAYOUTS, driven, request, run, submit
from test_speculation_loop import SOME, Counted, loop_with

from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.formats.program import Feed, Limits, Linear, Program, Select, Tensor
from infer_compile.runtime.formats.weights import BF16
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.speculation.eagle3 import HELD, Eagle3
from infer_compile.runtime.speculation.medusa import Medusa
from infer_compile.runtime.speculation.proposer import Proposer
from infer_compile.runtime.step import SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer

STATE = 2
"""Numbers that hold a chain value."""
HEADS = 4
STRIDE = 272
IDS = np.random.default_rng(9).permutation(VOCABULARY).astype(np.int32)
"""The model's tokens by the number that the layer of EAGLE-3 has for them."""


def told(chain: int) -> np.ndarray:
    return np.array([chain >> 16, chain & 0xFFFF], np.float32)


def heard(state: np.ndarray) -> int:
    return int(state[0]) << 16 | int(state[1])


def by_chain(tokens: Sequence[int], chain: int) -> np.ndarray:
    """A text of ``SOME`` tokens, by all that came before."""
    return likelihoods(chain).copy()


@cache
def likelihoods(chain: int) -> np.ndarray:
    row = np.full(VOCABULARY, -60.0, np.float32)
    row[:SOME] = 2 * np.random.default_rng(chain).standard_normal(SOME)
    return row


def guess(chain: int, right: float) -> np.ndarray:
    """The model's row behind a chain value, with another token made the likeliest now and then."""
    row = likelihoods(chain).copy()
    if np.random.default_rng([chain, 1]).random() >= right:
        row[(int(np.argmax(row)) + 1) % VOCABULARY] = 99
    return row


class Telling(FakeEngine):
    """Tells its chain values: of all new tokens, or of those with logits."""

    def __init__(self, program: Program, whole: bool) -> None:
        epilogue = () if whole else (Select(input="x", output="state"),)
        buffers = program.buffers | {"state": STATE}
        super().__init__(
            program.model_copy(update={"buffers": buffers, "epilogue": epilogue, "states": "state"}), by_chain
        )

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        result = super().step(batch, logits=logits)
        if hidden:
            rows = [self._chains(step) for step in batch]
            if not self.program.tells_tokens:
                ends = zip(rows, batch, strict=True)
                rows = [each[len(each) - step.outputs :] for each, step in ends]
            states = [told(chain) for each in rows for chain in each]
            result.hidden = np.array(states, np.float32).reshape(-1, STATE)
        return result

    def _chains(self, step: SequenceStep) -> list[int]:
        before, chains = self._chain_before(step), []
        for place, token in enumerate(step.tokens.tolist()):
            parent = place - 1 if step.parents is None else int(step.parents[place])
            chains.append(chain_after(before if parent < 0 else chains[parent], token))
        return chains


class Layer(FakeEngine):
    """A layer of EAGLE-3, right with a chance: of a token and the chain value before it, or its own state."""

    def __init__(self, right: float, **program: object) -> None:
        base = tiny_program(**({"level": "bf16", "sequences": 8, "batch_tokens": 24} | program))
        fed = (Feed(output="fused", first=0), Feed(output="x", first=STATE))
        buffers = base.buffers | {"fused": STATE, "x": STATE, "selected": STATE}
        select = Select(input="x", output="selected")
        super().__init__(
            base.model_copy(
                update={"buffers": buffers, "prologue": fed, "epilogue": (select,), "states": "selected"}
            )
        )
        self.right = right
        self.read = 0

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        super().step(batch)
        drawn, rows, states = [], [], []
        for step in batch:
            require(step.features is not None and step.features.shape == (len(step.tokens), 2 * STATE), "fed")
            fused, state = step.features[:, :STATE], step.features[:, STATE:]
            require(bool((fused.any(axis=1) != state.any(axis=1)).all()), "features or a state")
            require(bool(fused[: step.accepted].any()) or not step.accepted, "what is certain has features")
            chains = [heard(row[:STATE] + row[STATE:]) for row in step.features]
            after = [chain_after(*pair) for pair in zip(chains, step.tokens.tolist(), strict=True)]
            require(after[:-1] == chains[1:] or not step.accepted, "features of another place")
            self.read += step.accepted
            own = [guess(chain, self.right)[IDS] for chain in after[len(after) - step.outputs :]]
            drawn.append(np.array([row.argmax() for row in own], np.int32))
            rows += own
            states += [told(chain) for chain in after[len(after) - step.outputs :]]
        return StepResult(drawn, np.array(rows) if logits else None, np.array(states, np.float32))


class Side:
    """Medusa heads side by side, right with a chance: each looks further ahead of the chain value."""

    def __init__(self, right: float) -> None:
        layout = CacheLayout(
            level="bf16", page_tokens=4, sink_pages=0, recent_pages=0, kv_heads=1, head_dim=64, layers=()
        )
        self.right = right
        self.program = Program(
            model="heads",
            architecture="MedusaModel",
            vocabulary=VOCABULARY,
            buffers={"x": STATE, "selected": STATE, "logits": (HEADS - 1) * STRIDE + VOCABULARY},
            tensors=tuple(
                Tensor(name=f"{head}", rows=VOCABULARY, cols=STATE, format=BF16, sources=())
                for head in range(HEADS)
            ),
            prologue=(Feed(output="x", first=0),),
            layers=(),
            epilogue=(
                Select(input="x", output="selected"),
                *(
                    Linear(weight=f"{head}", input="selected", output="logits", first=head * STRIDE)
                    for head in range(HEADS)
                ),
            ),
            cache=layout,
            limits=Limits(
                max_context=256, max_sequences=8, max_batch_tokens=8, exact_pages=0, packed_pages=0
            ),
        )

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        rows = []
        for step in batch:
            chain = heard(step.features[0])
            row = np.full(self.program.logits, -99.0, np.float32)
            for head in range(HEADS):
                chain = chain_after(chain, int(np.argmax(likelihoods(chain))))
                row[head * STRIDE :][:VOCABULARY] = guess(chain, self.right)
            rows.append(row)
        return StepResult([np.zeros(1, np.int32) for _ in batch], np.array(rows))

    def pool(self, name: str) -> np.ndarray:
        return np.empty(0, np.uint8)

    def close(self) -> None:
        pass


def heads(kind: str, right: float, layout: dict[str, object]) -> Proposer:
    if kind == "medusa":
        return Medusa(Side(right))
    program = {name: layout[name] for name in ("overflow", "context") if "overflow" in layout}
    program |= {"few pages": {"exact_pages": 12}, "short": {"context": 12}}.get(kind, {})
    return Eagle3(Layer(right, **program), IDS)


KINDS = ("medusa", "eagle3", "few pages", "short")


@settings(max_examples=30, deadline=None)
@given(
    layout=LAYOUTS,
    arrivals=ARRIVALS,
    kind=st.sampled_from(KINDS),
    right=st.sampled_from([0.0, 0.7, 1.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    width=st.sampled_from([1, 3]),
)
def test_tokens_are_those_without_heads_and_every_page_comes_back(
    tokenizer: Tokenizer,
    layout: dict[str, object],
    arrivals: list[tuple[int, int, int, int | None]],
    kind: str,
    right: float,
    temperature: float,
    width: int,
) -> None:
    if kind == "short" and "overflow" in layout:
        kind = "eagle3"
    proposer = heads(kind, right, layout)
    engine = Telling(tiny_program(**layout), whole=kind != "medusa")
    loop = loop_with(tokenizer, engine, proposer, always=True, width=width)
    requests = [
        replace(request(length, count, seed), controls=Controls(temperature=temperature, seed=seed))
        for seed, (_, length, count, _) in enumerate(arrivals)
    ]
    check = proposer.pages.check if isinstance(proposer, Eagle3) else lambda: None
    answers = driven(loop, arrivals, requests, check)
    loop._check_idle()
    assert not loop._speculator._failed
    assert not loop.pages.tables

    alone = EngineLoop(FakeEngine(tiny_program(**layout), by_chain), tokenizer, 100)
    for index, answer in answers.items():
        (expected,) = submit(alone, requests[index])
        run(alone)
        found, whole = answer.sequence.tokens.tolist(), expected.sequence.tokens.tolist()
        assert found == (whole if answer.sequence.ending != "cancelled" else whole[: len(found)])


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "short"])
def test_heads_that_are_right_are_kept_to_the_last_token(tokenizer: Tokenizer, kind: str) -> None:
    """They can be by their features alone: prompts in chunks, company, and drafts of four tokens."""
    observer = Counted()
    engine = Telling(tiny_program(batch_tokens=24, sequences=3), whole=kind != "medusa")
    proposer = heads(kind, 1.0, {})
    loop = loop_with(tokenizer, engine, proposer, observer=observer, always=True)
    asked = [replace(request(length, 60, length), controls=Controls(temperature=0)) for length in (5, 40, 90)]
    answers = submit(loop, *asked)
    run(loop)
    assert [answer.sequence.generated for answer in answers] == [60] * 3
    outcomes = observer.outcomes
    assert sum(outcome.draft.rows for outcome in outcomes) > 100
    assert all(outcome.verdict.accepted == outcome.draft.rows for outcome in outcomes)
    if kind == "eagle3":
        (layer,) = proposer.engines
        assert layer.read >= 5 + 40 + 90, "it reads whole prompts"


def test_siblings_of_heads_are_kept_too(tokenizer: Tokenizer) -> None:
    for kind in ("medusa", "eagle3"):
        observer = Counted()
        engine = Telling(tiny_program(batch_tokens=32), whole=kind != "medusa")
        loop = loop_with(tokenizer, engine, heads(kind, 1.0, {}), observer=observer, always=True, width=3)
        submit(loop, request(20, 120, 1))
        run(loop)
        assert observer.siblings > 10
        assert observer.accepted > 20


def test_behind_a_prefix_that_was_cached_the_layer_begins_anew(tokenizer: Tokenizer) -> None:
    """Features of cached tokens do not come; of those that do come it is as right as before."""
    observer, engine = Counted(), Telling(tiny_program(batch_tokens=32), whole=True)
    proposer = heads("eagle3", 1.0, {})
    loop = loop_with(tokenizer, engine, proposer, observer=observer, always=True)
    prompt = np.random.default_rng(0).integers(0, 256, 50).astype(np.int32)
    answers = []
    for tail in (1, 2):
        asked = Request(np.append(prompt, np.int32(tail)), 30, Controls(temperature=0))
        answers += submit(loop, asked)
        run(loop)
        loop._check_idle()
    assert answers[1].sequence.cached_tokens >= 40
    second = [one for one in observer.outcomes if one.sequence is answers[1].sequence]
    assert second and all(outcome.verdict.accepted == outcome.draft.rows for outcome in second)


def test_features_wait_only_so_long(tokenizer: Tokenizer) -> None:
    """Where nothing is drafted for, the layer reads along in batches, and holds little."""
    engine, proposer = Telling(tiny_program(batch_tokens=64), whole=True), heads("eagle3", 1.0, {})
    loop = loop_with(tokenizer, engine, proposer)
    loop._speculator.pace.widths = lambda keys, total: [np.zeros(4, np.int64)] * len(keys)
    (answer,) = submit(loop, request(60, 100))
    most = 0
    while not loop.scheduler.idle:
        loop.advance()
        most = max(most, *(len(one.waiting) for one in proposer._contexts.values()), 0)
    (layer,) = proposer.engines
    assert answer.sequence.generated == 100
    assert most <= HELD
    assert layer.read > 95 and len(layer.steps) < 8


def test_heads_that_fail_end_drafting_and_no_answer(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    engine, proposer = Telling(tiny_program(), whole=True), heads("eagle3", 1.0, {})
    loop = loop_with(tokenizer, engine, proposer, always=True)
    (answer,) = submit(loop, request(40, 60))
    (layer,) = proposer.engines
    layer.failure = InferCompileError(Problem("IC522", "not a number"))
    with caplog.at_level(logging.ERROR):
        run(loop)
    assert answer.sequence.generated == 60
    assert "IC522" in caplog.text
    assert not loop._speculator.reads
    loop._check_idle()
