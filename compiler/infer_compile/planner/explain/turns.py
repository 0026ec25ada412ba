"""What would change the decision: the nearest change of the question after which another plan is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .. import support
from ..candidate import Candidate
from ..deployment import Deployment, Draftings
from ..frontier import choice
from ..plan import Choice, Turn
from ..speculation import Drafting
from .words import split

MOST = 6
"""Turns that a plan tells of."""
REACH = 16
"""How far a figure of the spec is followed, as a factor."""
NEAR = 1.5
"""A turn is found to within this factor, or to the whole number."""
PARTS = 100
"""Figures that are no whole numbers are followed in hundredths of what they are."""
TYPICAL_DRAFT = 3
"""Drafted tokens that stand for a method."""
NOTHING = "nothing keeps every limit"

Solve = Callable[[Deployment], Candidate | None]
"""What would be chosen; None where nothing keeps every limit."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """A figure of the spec, followed from ``start`` towards ``end`` in whole numbers. ``at`` asks the changed
    question, ``say`` is the figure there in the spec's terms."""

    key: str
    start: int
    end: int
    at: Callable[[int], Deployment]
    say: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class _Found:
    distance: float
    turn: Turn


@dataclass(frozen=True, slots=True)
class _Question:
    """The decision as it is, and what other questions would be answered with."""

    asked: Deployment
    decided: Choice
    solve: Solve

    def told(self, one: Candidate | None) -> str:
        """What ``one`` decides otherwise; empty if nothing."""
        return NOTHING if one is None else difference(self.decided, choice(self.asked, one))

    def change(self, changed: Deployment) -> str:
        """What is decided otherwise for ``changed``; empty if nothing is."""
        return self.told(self.solve(changed))


def turns(asked: Deployment, chosen: Candidate, solve: Solve) -> tuple[Turn, ...]:
    """For load, length, quality and time between tokens the nearest change, each way, after which another
    engine, weight format, cache level, split or way of drafting is chosen, or nothing keeps every limit; the
    nearest first.

    ``solve`` is asked with the drafts that matter alone: none, those of the chosen drafter, one of each other
    method. A change that is undone further on may go unseen: an end that decides the same ends the search.
    """
    fewer = replace(asked, draftings=_few(asked, chosen))
    question = _Question(asked, choice(asked, chosen), solve)
    if question.change(fewer):
        # The smaller question has another answer, so its turns would not be those of the plan.
        return ()
    loads = [*_load(fewer), *_length(fewer)]
    if asked.rate is not None or asked.spec.objective == "capacity":
        # Each answer is a search of its own for the number in flight: only what grows is followed.
        loads = [axis for axis in loads if axis.end > axis.start]
    found = [one for axis in (*loads, *_time(fewer, chosen)) for one in _turn(question, axis)]
    found += _budgets(question, fewer, chosen)
    return tuple(one.turn for one in sorted(found, key=lambda one: one.distance)[:MOST])


def difference(old: Choice, new: Choice) -> str:
    """What ``new`` decides otherwise, in words; empty if nothing."""
    methods = [one.speculation.partition(":")[0] for one in (old, new)]
    pairs = (
        ("engine", old.engine, new.engine),
        ("weights", old.weights, new.weights),
        ("cache", old.kv, new.kv),
        ("split", split(old.parallelism), split(new.parallelism)),
        ("drafts", *methods),
    )
    return "; ".join(f"{noun} {after}" for noun, before, after in pairs if before != after)


def _few(asked: Deployment, chosen: Candidate) -> Draftings:
    """The drafts that matter, looked up once for every engine."""
    found: dict[tuple[tuple[str, ...], int], tuple[Drafting, ...]] = {}
    for engine in asked.facts.engines.engines:
        key = (support.methods(engine, asked.graph, asked.target), engine.vocabulary_slack)
        if key not in found:
            found[key] = tuple(_matter(asked.draftings(*key), chosen.drafting))
    return lambda methods, slack: found[methods, slack]


def _matter(known: tuple[Drafting, ...], mine: Drafting) -> Iterator[Drafting]:
    seen = set()
    for one in sorted(known, key=lambda one: abs(one.tokens - TYPICAL_DRAFT)):
        if one.method not in seen or (one.method, one.draft) == (mine.method, mine.draft):
            yield one
        seen.add(one.method)


