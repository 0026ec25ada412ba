"""Why each decision fell as it did, in words and numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..block import held_for
from ..candidate import Candidate
from ..cost import price
from ..deployment import Deployment
from ..performance.cache import Floats, cache_layout
from ..performance.latency import matrix_tflops
from ..plan import Reason, significant
from ..survey import Survey
from ..units import size
from . import devices, drafts, formats, levels
from .contest import Contest
from .replay import replay
from .words import FULL, milliseconds, times

THE_SPEC = "the spec"
ARITHMETIC = "arithmetic"


def reasons(asked: Deployment, chosen: Candidate, survey: Survey) -> tuple[Reason, ...]:
    """One for every decision of the plan."""
    contest = Contest(survey, chosen)
    return (
        devices.engine(contest),
        *devices.unverified(contest),
        formats.weights(contest),
        *formats.group(asked, chosen),
        *formats.head(asked, chosen),
        levels.cache(contest),
        *levels.pages(asked, chosen),
        devices.parallelism(contest),
        drafts.speculation(contest),
        _context(asked),
        *_overflow(asked, chosen),
        *_checked(asked, chosen),
        _sequences(asked, chosen),
        _batch_tokens(contest),
        *_rate(asked, chosen),
        _budget(asked, chosen),
        _price(asked),
    )


def _context(asked: Deployment) -> Reason:
    stated = asked.spec.workload.context_tokens
    if asked.context < stated:
        why = f"the default of {stated:,} is longer than the model's positions"
    elif "context_tokens" in asked.spec.workload.model_fields_set:
        why = "asked for"
    else:
        why = f"the default; the model could do {asked.graph.max_context:,}"
    return Reason(key="limits.max_context", value=str(asked.context), why=why, source=THE_SPEC)


def _overflow(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """What becomes of a sequence that reaches the context, where it does not end."""
    if not asked.evicts:
        return
    first = chosen.cache.sink_pages * chosen.cache.page_tokens
    yield Reason(
        key="limits.overflow",
        value=asked.spec.serving.overflow,
        why=f"asked for: a sequence of {asked.context:,} tokens goes on without its oldest but the first "
        f"{first}, {chosen.cache.page_tokens} at a time; answers and metrics say how many were dropped",
        source=THE_SPEC,
    )


def _checked(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """What it takes to check answers, where they are."""
    if not asked.checked_tokens:
        return
    layout = cache_layout(asked.shape, chosen.cache)
    exact, packed = layout.check_pages(asked.checked_tokens)
    taken = exact * layout.exact_page_bytes + packed * layout.packed_page_bytes
    yield Reason(
        key="limits.checked_tokens",
        value=str(asked.checked_tokens),
        why=f"asked for: answers of at most so many tokens, prompts included, are checked against an exact "
        f"cache; pages for one of them in both take {size(taken)}",
        source=THE_SPEC,
    )


def _sequences(asked: Deployment, chosen: Candidate) -> Reason:
    """How many are in flight, and how many more there is room for."""
    if asked.rate is not None:
        mean, each = float(chosen.forecast.concurrency), float(chosen.forecast.e2e)
        why = (
            f"{asked.rate:g} requests per second of {each:.3g} s each keep {mean:.3g} in flight (Little's "
            "law), and random arrivals a standard deviation more"
        )
    elif asked.spec.objective == "capacity":
        why = "as many as keep every limit"
    else:
        why = "asked for" if "concurrency" in asked.spec.workload.model_fields_set else "the default"
    return Reason(
        key="limits.max_sequences",
        value=str(chosen.sequences),
        why="; ".join([why, *_room(asked, chosen)]),
        source=ARITHMETIC,
    )


def _room(asked: Deployment, chosen: Candidate) -> Iterator[str]:
    copies = int(chosen.layout.data)
    counts = np.array([chosen.sequences, chosen.sequences + copies])
    total = np.asarray(replay(asked, chosen, counts).memory.total, dtype=np.float64)
    each, free = float(total[1] - total[0]), float(chosen.memory.free)
    most = int(chosen.engine.on(asked.target.kind).most_sequences.value) * copies
    more = min(max(0, int(free / each)) * copies, most - chosen.sequences) if each else most
    where = " of each device" if asked.devices > 1 else ""
    yield f"one more of {held_for(asked, 1, 1).typical:,} tokens takes {size(each)}{where}"
    if chosen.sequences + more >= most:
        yield f"there is room for the {most:,} that the engine takes"
    else:
        yield f"there is room for {more:,} more" if more else FULL


def _batch_tokens(contest: Contest) -> Reason:
    """The token budget of a step against half and twice as much."""
    chosen = contest.chosen
    same = contest.formats & contest.layout & contest.drafting
    budgets = contest.survey.column(lambda solved: solved.block.budget.astype(np.float64))
    considered = sorted({int(budget) for budget in budgets[same]})
    if len(considered) == 1:
        clauses = ["all that the sequences can hold, or all that is considered"]
    else:
        clauses = [f"the best by objective of {considered[0]:,} to {considered[-1]:,}"]
    for other in (chosen.budget // 2, 2 * chosen.budget):
        found = np.flatnonzero(same & (budgets == other))
        if len(found):
            seen = contest.survey.candidate(int(found[0])).forecast
            clauses.append(
                f"{other:,} would give {times(contest.gain(int(found[0])))}, with {_ms(seen.ttft)} to the "
                f"first token and {_ms(seen.itl)} between tokens"
            )
    bounds = chosen.engine.on(contest.asked.target.kind).batch_tokens
    return Reason(
        key="limits.max_batch_tokens", value=str(chosen.budget), why="; ".join(clauses), source=bounds.source
    )


def _ms(seconds: Floats) -> str:
    return milliseconds(float(seconds) * 1e3)


def _rate(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """Which matrix rate the times are reckoned with, where it is not that of the format's own products."""
    products = chosen.scheme.products
    own = {
        "fp8": asked.target.rates.fp8_tflops,
        "int8": asked.target.rates.int8_tops,
        "fp4": asked.target.rates.fp4_tflops,
    }
    if products == "bf16" or own[products] is not None:
        return
    yield Reason(
        key="predicted.matrix_rate",
        value=f"{matrix_tflops(asked.target, chosen.scheme):g} TFLOPS",
        why=f"{asked.target.name} states no {products} rate, so these products are reckoned at the bf16 rate",
        source=asked.target.source("rates.bf16_tflops"),
    )


