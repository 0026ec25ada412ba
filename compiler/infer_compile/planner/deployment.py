"""What is asked for, with every default applied: spec, model and devices in the planner's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..catalog.facts import Facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.spec import DeviceGroup, Slo, Spec, Workload
from .performance.latency import link_gbs
from .performance.shape import Shape, shape
from .speculation import NONE, Drafting

Where = Callable[[str], str]
"""Dotted key of the spec to ``file:line``."""

Draftings = Callable[[tuple[str, ...], int], tuple[Drafting, ...]]
"""What the model can be drafted for with, of the methods named; looked up by whoever knows the model's name.
"""


def no_drafts(methods: tuple[str, ...], vocabulary_slack: int) -> tuple[Drafting, ...]:
    return (NONE,)


@dataclass(frozen=True, slots=True)
class Deployment:
    """``count`` devices in each of ``nodes`` machines. With a ``rate`` (requests per second) the
    ``concurrency`` follows from it. ``budget_stated`` tells whether the spec gives ``budget_percent`` or the
    catalog's default stands. ``narrow``: speculation aside, as for questions that are asked many times over.
    """

    spec: Spec
    graph: Graph
    shape: Shape
    target: Target
    count: int
    nodes: int
    facts: Facts
    context: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    rate: float | None
    budget_percent: float
    budget_stated: bool
    where: Where
    draftings: Draftings
    narrow: bool = False

    @property
    def slo(self) -> Slo:
        return self.spec.slo

    @property
    def devices(self) -> int:
        return self.count * self.nodes

    @property
    def evicts(self) -> bool:
        """Whether a sequence that reaches the context goes on without its oldest tokens."""
        return self.spec.serving.overflow == "evict"

    @property
    def checked_tokens(self) -> int:
        """Of the longest answer that is checked against an exact cache, its prompt among them; 0: none is."""
        shadow = self.spec.serving.shadow
        if shadow is None:
            return 0
        return min(self.context, shadow.tokens or self.input_tokens + self.output_tokens)

    @property
    def pinned_weights(self) -> str | None:
        return self.spec.pin.weights.format if self.spec.pin.weights else None

    @property
    def pinned_group(self) -> int | None:
        return self.spec.pin.weights.group if self.spec.pin.weights else None


def deployment(
    spec: Spec,
    graph: Graph,
    target: Target,
    group: DeviceGroup,
    facts: Facts,
    where: Where,
    draftings: Draftings = no_drafts,
) -> Deployment:
    """Applies defaults and refuses what cannot be meant, all at once.

    Raises InferCompileError (exit 3): IC204 a context beyond the model's, IC205 processors that were to share
    a model, IC206 a target that lacks a figure.
    """
    problems = [*_context(spec, graph, where), *_devices(target, group, where)]
    if problems:
        raise InferCompileError(problems, Exit.INFEASIBLE)
    load = spec.workload
    context, prompt, answer = _lengths(load, graph)
    budget = spec.quality.max_loss_percent
    return Deployment(
        spec=spec,
        graph=graph,
        shape=shape(graph),
        target=target,
        count=group.count,
        nodes=group.nodes,
        facts=facts,
        context=context,
        input_tokens=prompt,
        output_tokens=answer,
        concurrency=load.concurrency or 1,
        rate=load.requests_per_second,
        budget_percent=facts.quality.default_budget_percent.value if budget is None else budget,
        budget_stated=budget is not None,
        where=where,
        draftings=draftings,
    )


def on(asked: Deployment, target: Target, group: DeviceGroup) -> Deployment | None:
    """The same on other devices; None where these cannot be planned for."""
    if _devices(target, group, asked.where):
        return None
    return replace(asked, target=target, count=group.count, nodes=group.nodes)


def _lengths(load: Workload, graph: Graph) -> tuple[int, int, int]:
    """Context, prompt and answer: defaults give way to a model that is shorter than they are."""
    context = min(load.context_tokens, graph.max_context)
    prompt, answer = load.input_tokens, load.output_tokens
    if prompt + answer > context:
        stated = load.model_fields_set
        if "input_tokens" in stated:
            answer = context - prompt
        elif "output_tokens" in stated:
            prompt = context - answer
        else:
            prompt, answer = context // 2, max(1, context // 8)
    return context, max(1, prompt), max(1, answer)


def _context(spec: Spec, graph: Graph, where: Where) -> list[Problem]:
    load, stated = spec.workload, spec.workload.model_fields_set
    lengths = [getattr(load, key) for key in ("input_tokens", "output_tokens") if key in stated]
    # A token to read and a token to write.
    asked = max(load.context_tokens if "context_tokens" in stated else 0, sum(lengths) + (len(lengths) == 1))
    if asked <= graph.max_context:
        return []
    return [
        Problem(
            "IC204",
            f"a context of {asked:,} tokens is longer than {graph.name} knows",
            where("workload.context_tokens"),
            f"the model's positions end at {graph.max_context:,}",
            f"context_tokens: {graph.max_context}",
        )
    ]


def _devices(target: Target, group: DeviceGroup, where: Where) -> list[Problem]:
    """Whether the devices can share a model, and state what times are reckoned from."""
    problems = []
    devices = group.count * group.nodes
    if devices > 1 and target.kind == "cpu":
        problems.append(
            Problem(
                "IC205",
                "processors do not share a model in this version",
                where("target.count" if group.count > 1 else "target.nodes"),
                "an engine's threads live in one memory",
                "count: 1, nodes: 1",
            )
        )
    if target.rates.bf16_tflops is None:
        problems.append(_lacks(target, "rates.bf16_tflops", where))
    if devices > 1 and link_gbs(target) is None:
        problems.append(_lacks(target, "interconnect", where))
    return problems


def _lacks(target: Target, figure: str, where: Where) -> Problem:
    return Problem(
        "IC206",
        f"nothing can be planned for {target.name}: its {figure} is not known",
        where("target"),
        "times are reckoned from bytes, operations and the device's rates",
        f"copy the target's file, add {figure}, and name the file in the spec",
    )
