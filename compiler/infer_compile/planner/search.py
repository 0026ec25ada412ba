"""The search: every combination is reckoned through as arrays; limits decide first, then the objective."""

from __future__ import annotations

from dataclasses import replace

from ..catalog.facts import Facts, load_facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.spec import DeviceGroup, Spec
from .candidate import Candidate
from .choose import choose
from .compose import compose
from .deployment import Deployment, Draftings, Where, deployment, no_drafts
from .infeasible import Neighbours, nearest_feasible
from .plan import Plan
from .quality import Expected, cache_loss, weights_loss
from .survey import survey


def plan(
    spec: Spec,
    graph: Graph,
    target: Target,
    *,
    group: DeviceGroup | None = None,
    facts: Facts | None = None,
    where: Where = lambda key: "",
    neighbours: Neighbours = tuple,
    draftings: Draftings = no_drafts,
) -> Plan:
    """The plan for ``spec`` on ``target``.

    ``group`` is how many of the target (default: as the spec's first says), ``facts`` what is known beside
    (default: what ships), ``where`` turns a key of the spec into ``file:line``, ``neighbours`` looks up the
    other devices, to name one where this one is too small, ``draftings`` what the model can be drafted for
    with.

    Raises InferCompileError, exit 3: IC201 nothing fits; IC202, IC203, IC205, IC208 to IC210 as
    ``options.blocks``; IC204 to IC206 as ``deployment``; IC207 a pin that loses more than the spec allows.
    """
    known = facts or load_facts()
    asked = deployment(spec, graph, target, group or spec.targets[0], known, where, draftings)
    _pinned_losses(asked)
    found = survey(asked)
    if not len(found.feasible):
        raise InferCompileError(nearest_feasible(found, neighbours(), best), Exit.INFEASIBLE)
    return compose(found, found.candidate(choose(found)), answer)


def best(asked: Deployment) -> Candidate | None:
    """What would be chosen, speculation aside unless it is pinned; None where nothing keeps every limit."""
    return answer(replace(asked, narrow=True))


def answer(asked: Deployment) -> Candidate | None:
    """What would be chosen; None where nothing keeps every limit."""
    try:
        found = survey(asked, misses=False)
    except InferCompileError:
        return None
    return found.candidate(choose(found)) if found.solved and len(found.feasible) else None


def _pinned_losses(asked: Deployment) -> None:
    """Refuses pins that lose more than a stated budget even at the low end of the evidence."""
    if not asked.budget_stated:
        return
    quality, pin = asked.facts.quality, asked.spec.pin
    pinned: list[tuple[str, Expected]] = []
    if pin.weights is not None:
        name = pin.weights.format
        pinned.append((f"weights: {name}", weights_loss(asked.graph, name, quality)))
    if pin.kv is not None:
        pinned.append((f"kv: {pin.kv}", cache_loss(asked.graph, pin.kv, quality)))
    least = sum(loss.low for _, loss in pinned)
    if least <= asked.budget_percent:
        return
    names = " and ".join(name for name, loss in pinned if loss.low)
    raise InferCompileError(
        Problem(
            "IC207",
            f"{names} cannot keep max_loss_percent {asked.budget_percent:g}",
            asked.where("quality.max_loss_percent"),
            f"at least {least:g} % is expected for {asked.shape.parameters / 1e9:.3g} billion parameters "
            f"({'; '.join(loss.source for _, loss in pinned if loss.low)})",
            f"max_loss_percent: {sum(loss.expected for _, loss in pinned):g}, or remove the pin",
        ),
        Exit.INFEASIBLE,
    )
