"""Why tokens are drafted, or are not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import support
from ..block import Counts
from ..candidate import Candidate
from ..deployment import Deployment
from ..draft_time import draft_seconds
from ..frontier import drafting
from ..plan import Reason
from ..speculation import NONE, break_even_batch, speedup
from ..survey import Column
from .contest import Contest, broken
from .devices import version
from .replay import replay
from .words import listed, times, whole

THE_SPEC = "the spec"


def speculation(contest: Contest) -> Reason:
    """Drafting as chosen against none, or none against the best drafting there is."""
    asked, chosen = contest.asked, contest.chosen
    pinned = asked.spec.pin.speculation is not None
    if chosen.drafting.tokens:
        clauses = ["pinned" if pinned else _gain(contest), *_numbers(asked, chosen), *_next(contest)]
        return Reason(
            key="speculation",
            value=drafting(chosen),
            why="; ".join(clauses),
            source=chosen.drafting.source,
        )
    if pinned:
        return Reason(key="speculation", value="none", why="pinned", source=THE_SPEC)
    drafted = contest.engine & (contest.survey.drafted > 0)
    if not np.any(drafted):
        return Reason(
            key="speculation",
            value="none",
            why=_nothing(asked, chosen),
            source=version(chosen.engine, "speculation"),
        )
    best = contest.best(drafted)
    if best is None:
        near = contest.nearest(drafted)
        one = contest.survey.candidate(near if near is not None else contest.index)
        why = f"no plan with drafts keeps the limits; the nearest, {drafting(one)}, {broken(one)}"
        return Reason(key="speculation", value="none", why=why, source=one.drafting.source)
    one, gain = contest.survey.candidate(best), contest.gain(best)
    margin = asked.facts.choices.margins.speculation_gain
    verdict = f"the best drafts, {drafting(one)}, would give {times(gain)} ({contest.figure(best)})"
    if gain > 1:
        verdict += f", and have to win {margin.value:g}x: {margin.source}"
    return Reason(
        key="speculation",
        value="none",
        why="; ".join([verdict, *_numbers(asked, one)]),
        source=one.drafting.source,
    )


def pays_up_to(asked: Deployment, chosen: Candidate) -> int | None:
    """The largest number of sequences in flight, of as many as the engine takes, at which steps with the
    drafts of ``chosen`` yield more tokens per second than plain ones.

    None where it drafts nothing, 0 where that never pays.
    """
    one = chosen.drafting
    if not one.tokens:
        return None
    counts = np.arange(1, _most(asked, chosen) + 1)
    return break_even_batch(lambda counts: _seconds(asked, chosen, counts), one.expected, counts)


def _seconds(asked: Deployment, chosen: Candidate, counts: Counts) -> tuple[Column, Column, Column]:
    """A plain step, one that verifies the drafts of ``chosen``, and its wait for the draft, with so many in
    flight."""
    one = chosen.drafting
    total = np.asarray(replay(asked, chosen, counts, (NONE, one)).forecast.step.total, dtype=np.float64)
    plain, verify = np.split(total, 2)
    context = float(chosen.forecast.load.decode_context)
    wait = draft_seconds(one, chosen.speed, chosen.layout, counts / int(chosen.layout.data), context)
    return plain, verify, np.asarray(wait, dtype=np.float64)


def _most(asked: Deployment, one: Candidate) -> int:
    return int(one.engine.on(asked.target.kind).most_sequences.value) * int(one.layout.data)


def _gain(contest: Contest) -> str:
    """The chosen drafts against the best plan without any."""
    plain = contest.best(contest.engine & (contest.survey.drafted == 0))
    if plain is None:
        return "no plan without drafts keeps the limits"
    return f"{times(1 / contest.gain(plain))} the best without drafts ({contest.against(plain)})"


def _next(contest: Contest) -> Iterator[str]:
    """The best of the other methods."""
    mine = ("none", contest.chosen.drafting.method)
    others = contest.each(
        lambda solved: np.array([one.method not in mine for one in solved.block.draftings])[
            solved.block.drafted
        ]
    )
    best = contest.best(contest.engine & others)
    if best is not None:
        yield f"the next method, {drafting(contest.survey.candidate(best))}, {times(contest.gain(best))}"


def _numbers(asked: Deployment, one: Candidate) -> Iterator[str]:
    """Expected tokens, and the seconds of draft, verify and plain step at the load."""
    draft = one.drafting
    seconds = _seconds(asked, one, np.array([one.sequences]))
    plain, verify, wait = (1e3 * float(each[0]) for each in seconds)
    by = f" by {draft.draft}" if draft.draft else ""
    choices = f" with {draft.width} choices for each" if draft.width > 1 else ""
    yield (
        f"{draft.tokens} drafted{by}{choices}, and a step yields {draft.expected:.3g} tokens "
        f"({draft.expected_low:.3g} to {draft.expected_high:.3g})"
    )
    yield (
        f"{whole(wait)} ms to draft and {whole(verify)} to verify, where a plain step takes {whole(plain)}: "
        f"{times(float(speedup(plain, verify, wait, draft.expected)))} for each sequence"
    )
    limit, most = pays_up_to(asked, one), _most(asked, one)
    if limit is not None and limit >= most:
        yield f"pays at all the {most:,} sequences that the engine takes"
    elif limit:
        yield f"pays up to {limit:,} sequences in flight"


def _nothing(asked: Deployment, chosen: Candidate) -> str:
    """Why there was nothing to choose from."""
    name = chosen.engine.name
    methods = support.methods(chosen.engine, asked.graph, asked.target)[1:]
    if not methods:
        return f"{name} drafts nothing for {asked.graph.architecture} on {asked.target.name}"
    return f"{name} drafts by {listed(methods)}, and no drafter is known for {asked.graph.name}"
