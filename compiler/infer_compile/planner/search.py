"""The search: every combination of formats is reckoned through; limits decide first, then the objective."""

from __future__ import annotations

from ..catalog.coefficients import Facts, load_facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..graph.storage import misfits
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.kv import HEAD_DIMS, LEVELS, LevelName
from ..runtime.formats.weights import GROUPS, NAMES, WeightFormat, weight_format
from ..spec.spec import DeviceGroup, Spec
from .candidate import Candidate, candidate
from .compose import compose
from .deployment import Deployment, Where, deployment
from .infeasible import Neighbours, nearest_feasible
from .plan import Plan
from .quality import cache_loss, weights_loss


def plan(
    spec: Spec,
    graph: Graph,
    target: Target,
    *,
    group: DeviceGroup | None = None,
    facts: Facts | None = None,
    where: Where = lambda key: "",
    neighbours: Neighbours = tuple,
) -> Plan:
    """The plan for ``spec`` on ``target``.

    ``group`` is how many of the target (default: as the spec's first says), ``facts`` what is known beside
    (default: what ships), ``where`` turns a key of the spec into ``file:line``, ``neighbours`` looks
    up the other devices, to name one where this one is too small.

    Raises InferCompileError, exit 3: IC201 nothing fits, IC202 a weight format that does not divide the
    model, IC203 a cache level that its heads do not allow, IC204 to IC206 as ``deployment``, IC207 a pin that
    loses more than the spec allows.
    """
    known = facts or load_facts()
    asked = deployment(spec, graph, target, group or spec.targets[0], known, where)
    candidates = solve(asked)
    feasible = [one for one in candidates if one.feasible]
    if not feasible:
        raise InferCompileError(nearest_feasible(asked, candidates, neighbours(), solve), Exit.INFEASIBLE)
    return compose(asked, choose(asked, feasible), candidates)


def solve(deployment: Deployment) -> tuple[Candidate, ...]:
    """Every combination of the formats and levels to consider, reckoned through."""
    formats, levels = choices(deployment)
    return tuple(candidate(deployment, weights, level) for weights in formats for level in levels)


def choices(deployment: Deployment) -> tuple[tuple[WeightFormat, ...], tuple[LevelName, ...]]:
    """Weight formats and cache levels to consider: the pinned one, or all that the model allows."""
    formats, levels = _formats(deployment), _levels(deployment)
    problems = [*_weights_problems(deployment, formats), *_level_problems(deployment, levels)]
    if not problems:
        problems = _pinned_losses(deployment, formats, levels)
    if problems:
        raise InferCompileError(problems, Exit.INFEASIBLE)
    return formats, levels


def _formats(deployment: Deployment) -> tuple[WeightFormat, ...]:
    """Each format with the largest group that divides every matrix: fewer scales, fewer bytes."""
    names = NAMES if deployment.pinned_weights is None else (deployment.pinned_weights,)
    groups = GROUPS if deployment.pinned_group is None else (deployment.pinned_group,)
    found = []
    for name in names:
        sized = [weight_format(name)] if name == "bf16" else [weight_format(name, g) for g in sorted(groups)]
        fitting = [form for form in sized if form in deployment.shape.stored]
        found += fitting[-1:]
    return tuple(found)


def _levels(deployment: Deployment) -> tuple[LevelName, ...]:
    pinned = deployment.spec.pin.kv
    return tuple(
        level.name
        for level in LEVELS.values()
        if pinned in (None, level.name) and (level.name == "bf16" or deployment.graph.head_dim in HEAD_DIMS)
    )


def _weights_problems(deployment: Deployment, formats: tuple[WeightFormat, ...]) -> list[Problem]:
    if formats:
        return []
    name, group = deployment.pinned_weights or "", deployment.pinned_group
    tried = weight_format(name, group or min(GROUPS))
    matrix = misfits(deployment.graph, tried)[0]
    fitting = [str(size) for size in GROUPS if group and weight_format(name, size) in deployment.shape.stored]
    return [
        Problem(
            "IC202",
            f"weights {name} in groups of {tried.group} do not fit {deployment.graph.name}",
            deployment.where("pin.weights"),
            f"{matrix.name} has {matrix.cols} inputs, not a multiple of {tried.group}",
            f"group: {' or '.join(fitting)}" if fitting else "weights: bf16",
        )
    ]


def _level_problems(deployment: Deployment, levels: tuple[LevelName, ...]) -> list[Problem]:
    if levels:
        return []
    known = ", ".join(map(str, HEAD_DIMS))
    return [
        Problem(
            "IC203",
            f"kv level {deployment.spec.pin.kv} is not possible for {deployment.graph.name}",
            deployment.where("pin.kv"),
            f"its heads have {deployment.graph.head_dim} elements; the rotation is made for {known}",
            "kv: bf16",
        )
    ]


def _pinned_losses(
    deployment: Deployment, formats: tuple[WeightFormat, ...], levels: tuple[LevelName, ...]
) -> list[Problem]:
    """Pins that lose more than a stated budget even at the low end of the evidence."""
    if not deployment.budget_stated:
        return []
    parameters, quality, pin = deployment.parameters, deployment.facts.quality, deployment.spec.pin
    pinned = []
    if pin.weights is not None:
        pinned.append((f"weights: {pin.weights.format}", weights_loss(parameters, formats[0], quality)))
    if pin.kv is not None:
        pinned.append((f"kv: {pin.kv}", cache_loss(parameters, pin.kv, quality)))
    least = sum(loss.low for _, loss in pinned)
    if least <= deployment.budget_percent:
        return []
    names = " and ".join(name for name, loss in pinned if loss.low)
    return [
        Problem(
            "IC207",
            f"{names} cannot keep max_loss_percent {deployment.budget_percent:g}",
            deployment.where("quality.max_loss_percent"),
            f"at least {least:g} % is expected for {parameters / 1e9:.3g} billion parameters "
            f"({'; '.join(loss.source for _, loss in pinned if loss.low)})",
            f"max_loss_percent: {sum(loss.expected for _, loss in pinned):g}, or remove the pin",
        )
    ]


def objective(deployment: Deployment, one: Candidate) -> float:
    """What the spec wants more of."""
    if deployment.spec.objective == "capacity":
        return float(one.limits.max_sequences)
    if deployment.spec.objective == "latency" or deployment.rate is not None:
        # With an arrival rate the number of tokens is given; what can be better is how long one takes.
        return one.forecast.tokens_per_second_per_user
    # The hour costs the same whatever runs in it, so the cheapest token is the one of most tokens.
    return one.forecast.tokens_per_second


def choose(deployment: Deployment, feasible: list[Candidate]) -> Candidate:
    """The best by objective; a lossier choice has to win by a margin.

    A cache is compressed where it has to be (no plan with a bf16 cache keeps the limits) or where that wins
    by the larger margin. Among equals the one that loses less, then the one that takes less memory.
    """
    margins = deployment.facts.coefficients.choice

    def worth(one: Candidate) -> tuple[float, float, int]:
        gain = objective(deployment, one)
        if one.weights.group:
            gain /= margins.lossy_gain.value
        if one.layout.compressed:
            gain /= margins.compressed_gain.value
        return gain, -one.loss.expected, -one.memory.total

    return max(feasible, key=worth)
