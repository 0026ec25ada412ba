"""Why the weights are stored as they are, and what formats and levels are held against each other by."""

from __future__ import annotations

from collections.abc import Iterator

from ...graph.storage import misfits, stored_format
from ...runtime.formats.weights import BF16, GROUPS, weight_format
from .. import support
from ..candidate import Candidate
from ..choose import goes_deep
from ..deployment import Deployment
from ..plan import Reason
from ..quality import Expected
from ..units import size
from .contest import Contest, Mask, broken
from .words import listed, times

THE_SPEC = "the spec"
ARITHMETIC = "arithmetic"
RULE = "a rule of the native engine"


def weights(contest: Contest) -> Reason:
    """The format against the others that the engine serves."""
    asked, chosen = contest.asked, contest.chosen
    bits = chosen.scheme.bits
    each = f"{bits.matrix:g} bits per weight"
    if chosen.scheme.experts_only and chosen.stored.expert_bytes:
        each = f"{bits.expert:g} bits per weight of the experts, 16 of the rest"
    held = f"{each}, {size(float(chosen.memory.weights))}{' on each device' if asked.devices > 1 else ''}"
    loss = f"{loss_in_words(chosen.loss_of_weights)}"
    if asked.pinned_weights:
        clauses, source = ["pinned", held, loss], THE_SPEC
    else:
        clauses = [held, loss, *against(contest, "weights"), *_not_served(contest)]
        source = chosen.loss_of_weights.source
    return Reason(key="weights", value=chosen.scheme.name, why="; ".join(clauses), source=source)


