"""What the plan of a bundle predicts for a load: the planner's own arithmetic, on what the bundle holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ...bundle import layout
from ...catalog.facts import Facts, load_facts
from ...catalog.model import load_card
from ...catalog.speculation import Method
from ...catalog.target import THIS_MACHINE, Cpu, Rates, Target, load_target, target_names
from ...graph.build import build, build_heads
from ...graph.graph import Graph
from ...graph.heads import method_of
from ...planner.compose import digest
from ...planner.deployment import Draftings
from ...planner.outlook import Outlook, outlook
from ...planner.plan import Plan, Predicted
from ...planner.speculation import WIDTHS, Drafting, choices
from ...probe.cpu import host_architecture
from ...probe.machine import recall
from ...spec.spec import Spec
from .load import Load
from .machine import Machine

_QUANTIZED = "quantization_config"
"""What a build adds to the model's config.json."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """``outlook`` is None where this version of the planner no longer knows the plan's choice."""

    plan: Plan
    rate: float | None
    outlook: Outlook | None

    @property
    def planned(self) -> Load:
        """The load that the plan was made for."""
        load = self.plan.predicted.workload
        return Load(load.concurrency, load.input_tokens, load.output_tokens, self.rate)

    def of(self, load: Load) -> Predicted | None:
        """Without the server's HTTP, as it is measured here; of an open load what the plan says, for that is
        not reckoned anew."""
        if load.rate is not None or (self.outlook is None and load == self.planned):
            return self.plan.predicted if load == self.planned else None
        return self.reckoned(load)

    def reckoned(self, load: Load) -> Predicted | None:
        """The same by this version's arithmetic alone, of a closed load."""
        if self.outlook is None or load.rate is not None:
            return None
        return self.outlook.local.at(load.sequences, load.input_tokens, load.output_tokens)

    def now(self, here: Machine) -> Prediction:
        """The same with what the machine gives just now, where that is known; else nothing is predicted."""
        bandwidth, matrix, seen = here.bandwidth.now, here.matrix.now, self.outlook
        if seen is None or bandwidth is None or matrix is None:
            return replace(self, outlook=None)
        rates = {"bandwidth_gbs": bandwidth, "rates": Rates(bf16_tflops=matrix), "measured": True}
        asked = seen.asked
        target = asked.target.model_copy(update=rates)
        renewed = outlook(
            self.plan, asked.spec, asked.graph, target, facts=asked.facts, draftings=asked.draftings
        )
        return replace(self, outlook=renewed)

    @property
    def stale(self) -> str:
        """In words, where this version reckons the planned load otherwise than the plan does; else empty."""
        planned, said = self.planned, self.plan.predicted
        if self.outlook is None:
            return "this version does not know the plan's choice: other loads are measured, not predicted"
        if planned.rate is not None:
            return ""
        now = self.outlook.at(planned.sequences, planned.input_tokens, planned.output_tokens)
        if (now.ttft_ms, now.itl_ms) == (said.ttft_ms, said.itl_ms):
            return ""
        return (
            f"this version predicts {now.ttft_ms:g} and {now.itl_ms:g} ms for the planned load, and the plan "
            f"{said.ttft_ms:g} and {said.itl_ms:g}: other loads are predicted by this version"
        )


def prediction(folder: Path, plan: Plan, spec: Spec) -> Prediction:
    """Of the bundle in ``folder``: its model, its draft and its target are read from it alone."""
    facts = load_facts()
    config = _config(folder / layout.MODEL)
    graph = build(config, plan.model.name)
    drafts = _draftings(folder, plan, graph, config, facts)
    target = target_of(plan, folder)
    try:
        found = outlook(plan, spec, graph, target, facts=facts, draftings=drafts)
    except ValueError:
        found = None
    return Prediction(plan, spec.workload.requests_per_second, found)


def _config(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != _QUANTIZED}


def target_of(plan: Plan, folder: Path) -> Target:
    """The device that was planned for: the machine's remembered figures or the catalog's, if they are those;
    else as much as the plan tells of it."""
    named = plan.target.id
    known = recall() if named == THIS_MACHINE else None
    if named in target_names():
        known = load_target(named, folder)
    if known is not None and digest(known) == plan.inputs.target:
        return known
    return _told(plan)


def _told(plan: Plan) -> Target:
    part = plan.target
    cpu = None
    if part.kind == "cpu" and part.isa is not None:
        architecture = "aarch64" if host_architecture() == "aarch64" else "x86-64"
        cpu = Cpu.model_validate({"architecture": architecture, "isa": part.isa, "cores": 1})
    return Target(
        id=part.id,
        name=part.name,
        vendor=part.name,
        kind=part.kind,
        memory_gb=part.memory_gb,
        bandwidth_gbs=part.bandwidth_gbs,
        rates=Rates(bf16_tflops=part.matrix_tflops),
        cpu=cpu,
        sources={"default": "the plan"},
        confidence="B",
        measured=part.measured,
    )


def _draftings(folder: Path, plan: Plan, graph: Graph, config: dict[str, Any], facts: Facts) -> Draftings:
    """What the bundle's model is drafted for with, as the plan's search found it."""
    wanted = plan.speculation.draft
    drafter = _config(folder / layout.DRAFT / layout.MODEL) if wanted is not None else {}
    heads = build_heads(drafter, graph, wanted or "") if method_of(drafter) is not None else None
    card = load_card(plan.model.source.removeprefix("hf://"))

    def graph_of(name: str) -> Graph | None:
        return build(drafter, name) if name == wanted and heads is None else None

    def draftings(methods: tuple[str, ...], vocabulary_slack: int) -> tuple[Drafting, ...]:
        return choices(
            graph,
            card.id if card else "",
            config,
            facts.speculation,
            graph_of,
            [name for name in get_args(Method) if name == plan.speculation.method and name in methods],
            widths=WIDTHS,
            draft=wanted,
            heads=heads,
            vocabulary_slack=vocabulary_slack,
        )

    return draftings
