"""A plan with other cache levels, layer by layer: what a build needs that has to keep more of some layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..catalog.facts import Facts, load_facts
from ..catalog.figure import weakest
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.kv import LEVELS, LevelName, layer_cache
from ..spec.spec import DeviceGroup, Pin, Spec
from . import support
from .block import Block, keeping
from .candidate import Candidate, candidate
from .compose import kv_part, predicted_part
from .deployment import Deployment, Draftings, Where, deployment, no_drafts
from .explain.words import broken
from .options import blocks
from .performance.cache import own_cache
from .performance.latency import Speed, speed
from .performance.layout import Layout
from .performance.shape import Stored
from .plan import Plan, Reason
from .quality import EXACT, Expected, cache_loss


def recount(
    plan: Plan,
    layers: Sequence[str],
    spec: Spec,
    graph: Graph,
    target: Target,
    *,
    facts: Facts | None = None,
    where: Where = lambda key: "",
    draftings: Draftings = no_drafts,
) -> Plan:
    """``plan``, of our own engine, with its layers at the levels ``layers``: an entry for each that keeps
    keys and values, as ``plan.kv.layers``.

    The other arguments are what the plan was made from. Everything else that was decided stays; the cache,
    its pages, the memory, the times and the expected loss are reckoned anew. What all layers share is the
    plan's level; otherwise that stays, or, where no layer is left at it, becomes what most are at.

    Raises InferCompileError, exit 3: IC203 a level that the engine does not serve here, IC222 layers that
    break a limit of the device or of the spec, the loss aside. Raises ValueError for a plan that was not made
    from these arguments.
    """
    known = facts or load_facts()
    group = DeviceGroup(device=plan.target.id, count=plan.target.count, nodes=plan.target.nodes)
    asked = deployment(spec, graph, target, group, known, where, draftings)
    levels = _named(asked, plan, layers)
    found = standing(asked, plan, levels)
    _keep_limits(asked, found, levels)
    kv = kv_part(asked, found)
    reasons = tuple(_renamed(reason, plan.kv.level, kv.level) for reason in plan.reasons)
    return plan.model_copy(update={"kv": kv, "predicted": predicted_part(asked, found), "reasons": reasons})


def standing(asked: Deployment, plan: Plan, levels: tuple[LevelName, ...]) -> Candidate:
    """The candidate that ``plan``, of our own engine, stands for, its layers at ``levels``. Raises ValueError
    for a plan that was not made from what is ``asked``."""
    planned, index = _planned(asked, plan)
    made = keeping(asked, _with(asked, planned, index, plan, levels), np.array([plan.limits.max_sequences]))
    return candidate(made, 0)


def _renamed(reason: Reason, before: str, after: str) -> Reason:
    if reason.key != "kv" or before == after:
        return reason
    return reason.model_copy(update={"value": after, "why": f"planned as {before}: {reason.why}"})


def _named(asked: Deployment, plan: Plan, layers: Sequence[str]) -> tuple[LevelName, ...]:
    engine = asked.facts.engines.of(plan.engine)
    if not engine.architectures.own or len(layers) != len(plan.kv.layers):
        raise ValueError("layers have levels of their own in our own engine alone, and each has one")
    for level in dict.fromkeys(layers):
        reason = support.why_not(engine, asked.graph, asked.target, "kv", level)
        if reason:
            problem = Problem("IC203", f"kv level {level} cannot be served", asked.where("pin.kv"), reason)
            raise InferCompileError(problem, Exit.INFEASIBLE)
    return tuple(LEVELS[level] for level in layers)


def _planned(asked: Deployment, plan: Plan) -> tuple[Block, int]:
    """The block of the plan's engine, formats and level, and where in it the plan's candidate stands."""
    weights = {"format": plan.weights.format, "group": plan.weights.group or None}
    pin = Pin.model_validate({"engine": plan.engine, "weights": weights, "kv": plan.kv.level})
    for block in blocks(replace(asked, spec=asked.spec.model_copy(update={"pin": pin}))):
        found = np.asarray(block.budget == plan.limits.max_batch_tokens)
        for way, size in plan.parallelism:
            found = found & (np.asarray(getattr(block.layout, way)) == size)
        drafts = [(one.method, one.tokens, one.width) for one in block.draftings]
        mine = (plan.speculation.method, plan.speculation.tokens, plan.speculation.width)
        found = found & np.array([one == mine for one in drafts])[block.drafted]
        if np.any(found):
            return block, int(np.flatnonzero(found)[0])
    raise ValueError("the plan was not made from this spec, model and device")


def _with(asked: Deployment, planned: Block, index: int, plan: Plan, levels: tuple[LevelName, ...]) -> Block:
    """The plan's candidate alone, its layers at ``levels``."""
    scheme = asked.facts.formats.of_kv(_level(plan, levels), plan.engine)
    mixed = levels if len(set(levels)) > 1 else ()
    each = {way: np.asarray(getattr(planned.layout, way))[[index]] for way, _ in plan.parallelism}
    return replace(
        planned,
        cache=own_cache(
            asked.shape,
            scheme,
            asked.facts.choices.cache,
            planned.cache.windows_freed,
            levels=mixed,
            evicts=asked.evicts,
        ),
        speed=_speed(asked, plan, planned.stored, levels),
        layout=Layout(**each, per_node=planned.layout.per_node),
        drafted=planned.drafted[[index]],
        budget=planned.budget[[index]],
        loss_of_cache=_loss(asked, levels),
    )


