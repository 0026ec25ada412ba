"""Why each decision fell as it did, in words and numbers."""

from __future__ import annotations

from ..graph.storage import misfits
from ..runtime.formats.weights import GROUPS, weight_format
from .candidate import Candidate
from .deployment import Deployment
from .latency import matrix_tflops
from .plan import Reason
from .units import size

THE_SPEC = "the spec"
ARITHMETIC = "arithmetic"


def not_buildable(asked: Deployment) -> str:
    """Why this version cannot build what is planned; empty if it can."""
    if not asked.graph.native:
        return f"the native engine does not run {asked.graph.name}: {asked.graph.native_reason}"
    if asked.target.kind != "cpu":
        return (
            f"{asked.target.name} is a {asked.target.kind} target, and the native engine of this version is "
            "built for processors alone; nothing in this plan was measured on it"
        )
    return ""


def reasons(asked: Deployment, chosen: Candidate, candidates: tuple[Candidate, ...]) -> tuple[Reason, ...]:
    """One for every decision of the plan."""
    return (
        _engine(asked),
        _weights(asked, chosen, candidates),
        *_group(asked, chosen),
        _head(chosen),
        _cache(asked, chosen, candidates),
        *_pages(asked, chosen),
        _parallelism(asked),
        _context(asked),
        _sequences(asked, chosen),
        _batch_tokens(asked, chosen),
        _speculation(),
        *_rate(asked, chosen),
        _budget(asked, chosen),
    )


def _engine(asked: Deployment) -> Reason:
    blocked = not_buildable(asked)
    why = "pinned" if asked.spec.pin.engine else "the only engine of this version"
    return Reason(
        key="engine",
        value="native",
        why=f"{why}; planned, but cannot be built: {blocked}" if blocked else why,
        source=THE_SPEC if asked.spec.pin.engine else "this version",
    )


def _weights(asked: Deployment, chosen: Candidate, candidates: tuple[Candidate, ...]) -> Reason:
    gain = "most tokens per second"
    if asked.spec.objective == "capacity":
        gain = "most sequences"
    elif asked.spec.objective == "latency" or asked.rate is not None:
        gain = "shortest time between tokens"
    stored = f"{chosen.weights.bits_per_weight:g} bits per weight, {size(chosen.memory.weights)}"
    if asked.pinned_weights:
        return Reason(key="weights", value=chosen.weights.name, why=f"pinned; {stored}", source=THE_SPEC)
    broken = _broken(chosen, candidates)
    feasible = {one.weights.name for one in candidates if one.feasible}
    best = (
        f"{gain} of the formats that keep every limit"
        if len(feasible) > 1
        else "the only format that keeps every limit"
    )
    return Reason(
        key="weights",
        value=chosen.weights.name,
        why=f"{best}; {stored}; {chosen.loss_of_weights.expected:g} % loss expected{broken}",
        source=chosen.loss_of_weights.source,
    )


def _broken(chosen: Candidate, candidates: tuple[Candidate, ...]) -> str:
    """Why each other format with the same cache was not possible."""
    others = [
        f"; not {one.weights.name}: "
        + ", ".join(f"{each.limit} {each.value} where {each.allowed} is the limit" for each in one.violations)
        for one in candidates
        if one.violations
        and one.layout.level == chosen.layout.level
        and one.weights.name != chosen.weights.name
    ]
    return "".join(others)


def _group(asked: Deployment, chosen: Candidate) -> tuple[Reason, ...]:
    group = chosen.weights.group
    if not group:
        return ()
    if asked.pinned_group:
        return (Reason(key="weights.group", value=str(group), why="pinned", source=THE_SPEC),)
    larger = [
        f"{misfits(asked.graph, form)[0].cols} inputs do not divide by {form.group}"
        for form in (weight_format(chosen.weights.name, other) for other in GROUPS if other > group)
    ]
    why = "the largest that divides the inputs of every matrix: fewer scales, fewer bytes"
    return (
        Reason(
            key="weights.group",
            value=str(group),
            why="; ".join([why, *larger]),
            source="the shapes of the model",
        ),
    )


def _head(chosen: Candidate) -> Reason:
    if not chosen.weights.group:
        return Reason(
            key="weights.head",
            value="bf16",
            why="as all weights; a tied head shares the embedding",
            source=ARITHMETIC,
        )
    return Reason(
        key="weights.head",
        value="int8",
        why="every step reads it whole, and its errors reach the logits unaveraged; the embedding stays "
        "bf16, a step reads one row of it per token",
        source="a rule of the native engine",
    )


