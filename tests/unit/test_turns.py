"""What would change the decision is true: at a turn the planner decides as told, short of it as before."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from planning import cpu, load, spec, tiny

from infer_compile.build.resolve import draftings_of, resolve
from infer_compile.catalog.facts import load_facts
from infer_compile.planner.candidate import Candidate
from infer_compile.planner.deployment import Deployment, deployment
from infer_compile.planner.explain.turns import MOST, NEAR, NOTHING, difference, turns
from infer_compile.planner.frontier import choice
from infer_compile.planner.plan import Choice, Parallelism, Turn
from infer_compile.planner.search import answer
from infer_compile.spec.spec import Spec

SPECS = Path(__file__).resolve().parents[2] / "specs"
FILES = ("llama-3.1-8b-rtx-4090", "llama-3.3-70b-h100", "llama-3.2-1b-jetson-orin-nano")


@dataclass(frozen=True)
class Case:
    asked: Deployment
    chosen: Candidate
    turns: tuple[Turn, ...]

    def again(self, *changes: tuple[str, Any]) -> str:
        """What is decided otherwise for the changed spec."""
        fields = self.asked.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for key, value in changes:
            section, name = key.split(".")
            fields.setdefault(section, {})[name] = value
        one = answer(renewed(self.asked, Spec.model_validate(fields)))
        mine = choice(self.asked, self.chosen)
        return NOTHING if one is None else difference(mine, choice(self.asked, one))


def renewed(asked: Deployment, changed: Spec) -> Deployment:
    group = changed.targets[0]
    return deployment(
        changed, asked.graph, asked.target, group, asked.facts, asked.where, draftings=asked.draftings
    )


@cache
def case(name: str) -> Case:
    resolved = resolve(SPECS / f"{name}.yaml")
    asked = deployment(
        resolved.spec,
        resolved.graph,
        resolved.target,
        resolved.spec.targets[0],
        resolved.facts,
        lambda key: "",
        draftings_of(resolved),
    )
    return told(asked)


def told(asked: Deployment) -> Case:
    chosen = answer(asked)
    assert chosen is not None
    return Case(asked, chosen, turns(asked, chosen, answer))


def numbers(turn: Turn) -> list[float]:
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", turn.at)]


def lengths(case: Case, context: int) -> list[tuple[str, Any]]:
    share = context / case.asked.context
    return [
        ("workload.context_tokens", context),
        ("workload.input_tokens", max(1, int(case.asked.input_tokens * share))),
        ("workload.output_tokens", max(1, int(case.asked.output_tokens * share))),
    ]


def changed(case: Case, turn: Turn, factor: float = 1.0) -> list[tuple[str, Any]]:
    """The change of a turn, or one that goes ``factor`` of the way back."""
    value = numbers(turn)[0]
    back = value / factor if turn.at.endswith("more") else value * factor
    if turn.key == "workload.context_tokens":
        return lengths(case, round(back))
    if turn.key == "workload.concurrency":
        return [(turn.key, max(1, round(back)))]
    if turn.key == "quality.max_loss_percent":
        # A budget of just what is lost is kept; told are the exact figures.
        inside = turn.at.endswith("more") == (factor == 1)
        return [(turn.key, value if inside else 0.99 * value)]
    return [(turn.key, float(f"{back:.3g}"))]


@pytest.mark.parametrize("name", FILES)
def test_every_turn_is_true(name: str) -> None:
    here = case(name)
    assert here.turns
    for turn in here.turns:
        assert here.again(*changed(here, turn)) == turn.then, turn


@pytest.mark.parametrize("name", FILES)
def test_short_of_a_turn_the_decision_stands(name: str) -> None:
    here = case(name)
    for turn in here.turns:
        if turn.key == "slo.itl_ms" and numbers(turn)[0] * NEAR > float(here.chosen.forecast.itl) * 1e3:
            continue
        assert not here.again(*changed(here, turn, NEAR)), turn


def test_the_nearest_come_first_and_they_are_few() -> None:
    for name in FILES:
        assert len(case(name).turns) <= MOST
    here = case(FILES[0])
    ratios = [
        max(numbers(turn)[0] / here.asked.concurrency, here.asked.concurrency / numbers(turn)[0])
        for turn in here.turns
        if turn.key == "workload.concurrency"
    ]
    assert ratios == sorted(ratios)


def on_cpu(**fields: Any) -> Deployment:
    asked = spec(**fields)
    return deployment(asked, tiny(), cpu(), asked.targets[0], load_facts(), lambda key: "")


def test_memory_that_ends_is_a_turn() -> None:
    """The tiny model keeps 512 bytes per token in bf16: 64 sequences of 4,096 tokens are 128 MiB."""
    small = replace(
        on_cpu(pin={"weights": "bf16", "kv": "bf16"}, workload=load(concurrency=8)),
        target=cpu(memory_gb=0.305),
    )
    found = [turn for turn in told(small).turns if turn.key == "workload.concurrency"]
    assert [turn.then for turn in found if turn.at.endswith("more")] == [NOTHING]


def test_what_no_change_moves_has_no_turn() -> None:
    pins = {"engine": "native", "weights": "bf16", "kv": "bf16", "speculation": "none"}
    assert not [turn for turn in told(on_cpu(pin=pins)).turns if turn.then != NOTHING]


def test_a_rate_has_turns_of_its_own() -> None:
    asked = on_cpu(workload={"requests_per_second": 0.5, "context_tokens": 1024})
    keys = {turn.key for turn in told(asked).turns}
    assert "workload.concurrency" not in keys and "workload.requests_per_second" in keys


def test_differences_are_told_by_what_is_new() -> None:
    base = {"target": "t", "engine": "vllm", "weights": "fp8", "kv": "bf16", "speculation": "none"}
    old = Choice(**base, parallelism=Parallelism())
    assert difference(old, old) == ""
    new = old.model_copy(update={"kv": "fp8", "parallelism": Parallelism(tensor=2, expert=2)})
    assert difference(old, new) == "cache fp8; split tensor 2, experts over 2"
    longer = old.model_copy(update={"speculation": "eagle3:4"})
    assert difference(longer, old.model_copy(update={"speculation": "eagle3:2"})) == ""
    assert difference(old, longer) == "drafts eagle3"
