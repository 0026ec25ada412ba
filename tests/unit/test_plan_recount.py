"""A plan with other cache levels: counted anew, nothing else decided anew, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import cpu, gpu, load, spec, tiny

from infer_compile.catalog.facts import load_facts
from infer_compile.planner.plan import Plan
from infer_compile.planner.recount import recount
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.formats.kv import LEVELS

ASKED, GRAPH, TARGET = spec(pin={"kv": "ct3"}), tiny(), cpu()
PLANNED = plan(ASKED, GRAPH, TARGET)


def at(*layers: str) -> Plan:
    return recount(PLANNED, layers, ASKED, GRAPH, TARGET)


def without_cache(made: Plan) -> Plan:
    return made.model_copy(
        update={"kv": PLANNED.kv, "predicted": PLANNED.predicted, "reasons": PLANNED.reasons}
    )


def test_the_levels_as_planned_are_the_plan() -> None:
    assert at("ct3", "ct3") == PLANNED
    rated = spec(pin={"kv": "ct3"}, workload=load(concurrency=None, requests_per_second=0.001))
    made = plan(rated, GRAPH, TARGET)
    assert recount(made, made.kv.layers, rated, GRAPH, TARGET) == made


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.sampled_from(sorted(LEVELS))] * 2))
def test_bytes_are_those_of_the_layout(layers: tuple[str, str]) -> None:
    made = at(*layers)
    layout = made.kv.layout(GRAPH.kv_heads, GRAPH.head_dim)
    assert made.kv.layers == layers
    assert made.kv.bytes_per_token == layout.token_bytes
    assert made.kv.bits_per_element == pytest.approx(8 * layout.token_bytes / (2 * 2 * 64))
    # Of each calibrated layer two means and, of keys and values, a transform and its inverse: float32.
    fitted = sum(level.startswith("ct") for level in layers)
    assert made.kv.table_bytes == fitted * 4 * (2 * 64 + 4 * 64 * 64)
    pools = made.kv.exact_pages * layout.exact_page_bytes + made.kv.packed_pages * layout.packed_page_bytes
    # A plan keeps four digits.
    held = made.predicted.memory_gib
    assert held.kv * 2**30 == pytest.approx(pools + made.kv.table_bytes, rel=1e-3)
    assert without_cache(made) == PLANNED


def test_the_name_of_a_mixed_cache() -> None:
    assert at("ct4", "ct3").kv.level == "ct3"
    assert at("ct4", "ct4").kv.level == "ct4"
    assert at("int8", "bf16").kv.level == "int8"
    exact = at("bf16", "bf16").kv
    assert (exact.level, exact.packed_pages, exact.sink_pages, exact.recent_pages) == ("bf16", 0, 0, 0)
    (why,) = (reason for reason in at("ct4", "ct4").reasons if reason.key == "kv")
    assert why.value == "ct4" and why.why.startswith("planned as ct3: pinned; ")


def test_losses_and_times_lie_between_those_of_the_levels() -> None:
    facts = load_facts()
    three, mixed, four = (
        at(*layers).predicted for layers in (("ct3", "ct3"), ("ct3", "ct4"), ("ct4", "ct4"))
    )
    assert four.itl_ms > mixed.itl_ms > three.itl_ms
    assert mixed.memory_gib.kv * 2 == pytest.approx(three.memory_gib.kv + four.memory_gib.kv, rel=1e-3)
    losses = [facts.quality.of_kv(level, GRAPH.parameters).expected for level in ("ct3", "ct4")]
    weights = three.quality_loss_percent.expected - losses[0]
    assert mixed.quality_loss_percent.expected == pytest.approx(weights + sum(losses) / 2)
    source = mixed.sources["quality_loss_percent.expected"]
    assert source.basis == "assumption" and "the mean over the layers" in source.text


def test_what_does_not_fit_is_refused() -> None:
    workload = load(context_tokens=4096, input_tokens=3000, output_tokens=1000, concurrency=64)
    fields = {"workload": workload, "pin": {"kv": "tq2", "weights": "bf16"}}
    roomy = plan(spec(**fields), GRAPH, TARGET).predicted.memory_gib
    tight = cpu(memory_gb=(roomy.total + 0.01) * 2**30 / 1e9 / 0.9)
    asked = spec(**fields)
    made = plan(asked, GRAPH, tight)
    with pytest.raises(InferCompileError) as caught:
        recount(made, ("bf16", "bf16"), asked, GRAPH, tight)
    (problem,) = caught.value.problems
    assert (problem.code, caught.value.exit) == ("IC222", Exit.INFEASIBLE)
    assert problem.message == "layers with a cache of 2 x bf16 do not keep every limit"
    assert "GiB where there are" in problem.because


def test_what_the_engine_does_not_serve_is_refused() -> None:
    asked = spec(pin={"kv": "tq3", "engine": "native"}, target="round-gpu")
    facts = load_facts()
    ours, *others = facts.engines.engines
    less = {name: needs for name, needs in ours.kv.items() if name != "ct3"}
    engines = (ours.model_copy(update={"kv": less}), *others)
    facts = facts.model_copy(update={"engines": facts.engines.model_copy(update={"engines": engines})})
    made = plan(asked, GRAPH, gpu(), facts=facts)
    with pytest.raises(InferCompileError) as caught:
        recount(made, ("tq3", "ct3"), asked, GRAPH, gpu(), facts=facts)
    assert [(one.code, one.message) for one in caught.value.problems] == [
        ("IC203", "kv level ct3 cannot be served")
    ]


def test_a_plan_of_something_else_is_none() -> None:
    with pytest.raises(ValueError, match="each has one"):
        at("ct3")
    with pytest.raises(ValueError, match="was not made from"):
        recount(
            PLANNED.model_copy(update={"limits": PLANNED.limits.model_copy(update={"max_batch_tokens": 1})}),
            ("ct4", "ct4"),
            ASKED,
            GRAPH,
            TARGET,
        )
    other = spec(pin={"engine": "vllm"}, target="round-gpu")
    with pytest.raises(ValueError, match="our own engine"):
        recount(plan(other, GRAPH, gpu()), ("fp8", "fp8"), other, GRAPH, gpu())
