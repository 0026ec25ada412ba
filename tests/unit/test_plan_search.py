"""Decisions: pins, limits, budget, objective; the same question gets the same answer, byte for byte."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from planning import card, cpu, gpu, ideal, load, spec, tiny

from infer_compile.catalog.coefficients import load_facts
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.planner.plan import Plan
from infer_compile.planner.rank import rank
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.spec.spec import Spec

LLAMA = card("llama-3.1-8b")


def refused(*args: Any, **fields: Any) -> InferCompileError:
    with pytest.raises(InferCompileError) as caught:
        plan(*args, **fields)
    assert caught.value.exit == Exit.INFEASIBLE
    return caught.value


def codes(error: InferCompileError) -> list[str]:
    return [problem.code for problem in error.problems]


def reason(made: Plan, key: str) -> str:
    return next(reason.why for reason in made.reasons if reason.key == key)


def on_llama(**fields: Any) -> Spec:
    return spec(workload=load(context_tokens=8192, input_tokens=1000, output_tokens=200), **fields)


def test_the_same_question_gets_the_same_bytes() -> None:
    first = plan(spec(), tiny(), cpu())
    again = plan(Spec.model_validate(spec().model_dump()), tiny(), cpu())
    assert first.to_json() == again.to_json()
    assert first.digest == again.digest
    assert plan(spec(objective="latency"), tiny(), cpu()).digest != first.digest
    assert plan(spec(), tiny(), cpu(bandwidth_gbs=2.0)).digest != first.digest
    # How it is served does not bear on the plan.
    assert plan(spec(serving={"port": 9000}), tiny(), cpu()).digest == first.digest


def test_json_there_and_back() -> None:
    made = plan(spec(pin={"kv": "tq3"}), tiny(), cpu())
    assert Plan.from_json(made.to_json()) == made
    fields = json.loads(made.to_json())
    assert fields["schema"] == 1
    assert set(fields) >= {
        *("model", "target", "engine", "weights", "kv", "speculation", "parallelism", "limits"),
        *("predicted", "reasons", "alternatives", "rejected"),
    }
    for wrong in ("{}", "no json", made.to_json().replace('"tq3"', '"tq9"')):
        with pytest.raises(InferCompileError) as caught:
            Plan.from_json(wrong, "plan.json")
        assert codes(caught.value) == ["IC221"]


def test_every_decision_and_every_number_has_its_source() -> None:
    made = plan(spec(cost={"usd_per_hour": 2}, pin={"weights": "int8"}), tiny(), cpu())
    keys = {reason.key for reason in made.reasons}
    assert keys >= {
        *("engine", "weights", "weights.group", "kv", "kv.page_tokens", "parallelism", "speculation"),
        *("limits.max_context", "limits.max_sequences", "limits.max_batch_tokens"),
    }
    assert all(reason.why and reason.source for reason in made.reasons)
    numbers = made.predicted.model_dump(exclude={"sources", "workload", "memory_gib"})
    memory = {f"memory_gib.{part}" for part in made.predicted.memory_gib.model_dump()} - {"memory_gib.total"}
    assert set(made.predicted.sources) == set(numbers) | memory
    # Nothing that rests on an assumed or a published figure passes for a measurement.
    assert made.predicted.sources["itl_ms"].basis == "measurement"
    assert made.predicted.sources["ttft_ms"].basis == "published"
    for target in (cpu(measured=False), gpu()):
        assert plan(spec(), tiny(), target).predicted.sources["itl_ms"].basis == "assumption"
    assert made.predicted.sources["memory_gib.weights"].basis == "arithmetic"


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4-rtn"])
@pytest.mark.parametrize("kv", ["bf16", "tq3"])
def test_pins_are_obeyed(weights: str, kv: str) -> None:
    made = plan(spec(pin={"weights": weights, "kv": kv}), tiny(), cpu())
    assert (made.weights.format, made.kv.level) == (weights, kv)
    assert reason(made, "weights").startswith("pinned") and reason(made, "kv").startswith("pinned")


def test_the_group_is_the_largest_that_divides_the_model() -> None:
    made = plan(spec(pin={"weights": "int8"}), tiny(), cpu())
    assert made.weights.group == 64 and "64 inputs do not divide by 128" in reason(made, "weights.group")
    wide = tiny(hidden_size=128, head_dim=64)
    assert plan(spec(pin={"weights": "int8"}), wide, cpu()).weights.group == 128
    pinned = plan(spec(pin={"weights": {"format": "int8", "group": 32}}), wide, cpu())
    assert pinned.weights.group == 32


def test_a_group_that_does_not_divide_the_model_is_refused() -> None:
    error = refused(spec(pin={"weights": {"format": "int4-rtn", "group": 128}}), tiny(), cpu())
    assert codes(error) == ["IC202"] and error.problems[0].fix == "group: 32 or 64"
    odd = tiny(hidden_size=48, intermediate_size=80)
    assert refused(spec(pin={"weights": "int8"}), odd, cpu()).problems[0].fix == "weights: bf16"
    # Not pinned, it is simply no candidate.
    assert plan(spec(), odd, cpu()).weights.format == "bf16"


def test_a_cache_that_the_heads_do_not_allow_is_refused() -> None:
    odd = tiny(head_dim=48)
    assert codes(refused(spec(pin={"kv": "tq3"}), odd, cpu())) == ["IC203"]
    made = plan(spec(), odd, cpu())
    assert made.kv.level == "bf16" and not made.buildable


def test_a_context_beyond_the_models_is_refused_if_it_is_stated() -> None:
    error = refused(spec(workload=load(context_tokens=5000)), tiny(), cpu())
    assert codes(error) == ["IC204"] and error.problems[0].fix == "context_tokens: 4096"
    short = tiny(max_position_embeddings=1000)
    made = plan(spec(workload={}), short, cpu())
    assert made.limits.max_context == 1000
    assert made.predicted.workload.input_tokens + made.predicted.workload.output_tokens <= 1000
    assert codes(refused(spec(workload={"input_tokens": 900, "output_tokens": 200}), short, cpu())) == [
        "IC204"
    ]


def test_splits_that_are_not_served_are_refused_all_at_once() -> None:
    pin = {"parallelism": {"tensor": 2, "pipeline": 2}}
    asked = spec(target={"device": "round-gpu", "count": 3, "nodes": 2}, pin=pin)
    error = refused(asked, LLAMA, gpu())
    assert codes(error) == ["IC205"] * 4
    assert "count: 2" in error.problems[-1].fix
    assert codes(refused(spec(target={"device": "round-cpu", "count": 2}), LLAMA, cpu())) == [
        "IC205",
        "IC206",
    ]


def test_a_target_without_a_rate_is_refused() -> None:
    error = refused(spec(), tiny(), gpu(rates={}))
    assert codes(error) == ["IC206"] and "rates.bf16_tflops" in error.problems[0].message


def test_only_processors_are_built_for() -> None:
    made = plan(on_llama(), LLAMA, gpu())
    assert not made.buildable and "gpu" in made.not_buildable
    with pytest.raises(InferCompileError) as caught:
        made.require_buildable()
    assert codes(caught.value) == ["IC220"]
    ours = plan(spec(), tiny(), cpu())
    assert ours.buildable
    ours.require_buildable()


def test_the_budget_decides_which_formats_are_possible() -> None:
    # The evidence for 8 billion parameters: int8 0.05 %, int4-rtn 5 %, tq3 8 %.
    made = plan(on_llama(), LLAMA, gpu(memory_gb=80.0))
    assert (made.weights.format, made.kv.level) == ("int8", "bf16")
    assert any(miss.weights == "int4-rtn/128" and miss.limit == "quality" for miss in made.rejected)
    loose = plan(on_llama(quality={"max_loss_percent": 6}), LLAMA, gpu(memory_gb=80.0))
    assert (loose.weights.format, loose.kv.level) == ("int4-rtn", "bf16")
    strict = plan(on_llama(quality={"max_loss_percent": 0}), LLAMA, gpu(memory_gb=80.0))
    assert strict.weights.format == "bf16" and strict.predicted.quality_loss_percent.expected == 0


def test_a_pin_is_not_charged_to_a_budget_that_nobody_stated() -> None:
    pinned = plan(on_llama(pin={"kv": "tq3"}), LLAMA, gpu(memory_gb=80.0))
    assert (pinned.weights.format, pinned.kv.level) == ("int8", "tq3")
    assert "more than the budget" in reason(pinned, "quality.max_loss_percent")
    # Stated, it leaves nothing for the weights to lose,
    stated = on_llama(pin={"kv": "tq3"}, quality={"max_loss_percent": 3})
    assert plan(stated, LLAMA, gpu(memory_gb=80.0)).weights.format == "bf16"
    # and below what the evidence allows at best the pin is refused.
    error = refused(on_llama(pin={"kv": "tq3"}, quality={"max_loss_percent": 1}), LLAMA, gpu(memory_gb=80.0))
    assert codes(error) == ["IC207"]


def test_the_cache_is_compressed_only_where_something_asks_for_it() -> None:
    quality = {"max_loss_percent": 20}
    roomy = plan(on_llama(quality=quality, objective="latency"), LLAMA, gpu(memory_gb=80.0))
    assert roomy.kv.level == "bf16" and "nothing asks" in reason(roomy, "kv")
    # 60 sequences of 8,192 tokens take 60 GiB in bf16.
    many = spec(
        workload=load(context_tokens=8192, input_tokens=1000, output_tokens=200, concurrency=60),
        quality=quality,
    )
    tight = plan(many, LLAMA, gpu())
    assert tight.kv.level == "tq3" and "memory" in reason(tight, "kv")
    assert tight.kv.bytes_per_token == 32 * 2 * 8 * 50


def test_speed_may_ask_for_a_compressed_cache() -> None:
    """With ideal kernels a long context is read five times faster; priors do not promise that."""
    long = spec(
        workload=load(context_tokens=4096, input_tokens=3900, output_tokens=100, concurrency=16),
        objective="latency",
        pin={"weights": "bf16"},
        quality={"max_loss_percent": 20},
    )
    fast = cpu(rates={"bf16_tflops": 1000.0}, memory_gb=64.0)
    assert plan(long, LLAMA, fast, facts=ideal()).kv.level == "tq3"
    assert plan(long, LLAMA, fast).kv.level == "bf16"


def test_speed_limits_are_kept() -> None:
    free = plan(on_llama(quality={"max_loss_percent": 0}), LLAMA, gpu(memory_gb=80.0))
    itl = free.predicted.itl_ms
    limited = plan(on_llama(slo={"itl_ms": itl * 0.8}), LLAMA, gpu(memory_gb=80.0))
    assert limited.weights.format == "int8" and limited.predicted.itl_ms <= itl * 0.8
    for slo in ({"itl_ms": itl / 100}, {"ttft_ms": 0.1}, {"tokens_per_second": 1e6}):
        error = refused(on_llama(slo=slo), LLAMA, gpu(memory_gb=80.0))
        assert codes(error) == ["IC201"] and next(iter(slo)) in error.problems[0].because


def test_a_tight_limit_between_tokens_shrinks_the_step() -> None:
    wide = plan(on_llama(), LLAMA, gpu(memory_gb=80.0)).limits.max_batch_tokens
    narrow = plan(on_llama(slo={"itl_ms": 25}), LLAMA, gpu(memory_gb=80.0)).limits.max_batch_tokens
    assert narrow < wide


def test_an_arrival_rate_brings_its_concurrency() -> None:
    def at(rate: float) -> Plan:
        workload = load(context_tokens=8192, input_tokens=1000, output_tokens=200, requests_per_second=rate)
        del workload["concurrency"]
        return plan(spec(workload=workload), LLAMA, gpu(memory_gb=80.0))

    slow, fast = at(0.25), at(1.5)
    assert slow.limits.max_sequences < fast.limits.max_sequences
    # Little's law: that many in flight, each as long as a request takes, end as many per second as arrive.
    seen = fast.predicted
    seconds = (seen.ttft_ms + 199 * seen.itl_ms) / 1e3
    assert fast.limits.max_sequences / seconds >= 1.5
    assert seen.tokens_per_second == pytest.approx(1.5 * 200)


def test_objective_capacity_takes_what_fits() -> None:
    made = plan(on_llama(objective="capacity"), LLAMA, gpu())
    memory = made.predicted.memory_gib
    assert made.limits.max_sequences > 2
    assert memory.total <= memory.capacity < memory.total + memory.kv / made.limits.max_sequences


def test_more_context_takes_more_and_is_not_faster() -> None:
    def at(context: int) -> Plan:
        workload = load(context_tokens=context, input_tokens=context - 200, output_tokens=100, concurrency=1)
        return plan(
            spec(workload=workload, pin={"weights": "bf16", "kv": "bf16"}), LLAMA, gpu(memory_gb=80.0)
        )

    plans = [at(context) for context in (1024, 4096, 16384, 65536)]
    for shorter, longer in pairwise(plans):
        assert longer.predicted.itl_ms > shorter.predicted.itl_ms
        assert longer.predicted.ttft_ms > shorter.predicted.ttft_ms
        assert longer.predicted.memory_gib.kv > shorter.predicted.memory_gib.kv


def test_tensor_parallelism_splits_memory_and_pays_for_the_link() -> None:
    llama = card("llama-3.1-70b")
    asked = on_llama(target={"device": "round-gpu", "count": 4})
    made = plan(asked, llama, gpu(memory_gb=80.0))
    assert made.parallelism.tensor == 4 and made.target.devices == 4
    assert made.predicted.memory_gib.weights * 4 == pytest.approx(made.weights.gib, rel=1e-3)
    assert made.predicted.step_ms.links > 0


def test_a_list_of_targets_is_ranked() -> None:
    small, large = gpu(id="small", memory_gb=16.0), gpu(id="large", memory_gb=80.0, bandwidth_gbs=3000.0)
    tiny_card = gpu(id="too-small", memory_gb=1.0)
    asked = on_llama(target=["small", "large", "too-small"])
    made = rank(asked, LLAMA, (small, large, tiny_card))
    assert made.target.id == "large"
    assert made.alternatives[0].target == "small"
    assert [miss.target for miss in made.rejected if miss.limit == "IC201"] == ["too-small"]
    assert "small" in reason(made, "target")
    with pytest.raises(InferCompileError) as caught:
        rank(on_llama(target=["a", "b"]), LLAMA, (tiny_card, gpu(id="b", memory_gb=2.0)))
    assert codes(caught.value) == ["IC201", "IC201"]


def test_alternatives_are_better_in_something() -> None:
    made = plan(on_llama(quality={"max_loss_percent": 20}), LLAMA, gpu(memory_gb=80.0))
    chosen = made.predicted
    assert made.alternatives
    for other in made.alternatives:
        assert (
            other.itl_ms < chosen.itl_ms
            or other.tokens_per_second > chosen.tokens_per_second
            or other.memory_gib < chosen.memory_gib.total
            or other.quality_loss_percent < chosen.quality_loss_percent.expected
        )
        assert other.gives_up


def test_every_size_of_model_has_evidence() -> None:
    quality = load_facts().quality
    for millions in (1, 50, 99, 100, 1000, 5999, 6000, 19_999, 20_000, 60_000, 2_000_000):
        for name in ("int8", "int4-rtn"):
            quality.of_weights(name, millions * 10**6)
        quality.of_kv("tq3", millions * 10**6)


def test_the_quickstart_is_defensible(quickstart: Graph) -> None:
    """Its own measurements say what each format costs it: the fastest within one percent is int4."""
    made = plan(spec(objective="latency", pin={"kv": "tq3"}), quickstart, cpu())
    assert made.predicted.sources["quality_loss_percent"].basis == "measurement"
    assert made.weights.format == "int4-rtn" and made.predicted.quality_loss_percent.expected <= 1
    assert made.kv.bytes_per_token * 5 < 6 * 2 * 2 * 128 * 2


@pytest.fixture
def quickstart() -> Graph:
    folder = Path(__file__).resolve().parents[2] / "specs" / "models" / "quickstart"
    return build(json.loads((folder / "config.json").read_text()), "quickstart")
