"""The plan in words: golden text for a terminal, markdown, the bar."""

from __future__ import annotations

from pathlib import Path

import pytest
from planning import card, cpu, gpu, ideal, spec, tiny
from rich.console import Console

from infer_compile.planner.explain import BAR_CELLS, cells, headline, markdown, table
from infer_compile.planner.plan import Plan
from infer_compile.planner.search import plan

GOLDEN = Path(__file__).with_name("golden")
ROUND = ideal(step_us=100, layer_us=50, overhead_gib=0.25)


def rendered(made: Plan) -> str:
    console = Console(width=110, highlight=False)
    with console.capture() as capture:
        console.print(table(made))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


@pytest.fixture
def made() -> Plan:
    asked = spec(pin={"weights": "int8", "kv": "tq3"}, cost={"usd_per_hour": 0.1}, name="round")
    return plan(asked, tiny(), cpu(), facts=ROUND)


def test_the_table(made: Plan) -> None:
    assert rendered(made) == (GOLDEN / "plan.txt").read_text()


def test_the_markdown(made: Plan) -> None:
    assert markdown(made) == (GOLDEN / "plan.md").read_text()


def test_what_cannot_be_built_is_said_before_any_number() -> None:
    made = plan(spec(), card("llama-3.1-8b"), gpu(memory_gb=80.0))
    text = rendered(made)
    assert text.index("cannot be built") < text.index("time to first token")
    assert "**Cannot be built:**" in markdown(made)


@pytest.mark.parametrize(
    ("bandwidth", "rate", "step", "named"),
    [(1e-3, 1e3, 0, "weight bandwidth"), (1e6, 1e-6, 0, "compute"), (1e6, 1e3, 1000, "fixed cost")],
)
def test_the_bottleneck_is_what_takes_longest(bandwidth: float, rate: float, step: float, named: str) -> None:
    asked = spec(workload={"context_tokens": 64, "concurrency": 1}, pin={"weights": "bf16"})
    target = cpu(bandwidth_gbs=bandwidth, rates={"bf16_tflops": rate})
    made = plan(asked, tiny(), target, facts=ideal(step_us=step))
    assert made.predicted.bottleneck == named and named in headline(made)


def test_a_long_context_is_bound_by_the_cache() -> None:
    asked = spec(workload={"context_tokens": 4096, "concurrency": 32}, pin={"weights": "bf16", "kv": "bf16"})
    target = cpu(rates={"bf16_tflops": 1e3})
    assert plan(asked, tiny(), target, facts=ideal()).predicted.bottleneck == "cache bandwidth"


@pytest.mark.parametrize("memory", [0.3, 1.0, 64.0])
def test_the_bar_is_as_wide_as_it_should_be(memory: float) -> None:
    made = plan(spec(), tiny(), cpu(memory_gb=memory))
    parts = cells(made)
    held = made.predicted.memory_gib
    assert sum(parts) <= BAR_CELLS and min(parts) >= 1
    assert parts[3] == pytest.approx(BAR_CELLS * held.overhead / held.capacity, abs=3)
