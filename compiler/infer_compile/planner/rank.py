"""Several candidate targets: each is planned for, and the objective ranks them."""

from __future__ import annotations

from ..catalog.coefficients import Facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.spec import Spec
from .deployment import Where
from .infeasible import Neighbours
from .plan import Alternative, Plan, Reason, Rejected
from .search import plan


def rank(
    spec: Spec,
    graph: Graph,
    targets: tuple[Target, ...],
    *,
    facts: Facts | None = None,
    where: Where = lambda key: "",
    neighbours: Neighbours = tuple,
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
                plan(spec, graph, target, group=group, facts=facts, where=where, neighbours=neighbours)
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
    best, *others = sorted(plans, key=lambda one: -_worth(spec, one))
    return best.model_copy(
        update={
            "reasons": (_reason(spec, best, others, failures), *best.reasons),
            "alternatives": (*(_alternative(one) for one in others), *best.alternatives),
            "rejected": (*best.rejected, *(_rejected(*failure) for failure in failures)),
        }
    )


def _worth(spec: Spec, one: Plan) -> float:
    """As ``search.objective``, of a plan."""
    if spec.objective == "capacity":
        return one.limits.max_sequences
    if spec.objective == "latency" or spec.workload.requests_per_second is not None:
        return one.predicted.tokens_per_second_per_user
    # The spec has one price for the hour, whatever the target: more tokens are cheaper tokens.
    return one.predicted.tokens_per_second


def _reason(
    spec: Spec, best: Plan, others: list[Plan], failures: list[tuple[Target, InferCompileError]]
) -> Reason:
    figures = [
        f"{one.target.id} {one.predicted.itl_ms:g} ms, {one.predicted.tokens_per_second:g} tokens/s"
        for one in others
    ]
    figures += [f"{target.id} does not fit" for target, _ in failures]
    return Reason(
        key="target",
        value=best.target.id,
        why=f"best by {spec.objective} of those in the spec; {'; '.join(figures)}",
        source="the plans of all of them",
    )


def _alternative(one: Plan) -> Alternative:
    group = f"/{one.weights.group}" if one.weights.group else ""
    return Alternative(
        target=one.target.id,
        weights=f"{one.weights.format}{group}",
        kv=one.kv.level,
        itl_ms=one.predicted.itl_ms,
        tokens_per_second=one.predicted.tokens_per_second,
        memory_gib=one.predicted.memory_gib.total,
        quality_loss_percent=one.predicted.quality_loss_percent.expected,
        gives_up="the first place in the objective",
    )


def _rejected(target: Target, error: InferCompileError) -> Rejected:
    problem = error.problems[0]
    return Rejected(
        target=target.id,
        weights="any",
        kv="any",
        limit=problem.code,
        value=problem.because,
        allowed=problem.message,
    )
