"""The sampler that runs where the logits are, against the slow one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import draw_sampling

from infer_compile.runtime.engines.draws import (
    LARGEST,
    UNSETTLED,
    altered,
    draw,
    draw_among_largest,
    draws_of,
)
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


SETTINGS = [
    # Told by the largest: cut by each of the three, greedy, and not cut, where the number finds a likely one.
    (Sampling(temperature=1.0, top_k=15), True),
    (Sampling(temperature=0.7, top_p=0.5), True),
    (Sampling(temperature=0.7, min_p=0.2), True),
    (Sampling(temperature=0.7, top_k=15, top_p=0.9, min_p=0.01), True),
    (Sampling(temperature=0.2), True),
    (Sampling(), True),
    # Not told: more candidates than were put in order, in each of the three ways.
    (Sampling(temperature=1.0, top_k=20), False),
    (Sampling(temperature=1.0, top_k=60, top_p=0.2), False),
    (Sampling(temperature=1.5, top_p=0.999), False),
    (Sampling(temperature=1.5, min_p=1e-9), False),
]


@pytest.mark.parametrize(("sampling", "told"), SETTINGS)
def test_the_largest_logits_tell_or_leave_it_to_all(sampling: Sampling, told: bool) -> None:
    """Of 150 the first 20, of which the last may have equals."""
    rng = np.random.default_rng(3)
    logits = (3 * rng.standard_normal((40, VOCABULARY))).astype(np.float32)
    batch = [part(row, replace(sampling, seed=row)) for row in range(len(logits))]
    settings = torch.from_numpy(draws_of(batch, VOCABULARY).settings)
    whole = draw(torch.from_numpy(logits), settings)
    assert whole.tolist() == [
        slow(row, own.step.sampling, None, 8) for row, own in zip(logits, batch, strict=True)
    ]
    found = draw_among_largest(torch.from_numpy(logits), settings, 20)
    assert torch.all((found == whole) | (found == UNSETTLED))
    assert torch.all(found == whole) if told else torch.all(found == UNSETTLED)


def test_a_flat_tail_is_left_to_all_where_the_number_falls_into_it() -> None:
    logits = torch.zeros(40, VOCABULARY)
    logits[:, 7] = 4.0
    settings = torch.from_numpy(
        draws_of([part(row, Sampling(temperature=1.0, seed=row)) for row in range(40)], VOCABULARY).settings
    )
    found = draw_among_largest(logits, settings, 20)
    assert set(found.tolist()) == {7, UNSETTLED}
    assert torch.equal(found == 7, draw(logits, settings) == 7)


def test_equals_of_the_largest_are_left_to_all() -> None:
    """The largest of which there are more than were looked at, greedy or not: which of them is the first?"""
    logits = torch.zeros(2, VOCABULARY)
    batch = [part(0, Sampling()), part(1, Sampling(temperature=1.0, top_k=1))]
    settings = torch.from_numpy(draws_of(batch, VOCABULARY).settings)
    assert draw_among_largest(logits, settings, 20).tolist() == [UNSETTLED, UNSETTLED]
    assert draw(logits, settings).tolist() == [0, 0]


def test_masked_rows_are_told_by_what_is_allowed() -> None:
    logits = torch.full((1, 4 * LARGEST), -torch.inf)
    logits[0, [5, 900, 4 * LARGEST - 1]] = torch.tensor([1.0, 3.0, 2.0])
    for sampling in (Sampling(temperature=1.0, top_p=0.9999), Sampling(temperature=1.0), Sampling()):
        settings = torch.from_numpy(draws_of([part(0, sampling)], 4 * LARGEST).settings)
        assert draw_among_largest(logits, settings).tolist() == draw(logits, settings).tolist()
        assert draw(logits, settings).item() == slow(logits[0].numpy(), sampling, None, 8)


def test_what_is_greedy_needs_no_draw() -> None:
    assert draws_of([part(0, Sampling()), part(1, Sampling(), outputs=0)], VOCABULARY).greedy
    assert not draws_of([part(0, Sampling(temperature=1.0))], VOCABULARY).greedy
    assert not draws_of([part(0, Sampling(), np.full(5, 1, np.uint32))], VOCABULARY).greedy


@pytest.mark.parametrize("words", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0xFFC00000], [0]])
def test_a_mask_that_allows_nothing_is_refused(words: list[int]) -> None:
    """Bits beyond the vocabulary allow nothing."""
    with pytest.raises(InferCompileError, match=r"IC521(.|\n)*allows no token"):
        draws_of([part(0, Sampling(), np.array(words, np.uint32))], VOCABULARY)
