"""Prompts that begin alike are found in the cache also while as many sequences run as there are pages for."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import FakeEngine, tiny_program

from infer_compile.catalog.facts import load_facts
from infer_compile.planner.performance.cache import Cache
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.tokenizer import Tokenizer

FACTS = load_facts()
KEPT = int(FACTS.choices.cache.kept_tails.value)
SHARED, OWN, ANSWER, STEP, RECENT = 80, 12, 40, 16, 4
LONGEST = SHARED + OWN + ANSWER


def found(tokenizer: Tokenizer, sequences: int, ways: int, tails: int) -> float:
    """Share of prompt tokens found, of a queue whose prompts begin in ``ways`` ways, in pools of exactly what
    ``sequences`` hold and spare pages for ``tails``."""
    layout = tiny_program(recent=RECENT).cache
    spare = Cache(FACTS.formats.of_kv("tq3"), 4, recent_pages=RECENT, kept_tails=tails).spare_pages
    exact, packed = (
        most(LONGEST, STEP) + (sequences - 1) * most(LONGEST)
        for most in (layout.exact_pages, layout.packed_pages)
    )
    program = tiny_program(
        recent=RECENT,
        sequences=sequences,
        context=LONGEST,
        batch_tokens=STEP,
        exact_pages=exact + spare,
        packed_pages=packed,
    )
    loop = EngineLoop(FakeEngine(program), tokenizer, 1000)
    order = np.random.default_rng(1)
    shared, own = (order.integers(0, 256, (count, size)) for count, size in ((ways, SHARED), (99, OWN)))
    prompts = [np.concatenate([shared[i % ways], own[i]]).astype(np.int32) for i in range(8 * sequences)]
    running = loop.submit(
        (Request(prompt, ANSWER, Controls(temperature=1.0, seed=seed)), lambda piece: None)
        for seed, prompt in enumerate(prompts)
    )
    while not loop.scheduler.idle:
        loop.advance()
    return sum(one.cached_tokens for one in running) / sum(map(len, prompts))


@pytest.mark.parametrize(("sequences", "ways", "most"), [(1, 1, 0.05), (4, 1, 0.7), (4, 3, 0.1)])
def test_pages_to_spare_keep_what_they_begin_with(
    tokenizer: Tokenizer, sequences: int, ways: int, most: float
) -> None:
    assert found(tokenizer, sequences, ways, 0) < most
    # All but a few of the first ones find their beginning, 80 of 92 tokens.
    assert found(tokenizer, sequences, ways, KEPT) > (0.75 if sequences > 1 else 0.65)
