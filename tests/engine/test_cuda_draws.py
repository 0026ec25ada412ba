"""The sampler that runs where the logits are, against the slow one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import draw_sampling

from infer_compile.runtime.engines.draws import altered, draw, draws_of
from infer_compile.runtime.engines.rows import Rows
from infer_compile.runtime.engines.sampling import draw as slow
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.step import Sampling, SequenceStep

VOCABULARY = 150


def part(first: int, sampling: Sampling, mask: np.ndarray | None = None, outputs: int = 1) -> Rows:
    tokens, pages = np.zeros(outputs, np.int32), np.zeros(1, np.int32)
    step = SequenceStep(tokens, 7, outputs, 0, pages, pages, outputs, sampling=sampling, mask=mask)
    sees = np.tri(outputs, dtype=np.bool_)
    return Rows(step, first, outputs, 7 + np.arange(outputs), sees, range(0))


def masked(rng: np.random.Generator) -> np.ndarray:
    """Some tokens, of a vocabulary that ends within a word."""
    return rng.integers(0, 2**32, -(-VOCABULARY // 32), dtype=np.uint32) | np.uint32(1)


@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_those_of_the_slow_sampler(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = []
    for _ in range(20):
        sampling = draw_sampling(rng) if rng.random() < 0.8 else Sampling()
        if rng.random() < 0.3:
            ids = rng.choice(VOCABULARY, 9, replace=False).astype(np.int32)
            bias = rng.normal(size=9).astype(np.float32)
            penalty = rng.uniform(0.5, 2, 9).astype(np.float32)
            sampling = Sampling(sampling.temperature, seed=seed, ids=ids, bias=bias, penalty=penalty)
        first = sum(own.count for own in batch)
        mask = masked(rng) if rng.random() < 0.3 else None
        batch.append(part(first, sampling, mask, int(rng.integers(1, 4))))
    rows = sum(own.count for own in batch)
    logits = (3 * rng.standard_normal((rows, VOCABULARY))).astype(np.float32)
    logits[:, 5] = logits[:, 9]
    draws = draws_of(batch, VOCABULARY)
    assert not draws.greedy and draws.altered
    found = draw(altered(torch.from_numpy(logits), draws.steps), torch.from_numpy(draws.settings))
    expected = [
        slow(logits[row], own.step.sampling, own.step.mask, int(own.positions[row - own.first]) + 1)
        for own in batch
        for row in own.outputs
    ]
    assert found.tolist() == expected


def test_what_is_greedy_needs_no_draw() -> None:
    assert draws_of([part(0, Sampling()), part(1, Sampling(), outputs=0)], VOCABULARY).greedy
    assert not draws_of([part(0, Sampling(temperature=1.0))], VOCABULARY).greedy
    assert not draws_of([part(0, Sampling(), np.full(5, 1, np.uint32))], VOCABULARY).greedy


@pytest.mark.parametrize("words", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0xFFC00000], [0]])
def test_a_mask_that_allows_nothing_is_refused(words: list[int]) -> None:
    """Bits beyond the vocabulary allow nothing."""
    with pytest.raises(InferCompileError, match=r"IC521(.|\n)*allows no token"):
        draws_of([part(0, Sampling(), np.array(words, np.uint32))], VOCABULARY)
