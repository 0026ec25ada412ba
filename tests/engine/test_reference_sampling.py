"""The reference sampler against its description, spelt out differently."""

from __future__ import annotations

import numpy as np
import pytest

from infer_compile.runtime.engines.sampling import adjust, draw, uniform
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.step import Sampling


def test_uniform_numbers_are_splitmix64() -> None:
    # The generator's first outputs for seed 1234567, a published test vector (Rosetta Code, "Splitmix64").
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [uniform(1234567, position) for position in range(4)] == [(z >> 40) / 2**24 for z in outputs]
    many = np.array([uniform(5, position) for position in range(20000)])
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01 and abs(many.var() - 1 / 12) < 0.003


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = np.array([1, 4, 2, 4, 4], np.float32)
    assert draw(logits, Sampling(), None, 0) == 1
    assert draw(logits, Sampling(), np.array([0b11100], np.uint32), 0) == 3
    level = np.zeros(5000, np.float32)
    assert draw(level, Sampling(), None, 0) == 0
    drawn = {draw(level, Sampling(temperature=1.0, top_k=3), None, position) for position in range(50)}
    assert drawn == {0, 1, 2}


def test_adjustments_come_before_everything() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    sampling = Sampling(
        ids=np.array([0, 1, 3], np.int32),
        penalty=np.array([2.0, 2.0, 1.0], np.float32),
        bias=np.array([0.0, 1.0, 9.0], np.float32),
    )
    assert adjust(logits, sampling).tolist() == [1.0, -3.0, 1.0, 9.5]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5], "the caller's array is not touched"
    assert draw(logits, sampling, None, 0) == 3


def frequencies(sampling: dict[str, float], logits: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    drawn = [draw(logits, Sampling(**sampling, seed=3), mask, position) for position in range(4000)]  # type: ignore[arg-type]
    return np.bincount(drawn, minlength=logits.size) / len(drawn)


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, [0.05, 0.4, 0.1, 0.25, 0.2]),
        ({"temperature": 0.5}, [0.0025, 0.16, 0.01, 0.0625, 0.04]),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4, 0, 0.25, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0, 0.4, 0, 0.25, 0]),
        ({"temperature": 1.0, "top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.3}, [0, 0.4, 0, 0.25, 0.2]),
        # Of the two kept by top_k the first alone has 0.4 / 0.65 > 0.6.
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.99, "min_p": 0.6}, [0, 0.4, 0, 0.25, 0]),
    ],
)
def test_draws_have_the_described_distribution(sampling: dict[str, float], expected: list[float]) -> None:
    target = np.array(expected) / sum(expected)
    found = frequencies(sampling, LOGITS)
    assert np.abs(found - target).max() < 0.025
    assert not found[target == 0].any()


def test_a_mask_comes_before_the_truncations() -> None:
    found = frequencies({"temperature": 1.0, "top_k": 2}, LOGITS, np.array([0b00101], np.uint32))
    assert found[[1, 3, 4]].sum() == 0
    assert found[0] == pytest.approx(1 / 3, abs=0.03)


def test_the_first_candidate_beyond_the_number_is_taken() -> None:
    """Candidates by falling logit: the cumulative sums decide, drawn by hand from the same number."""
    order, cumulative = [1, 3, 4, 2, 0], [0.4, 0.65, 0.85, 0.95, 1.0]
    for position in range(300):
        number = uniform(8, position)
        expected = next(token for token, top in zip(order, cumulative, strict=True) if top > number)
        assert draw(LOGITS, Sampling(temperature=1.0, seed=8), None, position) == expected


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(InferCompileError, match="allows no token"):
        draw(LOGITS, Sampling(), np.zeros(1, np.uint32), 0)
