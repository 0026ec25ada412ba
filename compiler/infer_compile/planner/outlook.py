"""What a plan comes to under other loads than the one that it was made for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..catalog.facts import Facts, load_facts
from ..catalog.target import Target
from ..graph.graph import Graph
from ..runtime.formats.kv import LEVELS
from ..spec.spec import DeviceGroup, Spec
from .candidate import Candidate, candidate
from .compose import predicted_part
from .deployment import Deployment, Draftings, deployment, no_drafts
from .explain.replay import replay
from .performance.latency import Runner
from .plan import Plan, Predicted
from .recount import standing


@dataclass(frozen=True, slots=True)
class Outlook:
    """The candidate that a plan stands for, and what it was asked for."""

    asked: Deployment
    chosen: Candidate

    @property
    def local(self) -> Outlook:
        """The same for callers within the process: without the server's HTTP."""
        speed, calibration = self.chosen.speed, self.chosen.speed.calibration
        rates, waiting = calibration.rates, calibration.waiting.model_copy(update={"request_us": 0.0})
        local = replace(
            speed,
            step=speed.step - rates.http_step_us * 1e-6,
            sequence=speed.sequence - rates.http_sequence_us * 1e-6,
            calibration=calibration.model_copy(update={"waiting": waiting}),
        )
        return replace(self, chosen=replace(self.chosen, speed=local))

    def at(self, sequences: int, input_tokens: int, output_tokens: int) -> Predicted:
        """With so many sequences in flight, each replaced when it ends."""
        asked = replace(
            self.asked,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            concurrency=sequences,
            rate=None,
        )
        return predicted_part(asked, candidate(replay(asked, self.chosen, np.array([sequences])), 0))

    def read_bytes(self, sequences: int, context: int) -> float:
        """Bytes of weights and cache that one step reads in which each of ``sequences`` sequences draws a
        token after about ``context`` others."""
        one = self.chosen
        runner = Runner(self.asked.shape, one.stored, one.cache, one.layout, one.speed)
        return float(runner.moved_bytes(sequences, context))


def outlook(
    plan: Plan,
    spec: Spec,
    graph: Graph,
    target: Target,
    *,
    facts: Facts | None = None,
    draftings: Draftings = no_drafts,
) -> Outlook:
    """Of ``plan``, of our own engine; the other arguments are what it was made from. Raises ValueError for a
    plan that was not made from these arguments."""
    group = DeviceGroup(device=plan.target.id, count=plan.target.count, nodes=plan.target.nodes)
    asked = deployment(spec, graph, target, group, facts or load_facts(), lambda key: "", draftings)
    return Outlook(asked, standing(asked, plan, tuple(LEVELS[level] for level in plan.kv.layers)))