def _turn(question: _Question, axis: _Axis) -> Iterator[_Found]:
    """The nearest number from ``start`` on that changes the decision, by bisection of the factor."""
    low, high = axis.start, axis.end
    then = question.change(axis.at(high)) if low != high else ""
    if not then:
        return
    while abs(high - low) > 1 and max(high / low, low / high) > NEAR:
        middle = round(math.sqrt(low * high))
        middle = min(max(middle, min(low, high) + 1), max(low, high) - 1)
        change = question.change(axis.at(middle))
        if change:
            high, then = middle, change
        else:
            low = middle
    way = "more" if axis.end > axis.start else "less"
    turn = Turn(key=axis.key, at=f"{axis.say(high)} and {way}", then=then)
    yield _Found(abs(math.log(high / axis.start)), turn)


def _load(asked: Deployment) -> Iterator[_Axis]:
    """Sequences in flight, or requests per second."""
    rate = asked.rate
    if rate is not None:

        def rated(parts: int) -> float:
            return _short(rate * parts / PARTS)

        for end in (PARTS * REACH, PARTS // REACH):
            yield _Axis(
                "workload.requests_per_second",
                PARTS,
                end,
                lambda parts: replace(asked, rate=rated(parts)),
                lambda parts: f"{rated(parts):g}",
            )
        return
    for end in (asked.concurrency * REACH, max(1, asked.concurrency // REACH)):
        yield _Axis(
            "workload.concurrency",
            asked.concurrency,
            end,
            lambda count: replace(asked, concurrency=count),
            lambda count: f"{count:,}",
        )


def _length(asked: Deployment) -> Iterator[_Axis]:
    """Context, prompt and answer in proportion."""

    def lengths(context: int) -> tuple[int, int]:
        share = context / asked.context
        return max(1, int(asked.input_tokens * share)), max(1, int(asked.output_tokens * share))

    def at(context: int) -> Deployment:
        prompt, answer = lengths(context)
        return replace(asked, context=context, input_tokens=prompt, output_tokens=answer)

    def say(context: int) -> str:
        prompt, answer = lengths(context)
        return f"{context:,} (prompt {prompt:,}, answer {answer:,})"

    longest = min(asked.context * REACH, asked.graph.max_context)
    for end in (max(longest, asked.context), max(2, asked.context // REACH)):
        yield _Axis("workload.context_tokens", asked.context, end, at, say)


def _budgets(question: _Question, asked: Deployment, chosen: Candidate) -> Iterator[_Found]:
    """The budget of what may be lost. A pin is charged to a budget that is stated: nothing is said of it."""
    pin, loss = asked.spec.pin, chosen.loss.expected
    if pin.weights is not None or pin.kv is not None:
        return

    def at(percent: float) -> Deployment:
        return replace(asked, budget_percent=percent, budget_stated=True)

    key, budget = "quality.max_loss_percent", asked.budget_percent
    if loss:
        then = question.change(at(_below(loss)))
        if then:
            yield _Found(math.log(budget / _below(loss)), Turn(key=key, at=f"less than {loss:g}", then=then))
    looser, turn = budget * REACH, None
    # A looser budget lets something in: is anything else better before that is let in?
    while looser > budget:
        one = question.solve(at(looser))
        then = question.told(one)
        if one is None or not then:
            break
        least = one.loss.expected
        turn = _Found(math.log(least / budget), Turn(key=key, at=f"{least:g} and more", then=then))
        looser = _below(least)
    if turn is not None:
        yield turn


def _time(asked: Deployment, chosen: Candidate) -> Iterator[_Axis]:
    """The time between tokens: tighter than the plan's own, or looser than a limit that the spec sets."""
    limit = asked.slo.itl_ms
    own = float(chosen.forecast.itl) * 1e3
    for start, end in ((own, PARTS // REACH), (limit, PARTS * REACH)):
        if start is None:
            continue

        def milliseconds(parts: int, start: float = start) -> float:
            return _short(start * parts / PARTS)

        def at(parts: int, milliseconds: Callable[[int], float] = milliseconds) -> Deployment:
            slo = asked.slo.model_copy(update={"itl_ms": milliseconds(parts)})
            return replace(asked, spec=asked.spec.model_copy(update={"slo": slo}))

        def say(parts: int, milliseconds: Callable[[int], float] = milliseconds) -> str:
            return f"{milliseconds(parts):g}"

        yield _Axis("slo.itl_ms", PARTS, end, at, say)


def _below(figure: float) -> float:
    """A little less."""
    return _short(0.99 * figure)


def _short(figure: float) -> float:
    """Three significant digits: what is asked is what is written."""
    return float(f"{figure:.3g}")