def _cache(asked: Deployment, chosen: Candidate, candidates: tuple[Candidate, ...]) -> Reason:
    layout = chosen.layout
    each = f"{layout.token_bytes:,} bytes per token"
    if layout.compressed:
        each += f" against {layout.exact_token_bytes:,} in bf16"
    if asked.spec.pin.kv:
        loss = chosen.loss_of_cache
        warning = (
            f"; {loss.expected:g} % loss expected ({loss.low:g} to {loss.high:g})"
            if layout.compressed
            else ""
        )
        return Reason(key="kv", value=layout.level, why=f"pinned; {each}{warning}", source=THE_SPEC)
    if not layout.compressed:
        return Reason(
            key="kv",
            value="bf16",
            why=f"nothing asks for compression: it fits, {each}; a compressed cache loses quality and has to "
            "be needed for capacity or win in speed",
            source=ARITHMETIC,
        )
    plain = [one for one in candidates if not one.layout.compressed]
    needed = not any(one.feasible for one in plain)
    nearest = min(plain, key=lambda one: one.excess)
    because = (
        "no bf16 cache keeps the limits (the nearest: "
        + ", ".join(
            f"{each.limit} {each.value} where {each.allowed} is the limit" for each in nearest.violations
        )
        + ")"
        if needed
        else f"it wins {asked.facts.coefficients.choice.compressed_gain.value - 1:.0%} in the objective"
    )
    return Reason(key="kv", value=layout.level, why=f"{because}; {each}", source=chosen.loss_of_cache.source)


def _pages(asked: Deployment, chosen: Candidate) -> tuple[Reason, ...]:
    choices, layout = asked.facts.coefficients.cache, chosen.layout
    found = [
        Reason(
            key="kv.page_tokens",
            value=str(layout.page_tokens),
            why=choices.page_tokens.source,
            source=choices.page_tokens.basis,
        )
    ]
    if layout.compressed:
        found += [
            Reason(
                key=f"kv.{name}",
                value=str(int(figure.value)),
                why=f"{int(figure.value) * layout.page_tokens} tokens exact: {figure.source}",
                source=figure.basis,
            )
            for name, figure in (("sink_pages", choices.sink_pages), ("recent_pages", choices.recent_pages))
        ]
    return tuple(found)


def _parallelism(asked: Deployment) -> Reason:
    if asked.tensor == 1:
        return Reason(key="parallelism", value="none", why="one device", source=THE_SPEC)
    return Reason(
        key="parallelism.tensor",
        value=str(asked.tensor),
        why="every device of the target holds an equal part of each matrix and its own key heads; two sums "
        "per layer go over the interconnect",
        source=THE_SPEC,
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


def _sequences(asked: Deployment, chosen: Candidate) -> Reason:
    count, held = chosen.limits.max_sequences, chosen.memory
    each = held.kv // count
    more = held.free // each if each else 0
    room = f"one of full length takes {size(each)} of cache, and there is room for about {more} more"
    if asked.rate is not None:
        why = (
            f"what {asked.rate:g} requests per second bring about (Little's law): each takes "
            f"{chosen.forecast.request:.3g} s"
        )
    elif asked.spec.objective == "capacity":
        why = "as many as keep every limit"
    else:
        why = "asked for" if "concurrency" in asked.spec.workload.model_fields_set else "the default"
    return Reason(key="limits.max_sequences", value=str(count), why=f"{why}; {room}", source=ARITHMETIC)


def _batch_tokens(asked: Deployment, chosen: Candidate) -> Reason:
    bounds, tokens = asked.engine.batch_tokens, chosen.limits.max_batch_tokens
    share = asked.facts.coefficients.choice.prefill_efficiency.value
    if tokens < bounds.smallest:
        why = "all that the sequences can hold"
    elif tokens == bounds.smallest:
        why = f"the least that is considered: {bounds.source}"
    elif tokens == bounds.largest:
        why = f"the most that is considered: {bounds.source}"
    elif asked.slo.itl_ms is not None:
        why = (
            f"a prompt's step should be {share:.0%} arithmetic, and a step that carries a prompt beside the "
            f"decodes should keep {asked.slo.itl_ms:g} ms"
        )
    else:
        why = (
            f"the least at which {share:.0%} of a prompt's step are arithmetic; more only makes decodes wait"
        )
    return Reason(key="limits.max_batch_tokens", value=str(tokens), why=why, source=ARITHMETIC)


def _speculation() -> Reason:
    return Reason(key="speculation", value="none", why="this version drafts no tokens", source="this version")


def _rate(asked: Deployment, chosen: Candidate) -> tuple[Reason, ...]:
    """Which matrix rate the times are reckoned with, where it is not the format's own."""
    if chosen.weights.activation != "int8" or asked.target.rates.int8_tops is not None:
        return ()
    return (
        Reason(
            key="predicted.matrix_rate",
            value=f"{matrix_tflops(asked.target, chosen.weights):g} TFLOPS",
            why="the target states no int8 rate, so int8 products are reckoned at the bf16 rate",
            source=asked.target.source("rates.bf16_tflops"),
        ),
    )


def _budget(asked: Deployment, chosen: Candidate) -> Reason:
    loss = chosen.loss
    stated = "stated" if asked.budget_stated else "the default"
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