def group(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """How many weights share a scale, in our own engine."""
    form = chosen.weights
    if form is None or not form.group:
        return
    if asked.pinned_group:
        yield Reason(key="weights.group", value=str(form.group), why="pinned", source=THE_SPEC)
        return
    larger = [
        f"{misfits(asked.graph, other)[0].cols} inputs do not divide by {other.group}"
        for other in (weight_format(form.name, size) for size in GROUPS if size > form.group)
    ]
    why = "the largest that divides the inputs of every matrix: fewer scales, fewer bytes"
    yield Reason(
        key="weights.group",
        value=str(form.group),
        why="; ".join([why, *larger]),
        source="the shapes of the model",
    )


def head(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """What the head is stored in, in our own engine."""
    form = chosen.weights
    if form is None:
        return
    tied = " and shares the embedding" if asked.graph.tied else ""
    if stored_format("head", form) == BF16:
        why = "is as all weights" if form == BF16 else "stays bf16: its errors reach the logits unaveraged"
        source = ARITHMETIC if form == BF16 else RULE
        yield Reason(key="weights.head", value="bf16", why=why + tied, source=source)
        return
    yield Reason(
        key="weights.head",
        value="int8",
        why="every step reads it whole, and its errors reach the logits unaveraged; the embedding stays "
        "bf16: a step reads one row of it per token",
        source=RULE,
    )


def loss_in_words(loss: Expected) -> str:
    """A loss with its range."""
    if not loss.high:
        return "no loss"
    return f"{loss.expected:g} % loss expected ({loss.low:g} to {loss.high:g})"


def against(contest: Contest, part: str, skip: str = "") -> Iterator[str]:
    """The chosen format or level against each other one of the same engine, at its best."""
    chosen = contest.chosen
    mine, kept = chosen.scheme.name, chosen.level
    other = "kv"
    if part == "kv":
        mine, kept, other = kept, mine, "weights"
    possible: dict[str, int] = {}
    lossy: list[str] = []
    missed: list[str] = []
    for name in _names(contest, part):
        if name in (mine, skip):
            continue
        named = contest.engine & _named(contest, part, name)
        # With the other part as it is, if that is possible: what differs is what is compared.
        best = contest.best(named & _named(contest, other, kept))
        best = contest.best(named) if best is None else best
        if best is not None:
            possible[name] = best
            continue
        near = contest.nearest(named & _named(contest, other, kept))
        if near is None:
            continue
        one = contest.survey.candidate(near)
        if [each.limit for each in one.violations] == ["quality"]:
            lossy.append(f"{name} {_own_loss(one, part).expected:g} %")
        else:
            missed.append(f"{name} {broken(one)}")
    ranked = sorted(possible, key=lambda name: -contest.gain(possible[name]))
    noun = "format" if part == "weights" else "level"
    if not ranked and part == "weights" and (lossy or missed):
        yield f"the only {noun} that keeps every limit"
    for place, name in enumerate(ranked[:1]):
        yield from _runner_up(contest, name, possible[name], part)
        rest = [f"{each} {times(contest.gain(possible[each]))}" for each in ranked[place + 1 :]]
        if rest:
            yield f"then {listed(rest)}"
    if lossy:
        budget = contest.asked.budget_percent
        yield f"over the budget of {budget:g} % loss{_beside(contest, part)}: {listed(lossy)}"
    if missed:
        yield f"out of the question: {listed(missed, 3)}"


def _beside(contest: Contest, part: str) -> str:
    """What of the budget the other part takes."""
    asked, chosen = contest.asked, contest.chosen
    noun, other, pinned = "weights", chosen.loss_of_weights, asked.spec.pin.weights is not None
    if part == "weights":
        noun, other, pinned = "cache", chosen.loss_of_cache, asked.spec.pin.kv is not None
    charged = asked.budget_stated or not pinned
    return f", {other.expected:g} % of it for the {noun}" if charged and other.expected else ""


def _runner_up(contest: Contest, name: str, index: int, part: str) -> Iterator[str]:
    gain, chosen = contest.gain(index), contest.chosen
    if gain <= 1:
        yield f"{times(1 / gain)} the best with {name} ({contest.against(index)})"
        return
    margins, one = contest.asked.facts.choices.margins, contest.survey.candidate(index)
    more = _own_loss(one, part).expected - _own_loss(chosen, part).expected
    if held_back(contest.asked, one) and not held_back(contest.asked, chosen):
        because = narrow(contest.asked)
    elif part == "kv" and one.compressed and not chosen.compressed:
        because = f"a compressed cache has to win {margins.compressed_gain.value:g}x"
    elif more > 0:
        because = f"for {more:.2g} % more loss it has to win {margins.lossy_gain.value:g}x"
    elif one.drafting.tokens and not chosen.drafting.tokens:
        because = f"drafts have to win {margins.speculation_gain.value:g}x"
    else:
        because = "too little to tell them apart, and it takes more memory or loses more"
    yield f"{name} would give {times(gain)} ({contest.figure(index)}): {because}"


def held_back(asked: Deployment, one: Candidate) -> bool:
    """Whether its cache has fewer bits than the planner goes down to by itself."""
    return one.cache.scheme.narrowest < asked.facts.choices.cache.least_bits.value and not goes_deep(asked)


def narrow(asked: Deployment) -> str:
    """When such a cache is taken."""
    bits = asked.facts.choices.cache.least_bits.value
    return (
        f"fewer than {bits:g} bits are for a stated max_loss_percent, or where nothing else keeps every limit"
    )


def _not_served(contest: Contest) -> Iterator[str]:
    """Formats that the engine has, but not for this model on this device."""
    asked, engine = contest.asked, contest.chosen.engine
    names = [
        name
        for name in engine.needs("weights")
        if support.why_not(engine, asked.graph, asked.target, "weights", name)
    ]
    if names:
        yield f"{engine.name} has no {listed(names)} for this model on this device"


def _names(contest: Contest, part: str) -> tuple[str, ...]:
    blocks = [
        each.block for each in contest.survey.solved if each.block.engine.name == contest.chosen.engine.name
    ]
    found = [each.stored.scheme.name if part == "weights" else each.cache.scheme.name for each in blocks]
    return tuple(dict.fromkeys(found))


def _named(contest: Contest, part: str, name: str) -> Mask:
    if part == "weights":
        return contest.blocks(lambda block: block.stored.scheme.name == name)
    return contest.blocks(lambda block: block.cache.scheme.name == name)


def _own_loss(one: Candidate, part: str) -> Expected:
    return one.loss_of_weights if part == "weights" else one.loss_of_cache
