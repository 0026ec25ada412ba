"""What is asked for, with every default applied: spec, model and devices in the planner's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..catalog.coefficients import EngineCoefficients, Facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.spec import DeviceGroup, Slo, Spec, Workload
from .latency import link_gbs
from .shape import Shape, shape

Where = Callable[[str], str]
"""Dotted key of the spec to ``file:line``."""

ENGINE = "native"


@dataclass(frozen=True, slots=True)
class Deployment:
    """With a ``rate`` (requests per second) the ``concurrency`` follows from it. ``budget_stated`` tells
    whether the spec gives ``budget_percent`` or the catalog's default stands."""

    spec: Spec
    graph: Graph
    shape: Shape
    parameters: int
    target: Target
    tensor: int
    facts: Facts
    engine: EngineCoefficients
    context: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    rate: float | None
    budget_percent: float
    budget_stated: bool
    where: Where

    @property
    def slo(self) -> Slo:
        return self.spec.slo

    @property
    def pinned_weights(self) -> str | None:
        return self.spec.pin.weights.format if self.spec.pin.weights else None

    @property
    def pinned_group(self) -> int | None:
        return self.spec.pin.weights.group if self.spec.pin.weights else None


def deployment(
    spec: Spec, graph: Graph, target: Target, group: DeviceGroup, facts: Facts, where: Where
) -> Deployment:
    """Applies defaults and refuses what cannot be meant, all at once.

    Raises InferCompileError (exit 3): IC204 a context beyond the model's, IC205 a split that does not divide
    the model or that this version does not serve, IC206 a target that lacks a figure.
    """
    problems = [*_context(spec, graph, where), *_devices(spec, graph, target, group, where)]
    if problems:
        raise InferCompileError(problems, Exit.INFEASIBLE)
    load = spec.workload
    context, prompt, answer = _lengths(load, graph)
    budget = spec.quality.max_loss_percent
    return Deployment(
        spec=spec,
        graph=graph,
        shape=shape(graph),
        parameters=graph.parameters,
        target=target,
        tensor=group.count,
        facts=facts,
        engine=facts.coefficients.of(ENGINE, target.kind),
        context=context,
        input_tokens=prompt,
        output_tokens=answer,
        concurrency=load.concurrency or 1,
        rate=load.requests_per_second,
        budget_percent=facts.quality.default_budget_percent.value if budget is None else budget,
        budget_stated=budget is not None,
        where=where,
    )


def on(asked: Deployment, target: Target, group: DeviceGroup) -> Deployment | None:
    """The same on other devices; None where these cannot be planned for."""
    if _devices(asked.spec, asked.graph, target, group, asked.where):
        return None
    engine = asked.facts.coefficients.of(ENGINE, target.kind)
    return replace(asked, target=target, tensor=group.count, engine=engine)


def _devices(spec: Spec, graph: Graph, target: Target, group: DeviceGroup, where: Where) -> list[Problem]:
    """Whether the devices state what times are reckoned from, and can share the model."""
    problems = _split(spec, graph, target, group, where)
    if target.rates.bf16_tflops is None:
        problems.append(_lacks(target, "rates.bf16_tflops", where))
    if group.count > 1 and link_gbs(target) is None:
        problems.append(_lacks(target, "interconnect", where))
    return problems


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


def _split(spec: Spec, graph: Graph, target: Target, group: DeviceGroup, where: Where) -> list[Problem]:
    """Whether ``group.count`` devices can share the model, and the pins agree."""
    problems = []

    def refuse(key: str, message: str, because: str, fix: str) -> None:
        problems.append(Problem("IC205", message, where(key), because, fix))

    pins = spec.pin.parallelism
    for key in ("pipeline", "expert", "data"):
        if pins is not None and (getattr(pins, key) or 1) > 1:
            refuse(
                f"pin.parallelism.{key}",
                f"{key} parallelism is not served by this version",
                "the native engine splits a model over the devices of one machine by tensors alone",
                f"remove {key}, or {key}: 1",
            )
    if pins is not None and pins.tensor not in (None, group.count):
        refuse(
            "pin.parallelism.tensor",
            f"tensor: {pins.tensor} does not use the {group.count} device(s) of the target",
            "every device of the target holds an equal part of the model",
            f"target: {{device: {group.device}, count: {pins.tensor}}}, or tensor: {group.count}",
        )
    if group.nodes > 1:
        refuse(
            "target.nodes",
            "several machines are not served by this version",
            "the native engine runs on one machine",
            "nodes: 1",
        )
    if group.count > 1 and target.kind == "cpu":
        refuse(
            "target.count",
            "processors do not share a model in this version",
            "the native engine's threads live in one memory",
            "count: 1",
        )
    if graph.heads % group.count or (graph.kv_heads % group.count and group.count % graph.kv_heads):
        possible = [
            n for n in range(1, graph.heads + 1) if graph.heads % n == 0 and divides(graph.kv_heads, n)
        ]
        nearest = max((n for n in possible if n <= group.count), default=1)
        refuse(
            "target.count",
            f"{group.count} devices do not divide {graph.name}",
            f"it has {graph.heads} query heads and {graph.kv_heads} key heads",
            f"count: {nearest}",
        )
    return problems


def divides(kv_heads: int, devices: int) -> bool:
    """Whether each device holds whole key heads, or copies of one."""
    return kv_heads % devices == 0 or devices % kv_heads == 0


def _lacks(target: Target, figure: str, where: Where) -> Problem:
    return Problem(
        "IC206",
        f"nothing can be planned for {target.name}: its {figure} is not known",
        where("target"),
        "times are reckoned from bytes, operations and the device's rates",
        f"copy the target's file, add {figure}, and name the file in the spec",
    )
