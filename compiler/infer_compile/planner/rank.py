"""Several candidate targets: each is planned for, and the objective ranks them."""

from __future__ import annotations

from ..catalog.facts import Facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.spec import Spec
from .deployment import Draftings, Where, no_drafts
from .frontier import drafts
from .infeasible import Neighbours
from .plan import Alternative, Parallelism, Plan, Reason, Rejected
from .search import plan


def rank(
    spec: Spec,
    graph: Graph,
    targets: tuple[Target, ...],
    *,
    facts: Facts | None = None,
    where: Where = lambda key: "",
    neighbours: Neighbours = tuple,
    draftings: Draftings = no_drafts,
) -> Plan:
    """The plan for the best of ``targets``, which stand in the order of ``spec.targets``.

    The others become its alternatives, those on which nothing fits are rejected. Raises what ``plan`` raises,
    for every target, if nothing fits on any.
    """
    plans: list[Plan] = []
    failures: list[tuple[Target, InferCompileError]] = []
    for target, group in zip(targets, spec.targets, strict=True):
        try:
            plans.append(
                plan(
                    spec,
                    graph,
                    target,
                    group=group,
                    facts=facts,
                    where=where,
                    neighbours=neighbours,
                    draftings=draftings,
                )
            )
        except InferCompileError as error:
            failures.append((target, error))
    if not plans:
        problems: list[Problem] = []
        for _, failure in failures:
            problems += (problem for problem in failure.problems if problem not in problems)
        raise InferCompileError(problems, Exit.INFEASIBLE)
    if len(targets) == 1:
        return plans[0]
    best, *others = _ranked(spec, plans)
    return best.model_copy(
        update={
            "reasons": (_reason(spec, best, others, failures), *best.reasons),
            "alternatives": (*(_alternative(one) for one in others), *best.alternatives),
            "rejected": (*best.rejected, *(_rejected(*failure) for failure in failures)),
        }
    )


def _ranked(spec: Spec, plans: list[Plan]) -> list[Plan]:
    """The best first; by what a token costs only where a price is known for all."""
    priced = spec.objective == "cost" and all(_token_price(one) is not None for one in plans)
    return sorted(plans, key=lambda one: (_token_price(one) or 0.0) if priced else -_worth(spec, one))


def _token_price(one: Plan) -> float | None:
    return one.predicted.cost.usd_per_million_tokens


def _worth(spec: Spec, one: Plan) -> float:
    """What the objective wants more of, of a plan."""
    if spec.objective == "capacity":
        return one.limits.max_sequences
    if spec.objective == "latency" or spec.workload.requests_per_second is not None:
        return 1 / one.predicted.e2e_s
    return one.predicted.tokens_per_second


def _reason(
    spec: Spec, best: Plan, others: list[Plan], failures: list[tuple[Target, InferCompileError]]
) -> Reason:
    figures = [_figures(one) for one in (best, *others)]
    figures += [f"{target.id} does not fit" for target, _ in failures]
    return Reason(
        key="target",
        value=best.target.id,
        why=f"best by {spec.objective} of those in the spec; {'; '.join(figures)}",
        source="the plans of all of them",
    )


def _figures(one: Plan) -> str:
    seen = one.predicted
    parts = [f"{seen.itl_ms:g} ms", f"{seen.tokens_per_second:g} tokens/s"]
    if seen.cost.usd_per_million_tokens is not None:
        parts.append(f"{seen.cost.usd_per_million_tokens:g} USD per million tokens")
    if seen.cost.bandwidth_gbs_per_usd_hour is not None:
        parts.append(f"{seen.cost.bandwidth_gbs_per_usd_hour:g} GB/s per dollar and hour")
    return f"{one.target.id} {', '.join(parts)}"


def _alternative(one: Plan) -> Alternative:
    group = f"/{one.weights.group}" if one.weights.group else ""
    drafted = one.speculation
    return Alternative(
        target=one.target.id,
        engine=one.engine,
        weights=f"{one.weights.format}{group}",
        kv=one.kv.level,
        speculation=drafts(drafted.method, drafted.tokens, drafted.width),
        parallelism=one.parallelism,
        ttft_ms=one.predicted.ttft_ms,
        itl_ms=one.predicted.itl_ms,
        tokens_per_second=one.predicted.tokens_per_second,
        memory_gib=one.predicted.memory_gib.total,
        quality_loss_percent=one.predicted.quality_loss_percent.expected,
        usd_per_million_tokens=one.predicted.cost.usd_per_million_tokens,
        gives_up="the first place in the objective",
    )


def _rejected(target: Target, error: InferCompileError) -> Rejected:
    problem = error.problems[0]
    return Rejected(
        target=target.id,
        engine="any",
        weights="any",
        kv="any",
        speculation="any",
        parallelism=Parallelism(),
        limit=problem.code,
        value=problem.because,
        allowed=problem.message,
    )
