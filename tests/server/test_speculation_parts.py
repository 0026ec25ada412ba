"""Drafters alone, and how many tokens they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_compile.runtime.speculation.acceptance import Acceptance
from infer_compile.runtime.speculation.draft import Draft, Verdict
from infer_compile.runtime.speculation.lookahead import Lookahead
from infer_compile.runtime.speculation.ngram import CANDIDATES, LONGEST, STRIDE, Index, Ngram
from infer_compile.runtime.speculation.pace import LONGEST_PROBE, Pace
from infer_compile.runtime.speculation.proposer import Ask
from infer_compile.runtime.speculation.times import StepTimes
from infer_compile.runtime.speculation.widths import best_widths, full_widths


def text(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def longest_match(tokens: list[int]) -> int | None:
    """By brute force: the place behind the latest of the longest earlier occurrences of the last tokens."""
    count, best, furthest = len(tokens), None, 1
    for place in range(count - 1, 1, -1):
        agreed = 0
        while agreed < min(LONGEST, place) and tokens[place - 1 - agreed] == tokens[count - 1 - agreed]:
            agreed += 1
        if agreed > furthest:
            best, furthest = place, agreed
    return best


@given(st.lists(st.integers(0, 3), max_size=60))
def test_the_index_finds_the_longest_match_whenever_it_is_read(tokens: list[int]) -> None:
    index = Index()
    for end in range(0, len(tokens) + 1, 3):
        found = next(iter(index.find(text(*tokens[:end]))), None)
        best = longest_match(tokens[:end])
        pair = tokens[end - 2 : end]
        occurrences = sum(tokens[place - 2 : place] == pair for place in range(2, end))
        assert (found is None) == (best is None)
        if occurrences <= CANDIDATES:
            assert found == best


def test_a_long_text_is_read_in_pieces() -> None:
    tokens = np.tile(np.arange(1000, dtype=np.int32), 10)
    index = Index()
    assert [index.find(tokens) for _ in range(len(tokens) // STRIDE)] == [[]] * (len(tokens) // STRIDE)
    assert index.find(tokens)[0] == len(tokens) - 1000


def test_a_draft_goes_on_where_its_source_ends() -> None:
    drafts = Ngram().propose(
        [
            Ask("a", text(5, 6, 7, 9, 9, 5, 6), 2),
            Ask("b", text(1, 2, 3, 1, 2, 3, 1, 2), 7),
            Ask("c", text(1, 2, 3, 4), 4),
            Ask("d", text(1), 4),
        ]
    )
    assert [draft.tokens.tolist() for draft in drafts] == [[7, 9], [3, 1, 2, 3, 1, 2, 3], [], []]


def test_siblings_are_where_the_text_went_on_otherwise() -> None:
    said = text(1, 2, 3, 4, 9, 1, 2, 7, 7, 9, 1, 2, 3, 6, 9, 1, 2)
    (draft,) = Ngram().propose([Ask("a", said, 3, 3)])
    assert draft.chain.tolist() == [3, 6, 9]
    assert draft.siblings.tolist() == [[7, -1], [4, -1], [-1, -1]]


def test_a_forgotten_text_is_read_anew() -> None:
    ngram = Ngram()
    ngram.propose([Ask("a", text(1, 2, 3, 1, 2), 1)])
    ngram.keep(())
    assert ngram.propose([Ask("a", text(4, 5, 6, 4, 5), 1)])[0].tokens.tolist() == [6]


def drafted(widths: list[int]) -> Draft:
    """A draft of this shape."""
    choices = np.arange(len(widths) * 4, dtype=np.int32).reshape(-1, 4)
    return Draft(choices[:, 0], choices[:, 1:]).shaped(widths)


def verdict(accepted: int, choice: int = 0) -> Verdict:
    return Verdict((), accepted, choice)


def test_a_window_is_columns_of_guesses_behind_a_line() -> None:
    lookahead = Lookahead(4, 3)
    (draft,) = lookahead.propose([Ask("a", text(1, 2, 3), 3)])
    # Two tokens stand behind the last one; then three columns of two, headed by the last one and those two.
    assert draft.window.parents.tolist() == [-1, 0, -1, 0, 1, 2, 3, 4]
    assert lookahead.window == len(draft.window) == 8
    assert draft.parents(1).tolist() == [-1, 0, 1, 0, 3, 0, 3, 4, 5, 6, 7]
    assert set(draft.tokens.tolist()) <= {1, 2, 3}


def test_n_grams_of_guesses_become_drafts_that_are_right() -> None:
    """Jacobi iteration: behind a column of three guesses comes what the model says to the last of them, and
    after as many steps as there are levels a column says what the model says to its head."""
    lookahead, said, kept, looked = Lookahead(4, 4), [7], [], []
    for _ in range(60):
        (draft,) = lookahead.propose([Ask("a", text(*said), 3, 2, text(*looked))])
        sampled = [(said[-1] * 5 + 3) % 11, *((token * 5 + 3) % 11 for token in draft.tokens.tolist())]
        verdict = draft.verdict(sampled)
        said += [sampled[row] for row in verdict.rows]
        looked = draft.looked(sampled).tolist()
        kept.append(verdict.accepted)
    assert said[:5] == [7, 5, 6, 0, 3]
    assert np.mean(kept[:3]) < 2
    assert np.mean(kept[-20:]) == 3, "every n-gram of the pool is one of the text"
    lookahead.keep(())
    (draft,) = lookahead.propose([Ask("a", text(*said), 3)])
    assert len(draft.chain) == 2, "a forgotten sequence has its window's guesses alone"


def test_a_window_stays_until_it_is_computed_and_then_grows_older() -> None:
    lookahead = Lookahead(3, 3)
    (first,) = lookahead.propose([Ask("a", text(*range(9)), 2)])
    (second,) = lookahead.propose([Ask("a", text(*range(10)), 2)])
    assert second.window.tokens.tolist() == first.window.tokens.tolist()
    (third,) = lookahead.propose([Ask("a", text(*range(11)), 2, 1, text(20, 21, 22, 23, 24))])
    assert third.window.tokens.tolist() == [*first.window.tokens[3:].tolist(), 22, 23, 24]


def test_acceptance_is_learnt_by_position_and_choice() -> None:
    acceptance = Acceptance(np.full((3, 3), 0.5), weight=2, memory=0.9)
    for count in range(100):
        acceptance.observe(drafted([1, 2, 3]), verdict(1, count % 2))
    first, second, third = acceptance.rates
    assert first[0] > 0.99
    assert first[1] == 0.5, "of choices that are not drafted nothing is seen"
    assert second[0] < 0.01
    assert 0.4 < second[1] < 0.6
    assert third.tolist() == [0.5] * 3, "behind the first that is not kept nothing is seen"


def test_a_draft_keeps_its_likeliest_tokens_when_it_is_cut() -> None:
    draft = drafted([3, 2, 1])
    assert (draft.tokens.tolist(), draft.rows, draft.widths.tolist()) == ([0, 4, 8, 1, 2, 5], 6, [3, 2, 1])
    assert draft.parents(2).tolist() == [-1, 0, 1, 2, 3, 1, 1, 2]
    assert draft.shaped([1, 1]).parents(2) is None
    assert [draft.cut(rows, 1).tokens.tolist() for rows in (0, 2, 4)] == [[], [0, 4], [0, 4, 8, 1]]
    long = Draft(np.arange(40, dtype=np.int32), np.arange(40, 80, dtype=np.int32)[:, None])
    assert long.cut(80, 2).rows == 40 + 22, "a tree has 64 tokens"
    assert full_widths(6, 3, 3).tolist() == [3, 2, 1]
    assert full_widths(99, 3, 2).tolist() == [2, 2, 2]
    assert full_widths(2, 3, 2).tolist() == [1, 1, 0]


def test_the_row_of_a_sibling_that_was_drawn_gives_one_token_more() -> None:
    draft = drafted([3, 2, 1])
    # Behind the last certain token, three of the chain, then 1 and 2 beside the first, 5 beside the second.
    rows = [90, 91, 92, 93, 94, 95, 96]

    def sampled(*drawn: int) -> list[int]:
        return [*drawn, *rows[len(drawn) :]]

    assert draft.verdict(sampled(50)) == Verdict((0,), 0, 0)
    assert draft.verdict(sampled(2)) == Verdict((0, 5), 0, 2)
    assert draft.verdict(sampled(0, 5)) == Verdict((0, 1, 6), 1, 1)
    assert draft.verdict(sampled(0, 1)) == Verdict((0, 1), 1, 0), "it stands at another depth"
    assert draft.verdict(sampled(0, 4, 8)) == Verdict((0, 1, 2, 3), 3, 0)


def test_times_follow_what_is_measured_and_outliers_hardly() -> None:
    times = StepTimes()
    assert times.at([1, 5]).tolist() == [0, 0]
    times.observe(2, 1.0)
    assert times.at([1, 2, 9]).tolist() == [1, 1, 1]
    times.observe(4, 2.0)
    assert times.at([2, 3, 4, 6]).tolist() == [1, 1.5, 2, 3]
    times.observe(2, 100.0)
    assert times.at(2) == pytest.approx(1.2)
    for _ in range(40):
        times.observe(2, 0.5)
    assert times.at(2) == pytest.approx(0.5)


def affine(fixed: float, each: float) -> StepTimes:
    times = StepTimes()
    for rows in (1, 100):
        times.observe(rows, fixed + each * rows)
    return times


def by_hand(rates: np.ndarray, total: int, fixed: float, each: float, depth: float) -> float:
    """The most tokens per second that any lengths give."""
    sequences, positions = rates.shape
    best = 0.0
    for index in np.ndindex(*(positions + 1,) * sequences):
        if sum(index) <= total:
            tokens = sequences + sum(np.cumprod(rates[i])[:k].sum() for i, k in enumerate(index))
            seconds = fixed + each * (sequences + sum(index)) + depth * max(index)
            best = max(best, tokens / seconds)
    return best


@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 10),
    st.sampled_from([(10, 0.1), (1, 1), (0.1, 1)]),
)
def test_lengths_are_the_best_there_are(
    seed: int, sequences: int, total: int, costs: tuple[float, float]
) -> None:
    rates = np.random.default_rng(seed).random((sequences, 4))
    lengths = best_widths(rates[..., None], total, affine(*costs), 0.0).sum(axis=1)
    assert lengths.sum() <= total
    tokens = sequences + sum(np.cumprod(row)[:k].sum() for row, k in zip(rates, lengths, strict=True))
    speed = tokens / (costs[0] + costs[1] * (sequences + lengths.sum()))
    assert speed * 1.021 >= by_hand(rates, total, *costs, 0.0)


def test_a_slow_drafter_is_asked_for_less() -> None:
    rates, times = np.full((2, 4, 1), 0.8), affine(10, 0.01)
    assert best_widths(rates, 99, times, 0.1).tolist() == [[1, 1, 1, 1]] * 2
    assert best_widths(rates, 99, times, 4.0).tolist() == [[1, 1, 0, 0]] * 2
    assert best_widths(rates, 99, times, 9.0).tolist() == [[0, 0, 0, 0]] * 2


def test_siblings_are_drafted_where_they_bring_more_than_their_rows_cost() -> None:
    rates = np.array([[[0.5, 0.3, 0.05], [0.5, 0.3, 0.05]]])
    assert best_widths(rates, 99, affine(10, 0.01), 0.0).tolist() == [[3, 3]]
    # A row is a fifth of a step: 0.5 is worth it, 0.3 is not; were it a ninth, 0.25 would be as well.
    assert best_widths(rates, 99, affine(4, 1), 0.0).tolist() == [[1, 0]]
    assert best_widths(rates, 99, affine(8, 1), 0.0).tolist() == [[2, 1]]
    assert best_widths(rates, 2, affine(10, 0.01), 0.0).tolist() == [[2, 0]], "the likelier two of all"
    # A window comes with the first choice of each sequence, and there is not always room for it.
    line = np.array([[[0.5], [0.4]]])
    assert best_widths(line, 99, affine(10, 1), 0.0, 1).tolist() == [[1, 1]]
    assert best_widths(line, 99, affine(10, 1), 0.0, 7).tolist() == [[0, 0]]
    assert best_widths(line, 99, affine(10, 0.01), 0.0, 5).tolist() == [[1, 1]]
    assert best_widths(line, 6, affine(10, 0.01), 0.0, 5).tolist() == [[1, 0]]
    assert best_widths(line, 5, affine(10, 0.01), 0.0, 5).tolist() == [[0, 0]]
    # A sibling that is drawn is computed twice; were it not, it would be worth as much as the chain's token.
    even = np.array([[[0.45, 0.45]]])
    assert best_widths(even, 99, affine(1, 0.42), 0.0).tolist() == [[1]]


def lengths_of(pace: Pace, keys: list[object], total: int) -> list[int]:
    """Tokens to draft for each."""
    return [int(each.sum()) for each in pace.widths(keys, total)] or [0] * len(keys)


def simulated(
    accept: Callable[[int], float], *, fixed: float, each: float, draft: float, steps: int
) -> tuple[float, list[int]]:
    """Seconds per token of one sequence over seconds per token without drafts, and the lengths asked for;
    ``accept(step)`` is the chance of every draft."""
    random = np.random.default_rng(3)
    pace = Pace(4, 0.5)
    seconds, tokens, asked = 0.0, 0, []
    for step in range(steps):
        (length,) = lengths_of(pace, ["a"], 7)
        kept = 0
        while kept < length and random.random() < accept(step):
            kept += 1
        took = fixed + each * (1 + length)
        pace.stepped(1 + length, took)
        if length:
            pace.proposed(1, length, draft * length)
            pace.drafted("a", drafted([1] * length), verdict(kept))
        seconds += took + draft * length
        tokens += 1 + kept
        asked.append(length)
    return seconds / tokens / (fixed + each), asked


def test_a_drafter_that_is_always_wrong_is_switched_off_and_costs_little() -> None:
    cost, asked = simulated(lambda step: 0.0, fixed=1, each=0.3, draft=0.2, steps=2000)
    assert cost < 1.02
    assert 0 < sum(length > 0 for length in asked) < 30
    assert sum(length > 0 for length in asked[-LONGEST_PROBE // 2 :]) <= 1


def test_a_good_one_is_used_at_full_length_where_steps_cost_no_more() -> None:
    cost, asked = simulated(lambda step: 0.9, fixed=1, each=0.01, draft=0.01, steps=500)
    assert np.mean(asked) > 3.5
    assert cost < 0.35


def test_what_does_not_pay_is_tried_again_and_taken_up_when_it_does() -> None:
    _, asked = simulated(lambda step: 0.0 if step < 300 else 0.95, fixed=1, each=0.1, draft=0.05, steps=3000)
    assert np.mean(asked[200:300]) < 0.1
    assert np.mean(asked[-500:]) > 3


def test_every_sequence_has_a_length_of_its_own() -> None:
    pace, asked = Pace(4, 0.5), []
    for _ in range(100):
        lengths = lengths_of(pace, ["good", "bad"], 14)
        asked.append(lengths)
        pace.stepped(2 + sum(lengths), 1 + 0.15 * (2 + sum(lengths)))
        if any(lengths):
            pace.proposed(2, max(lengths), 0.01)
        for key, length, rate in zip(("good", "bad"), lengths, (1, 0), strict=True):
            if length:
                pace.drafted(key, drafted([1] * length), verdict(length * rate))
    assert sum(each == [4, 0] for each in asked[-20:]) >= 18, "all but probes"


@pytest.mark.parametrize("width", [1, 3])
def test_no_more_is_drafted_than_there_are_rows(width: int) -> None:
    pace = Pace(4, 1.0, width, 0.5)
    keys = list(range(5))
    for _ in range(200):
        lengths = lengths_of(pace, keys, 7)
        assert sum(lengths) <= 7
        pace.stepped(5 + sum(lengths), 1.0)
        if any(lengths):
            pace.proposed(5, max(lengths), 0.01)
