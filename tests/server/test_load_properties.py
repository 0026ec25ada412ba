"""Any load on any pools: every answer is the one that its request gets alone, and every page comes back.

What a request gets alone is computed from its tokens, without pages. The engine (fake_engine.py) draws from a
hash of all tokens that it finds in the pages it was given, and refuses to read a wrong one.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from fake_engine import VOCABULARY, FakeEngine, chain_after, random_logits, tiny_program
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_scheduler import Answer, submit

from infer_compile.runtime.engines.sampling import draw
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.scheduler import QueueFull
from infer_compile.runtime.sequence import Failure, Request, Sequence
from infer_compile.runtime.speculation.draft import Draft
from infer_compile.runtime.speculation.speculator import Outcome
from infer_compile.runtime.step import Sampling
from infer_compile.runtime.tokenizer import Tokenizer

LAYOUTS = [
    {"sink": 1, "recent": 1},
    {"sink": 1, "recent": 2, "page_tokens": 2},
    {"sink": 0, "recent": 0},
    {"level": "bf16"},
    {"sink": 1, "recent": 1, "window": 13},
    {"sink": 1, "recent": 1, "overflow": "evict", "context": 24},
]
LONGEST = 40
SHARED = np.random.default_rng(1).integers(0, 256, (3, LONGEST)).astype(np.int32)
COUNTED: Counter[str] = Counter()


@dataclass
class Load:
    """Requests, when each arrives and when somebody loses patience, in steps."""

    requests: list[Request]
    arrivals: list[int]
    patience: list[int | None]


def load_of(order: random.Random) -> Load:
    requests, arrivals, patience = [], [], []
    step = 0
    for seed in range(order.randint(4, 14)):
        step += order.choice([0, 0, 1, 5])
        shared = SHARED[order.randrange(len(SHARED))][: order.choice([0, 5, 12, 20])]
        own = np.array([order.randrange(256) for _ in range(order.randint(1, 12))], np.int32)
        request = Request(
            prompt=np.concatenate([shared, own]),
            max_tokens=order.randint(1, LONGEST - len(shared) - len(own)),
            controls=Controls(temperature=1.0, seed=seed, frequency_penalty=order.choice([0, 0, 0.5])),
            priority=order.choice([0, 0, 0, 1, -1]),
            salt=order.choice(["", "", "somebody"]),
        )
        if order.random() < 0.1:
            request = replace(request, deadline=time.monotonic() - 1)
        requests.append(request)
        arrivals.append(step)
        patience.append(order.randint(0, 30) if order.random() < 0.2 else None)
    return Load(requests, arrivals, patience)


def expected(request: Request) -> list[int]:
    """The tokens that follow the prompt, of a sequence that is alone in the world."""
    tokens, chain, bias = request.prompt.tolist(), 0, np.zeros(VOCABULARY, np.float32)
    sampling = Sampling(temperature=request.controls.temperature, seed=request.controls.seed)
    for token in tokens:
        chain = chain_after(chain, token)
    for position in range(len(tokens), len(tokens) + request.max_tokens):
        logits = random_logits(tokens, chain) + bias
        tokens.append(draw(logits, sampling, None, position))
        chain = chain_after(chain, tokens[-1])
        bias[tokens[-1]] -= np.float32(request.controls.frequency_penalty)
    return tokens[len(request.prompt) :]


def guess(order: random.Random, loop: EngineLoop, answers: dict[Sequence, list[int]]) -> None:
    """Drafts for some of those who draw, right for a while and then not, or only beside the chain."""
    for sequence in loop.scheduler.running:
        if sequence.draftable and order.random() < 0.5:
            coming = answers[sequence][sequence.generated :]
            right = coming[: order.randint(0, 6)]
            wrong = [order.randrange(256) for _ in range(order.randint(0, 3))]
            chain = np.array(right + wrong, np.int32)
            siblings = np.array([[order.randrange(-1, 256)] for _ in chain], np.int32)
            if len(right) < min(len(chain), len(coming)) and order.random() < 0.7:
                siblings[len(right)] = coming[len(right)]
            sequence.draft = Draft(chain, siblings if order.random() < 0.7 else siblings[:, :0])


@settings(
    max_examples=90,
    deadline=None,
    derandomize=True,  # so that all of it happens in every run
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.reuse, Phase.generate),  # to shrink a load takes minutes
)
@given(
    layout=st.sampled_from(LAYOUTS),
    spare=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    sequences=st.integers(1, 5),
    budget=st.integers(5, 24),
    speculates=st.booleans(),
    seed=st.integers(0, 2**32),
)
def nobody_is_lost_and_nothing_changes(
    tokenizer: Tokenizer,
    layout: dict[str, object],
    spare: tuple[int, int],
    sequences: int,
    budget: int,
    speculates: bool,
    seed: int,
) -> None:
    order = random.Random(seed)
    cache = tiny_program(**{"context": LONGEST} | layout).cache
    program = tiny_program(
        **{"context": LONGEST, "sequences": sequences, "batch_tokens": budget} | layout,
        exact_pages=cache.exact_pages(LONGEST) + spare[0],
        packed_pages=cache.packed_pages(LONGEST) + spare[1],
    )
    observer = Observer()
    loop = EngineLoop(FakeEngine(program), tokenizer, 8, observer)
    load = load_of(order)
    answers: dict[int, Answer] = {}
    known: dict[Sequence, list[int]] = {}
    waiting = list(range(len(load.requests)))
    step = 0
    while waiting or not loop.scheduler.idle:
        for index in [index for index in waiting if load.arrivals[index] <= step]:
            try:
                (answers[index],) = submit(loop, load.requests[index])
            except QueueFull:
                COUNTED["refused"] += 1
                continue
            known[answers[index].sequence] = expected(load.requests[index])
            waiting.remove(index)
        for index, answer in answers.items():
            patience = load.patience[index]
            if patience is not None and step >= load.arrivals[index] + patience:
                loop.cancel([answer.sequence])
        if speculates:
            guess(order, loop, known)
        before = {sequence: sequence.generated for sequence in loop.scheduler.running}
        loop.advance()
        COUNTED["right"] += sum(sequence.generated > count + 1 for sequence, count in before.items())
        COUNTED["beside"] += sum(sequence.pending == 2 for sequence in before)
        loop.pages.check()
        step += 1
        assert step < 5000, "it does not end"
    assert loop.pages.usage == 0
    for answer in answers.values():
        sequence = answer.sequence
        drawn, right = sequence.tokens[sequence.prompt_tokens :].tolist(), known[sequence]
        if sequence.ending == "length":
            assert drawn == right
        else:
            assert sequence.ending in ("cancelled", "deadline")
            assert drawn == right[: len(drawn)]
        late = isinstance(answer.pieces[-1], Failure) if answer.pieces else False
        assert late == (sequence.ending == "deadline")
        COUNTED[sequence.ending] += 1
    COUNTED["steps"] += step
    COUNTED.update(observer.counted)


class Observer:
    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def stepped(self, tokens: int) -> None: ...
    def evicted(self, tokens: int) -> None:
        self.counted["evicted"] += tokens

    def admitted(self, sequence: Sequence) -> None:
        assert sequence.cached_tokens < sequence.prompt_tokens
        self.counted["hits"] += sequence.cached_tokens

    def preempted(self, sequences: int) -> None:
        self.counted["preempted"] += sequences

    def drafted(self, outcome: Outcome) -> None: ...
    def drew(self, sequence: Sequence, since: float) -> None: ...
    def ended(self, sequence: Sequence) -> None: ...


def test_any_load_on_any_pools(tokenizer: Tokenizer) -> None:
    """A test of what never occurs would say nothing."""
    COUNTED.clear()
    nobody_is_lost_and_nothing_changes(tokenizer=tokenizer)
    assert COUNTED["steps"] > 2000
    for what in (
        "length",
        "cancelled",
        "deadline",
        "preempted",
        "hits",
        "refused",
        "evicted",
        "right",
        "beside",
    ):
        assert COUNTED[what], f"{what} never happened"