def _budget(asked: Deployment, chosen: Candidate) -> Reason:
    loss = chosen.loss
    stated = "stated" if asked.budget_stated else "the default"
    why = "nothing is lost"
    if loss.high:
        why = f"{loss.expected:.3g} % expected, {loss.low:g} to {loss.high:g} % by the evidence"
    if loss.expected > asked.budget_percent:
        why += "; more than the budget, by what is pinned: judge the bundle by a measurement"
    elif loss.high > asked.budget_percent:
        why += "; the evidence reaches beyond the budget: judge the bundle by a measurement"
    return Reason(
        key="quality.max_loss_percent",
        value=f"{asked.budget_percent:g} ({stated})",
        why=why,
        source=THE_SPEC if asked.budget_stated else asked.facts.quality.default_budget_percent.source,
    )


def _price(asked: Deployment) -> Reason:
    """Which price the cost is reckoned with."""
    paid = price(asked.spec, asked.target, asked.devices)
    if paid.usd_per_hour is None:
        return Reason(key="cost.usd_per_hour", value="not known", why=paid.source, source=asked.target.id)
    why = f"for {asked.devices} devices" if asked.devices > 1 else "for the device"
    if paid.owned:
        why += ", a purchase spread over its life; electricity comes on top"
    return Reason(
        key="cost.usd_per_hour", value=f"{significant(paid.usd_per_hour):g}", why=why, source=paid.source
    )