def _level(plan: Plan, levels: tuple[LevelName, ...]) -> LevelName:
    """What the plan calls its cache: a compressed level where any layer is at one."""
    if plan.kv.level in levels and plan.kv.level != EXACT:
        return LEVELS[plan.kv.level]
    compressed = Counter(level for level in levels if level != EXACT)
    return compressed.most_common(1)[0][0] if compressed else LEVELS[EXACT]


def _speed(asked: Deployment, plan: Plan, stored: Stored, levels: tuple[LevelName, ...]) -> Speed:
    """Of a step that reads, and multiplies, every layer at its own level."""
    facts = asked.facts

    def at(level: LevelName) -> Speed:
        scheme = facts.formats.of_kv(level, plan.engine)
        return speed(asked.target, facts.coefficients, plan.engine, stored.scheme, scheme, own=True)

    counts, width = Counter(levels), asked.shape.heads[0].width
    speeds = {level: at(level) for level in counts}
    read = {
        level: count * layer_cache(level, width).bits_per_element(width) for level, count in counts.items()
    }

    def mean(rate: Callable[[Speed], float], shares: Mapping[LevelName, float]) -> float:
        """The rate of all levels together, of shares that each have their own."""
        seconds = sum(share / rate(speeds[level]) for level, share in shares.items())
        return sum(shares.values()) / seconds if seconds else np.inf

    return replace(
        speeds[_level(plan, levels)],
        packed_bandwidth=mean(lambda one: one.packed_bandwidth, read),
        packed_issue=mean(lambda one: one.packed_issue, read),
        packed_attention=mean(lambda one: one.packed_attention, counts),
        decode_packed_attention=mean(lambda one: one.decode_packed_attention, counts),
    )


def _loss(asked: Deployment, levels: tuple[LevelName, ...]) -> Expected:
    """Each layer's share of what the level of all would lose."""
    shares = {level: count / len(levels) for level, count in Counter(levels).items()}
    losses = {level: cache_loss(asked.graph, level, asked.facts.quality) for level in shares}
    if len(losses) == 1:
        return losses[levels[0]]
    ends = [
        [share * end for end in (losses[level].low, losses[level].expected, losses[level].high)]
        for level, share in shares.items()
    ]
    low, expected, high = (round(sum(each), 3) for each in zip(*ends, strict=True))
    sources = dict.fromkeys(loss.source for loss in losses.values() if loss.high)
    text = f"the mean over the layers, taken to add up: {'; '.join(sources)}"
    basis = weakest(("assumption", *(loss.basis for loss in losses.values())))
    return Expected(low, expected, high, basis, text)


def _keep_limits(asked: Deployment, found: Candidate, levels: tuple[LevelName, ...]) -> None:
    missed = [each for each in found.violations if each.limit != "quality"]
    if not missed:
        return
    each = ", ".join(f"{count} x {level}" for level, count in Counter(levels).items())
    raise InferCompileError(
        Problem(
            "IC222",
            f"layers with a cache of {each} do not keep every limit",
            asked.where("quality.max_loss_percent"),
            "; ".join(broken(one.limit, one.value, one.allowed) for one in missed),
            "a larger max_loss_percent, a shorter context, fewer sequences, looser limits or a larger device",
        ),
        Exit.INFEASIBLE,
    )
