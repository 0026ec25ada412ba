"""Decisions: pins, limits, budget, objective; the same question gets the same answer, byte for byte."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import card, cpu, gpu, load, spec, tiny

from infer_compile.build.resolve import plan_of, resolve
from infer_compile.catalog.facts import load_facts
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.lower.lower import lower
from infer_compile.planner import support
from infer_compile.planner.deployment import deployment
from infer_compile.planner.plan import Plan
from infer_compile.planner.rank import rank
from infer_compile.planner.search import plan
from infer_compile.planner.survey import survey
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.formats.weights import FP8
from infer_compile.spec.spec import DeviceGroup, Spec

SPECS = Path(__file__).resolve().parents[2] / "specs"
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


def natively(**fields: Any) -> Spec:
    """As ``on_llama``, by our own engine, which is planned for on a GPU where it is pinned."""
    pin = {"engine": "native"} | fields.pop("pin", {})
    return on_llama(pin=pin, **fields)


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
    for wrong in ("{}", "no json", made.to_json().replace('"schema": 1', '"schema": 2')):
        with pytest.raises(InferCompileError) as caught:
            Plan.from_json(wrong, "plan.json")
        assert codes(caught.value) == ["IC221"]


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4-rtn"])
@pytest.mark.parametrize("kv", ["bf16", "tq3"])
def test_pins_are_obeyed(weights: str, kv: str) -> None:
    made = plan(spec(pin={"weights": weights, "kv": kv}), tiny(), cpu())
    assert (made.weights.format, made.kv.level) == (weights, kv)
    assert reason(made, "weights").startswith("pinned") and reason(made, "kv").startswith("pinned")


def test_fp8_is_for_devices_that_multiply_it() -> None:
    native = {"weights": "fp8", "engine": "native"}
    made = plan(spec(target="round-gpu", pin=native), tiny(), gpu())
    assert (made.engine, made.weights.format, made.weights.group) == ("native", "fp8", 0)
    assert "stays bf16" in reason(made, "weights.head")
    program = lower(tiny(), made)
    assert program.weight_bytes == made.weights.bytes
    assert {tensor.format for tensor in program.tensors if "mlp" in tensor.name and tensor.rows > 1} == {FP8}
    old = refused(spec(target="round-gpu", pin=native), tiny(), gpu(compute_capability="8.6"))
    assert "from compute capability 8.9" in str(old)
    assert "native has fp8 on NVIDIA" in str(refused(spec(pin=native), tiny(), cpu()))
    assert plan(spec(), tiny(), cpu()).weights.format != "fp8"


def test_mixtures_are_for_gpus() -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}
    mixture = tiny(architectures=["MixtralForCausalLM"], **fields)
    for weights in ("bf16", "fp8", "int8", "int4-rtn"):
        pin = {"engine": "native", "weights": weights}
        made = plan(spec(target="round-gpu", pin=pin), mixture, gpu())
        assert lower(mixture, made).weight_bytes == made.weights.bytes
    assert codes(refused(spec(pin={"engine": "native"}), mixture, cpu())) == ["IC208"]


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


def test_splits_that_are_not_possible_are_refused() -> None:
    asked = spec(target={"device": "round-gpu", "count": 4}, pin={"parallelism": {"tensor": 3}})
    error = refused(asked, LLAMA, gpu())
    assert codes(error) == ["IC205"] and "32 query heads" in error.problems[0].because
    # Three devices can share the model by layers or by sequences, and not by heads.
    three = plan(spec(target={"device": "round-gpu", "count": 3}), LLAMA, gpu())
    assert three.parallelism.tensor == 1
    pinned = spec(
        target={"device": "round-gpu", "count": 4}, pin={"parallelism": {"tensor": 2, "pipeline": 2}}
    )
    found = plan(pinned, LLAMA, gpu()).parallelism
    assert (found.tensor, found.pipeline, found.data) == (2, 2, 1)
    assert codes(refused(spec(target={"device": "round-cpu", "count": 2}), LLAMA, cpu())) == [
        "IC205",
        "IC206",
    ]


def test_several_machines_go_to_an_engine_that_runs_over_them() -> None:
    asked = spec(target={"device": "round-gpu", "count": 8, "nodes": 2})
    made = plan(asked, card("llama-3.1-70b"), gpu(memory_gb=80.0))
    assert made.engine in ("tensorrt-llm", "vllm", "sglang") and not made.buildable
    split = made.parallelism
    assert split.tensor * split.pipeline * split.data == 16


@pytest.mark.parametrize(
    "model", ["deepseek-v3.2", "qwen3.5-35b-a3b", "nemotron-3-nano-30b-a3b", "gpt-oss-20b"]
)
def test_what_our_own_engine_does_not_run_goes_to_one_that_does(model: str) -> None:
    """Keys that an index selects, state space, mixtures, windows."""
    graph = card(model)
    assert not graph.native
    made = plan(
        spec(target={"device": "h", "count": 8}), graph, gpu(memory_gb=144.0, compute_capability="9.0")
    )
    assert made.engine != "native"
    error = refused(on_llama(pin={"engine": "native"}), graph, gpu(memory_gb=640.0))
    assert codes(error) == ["IC208"] and graph.native_reason in error.problems[0].because


def test_no_engine_at_all_is_said_with_every_reason() -> None:
    error = refused(spec(), card("deepseek-v3"), gpu(vendor="Google", compute_capability="TPU"))
    assert codes(error) == ["IC209"]
    assert all(name in error.problems[0].because for name in load_facts().engines.names)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixtral-8x7b", "gemma-3-27b", "deepseek-v2-lite"])
@pytest.mark.parametrize("capability", ["7.5", "8.6", "9.0", "10.0"])
def test_no_candidate_that_its_engine_cannot_serve(model: str, capability: str) -> None:
    graph, device = card(model), gpu(memory_gb=80.0, compute_capability=capability)
    group = DeviceGroup(device="round-gpu", count=2)
    found = survey(deployment(on_llama(), graph, device, group, load_facts(), lambda key: ""))
    for each in found.solved:
        engine, name = each.block.engine, each.block.stored.scheme.name
        assert not support.refusal(engine, graph, device)
        assert not support.why_not(engine, graph, device, "weights", name)
        assert not support.why_not(engine, graph, device, "kv", each.block.cache.scheme.name)
        assert np.all(np.asarray(each.block.layout.devices) == 2)


def test_a_mixture_on_two_machines_has_a_hundred_thousand_candidates() -> None:
    resolved = resolve(SPECS / "deepseek-v3-2x8-h200.yaml")
    made = plan_of(resolved)
    assert made.searched.candidates >= 100_000 and made.searched.feasible
    assert made.speculation.method in ("none", "mtp", "ngram", "eagle3", "draft")


def test_a_target_without_a_rate_is_refused() -> None:
    error = refused(spec(), tiny(), gpu(rates={}))
    assert codes(error) == ["IC206"] and "rates.bf16_tflops" in error.problems[0].message


def test_only_our_own_engine_on_one_device_is_built() -> None:
    made = plan(on_llama(), LLAMA, gpu())
    assert not made.buildable and made.engine in made.not_buildable
    with pytest.raises(InferCompileError) as caught:
        made.require_buildable()
    assert codes(caught.value) == ["IC220"]
    for ours in (plan(spec(), tiny(), cpu()), plan(natively(), LLAMA, gpu())):
        assert ours.buildable
        ours.require_buildable()
    several = Spec.model_validate(natively().model_dump() | {"target": {"device": "round-gpu", "count": 2}})
    made = plan(several, LLAMA, gpu())
    assert not made.buildable and "one device" in made.not_buildable


def test_the_budget_decides_which_formats_are_possible() -> None:
    # The evidence for 8 billion parameters: int8 0.05 %, int4-rtn 5 %, tq3 8 %.
    made = plan(natively(), LLAMA, gpu(memory_gb=80.0))
    assert (made.weights.format, made.kv.level) == ("int8", "bf16")
    assert any(miss.weights == "int4-rtn/128" and miss.limit == "quality" for miss in made.rejected)
    loose = plan(natively(quality={"max_loss_percent": 6}), LLAMA, gpu(memory_gb=80.0))
    assert (loose.weights.format, loose.kv.level) == ("int4-rtn", "bf16")
    strict = plan(natively(quality={"max_loss_percent": 0}), LLAMA, gpu(memory_gb=80.0))
    assert strict.weights.format == "bf16" and strict.predicted.quality_loss_percent.expected == 0


def test_a_pin_is_not_charged_to_a_budget_that_nobody_stated() -> None:
    pinned = plan(natively(pin={"kv": "tq3"}), LLAMA, gpu(memory_gb=80.0))
    assert (pinned.weights.format, pinned.kv.level) == ("int8", "tq3")
    # Stated, it leaves nothing for the weights to lose,
    stated = natively(pin={"kv": "tq3"}, quality={"max_loss_percent": 3})
    assert plan(stated, LLAMA, gpu(memory_gb=80.0)).weights.format == "bf16"
    # and below what the evidence allows at best the pin is refused.
    error = refused(natively(pin={"kv": "tq3"}, quality={"max_loss_percent": 1}), LLAMA, gpu(memory_gb=80.0))
    assert codes(error) == ["IC207"]


def test_the_cache_is_compressed_only_where_something_asks_for_it() -> None:
    quality = {"max_loss_percent": 20}
    roomy = plan(natively(quality=quality, objective="latency"), LLAMA, gpu(memory_gb=80.0))
    assert roomy.kv.level == "bf16"
    # One sequence of 8,192 tokens beside 199 of 1,200 take 30 GiB in bf16.
    workload = load(context_tokens=8192, input_tokens=1000, output_tokens=200, concurrency=200)
    tight = plan(spec(workload=workload, quality=quality, pin={"engine": "native"}), LLAMA, gpu())
    assert tight.kv.bytes_per_token <= 32 * 2 * 8 * 66
    # As much is lost as has to be: not what a rotation loses in as many bytes.
    assert tight.kv.level in ("ct4", "ct3")


def test_speed_limits_are_kept() -> None:
    free = plan(natively(quality={"max_loss_percent": 0}), LLAMA, gpu(memory_gb=80.0))
    itl = free.predicted.itl_ms
    limited = plan(natively(slo={"itl_ms": itl * 0.8}), LLAMA, gpu(memory_gb=80.0))
    assert limited.weights.format == "int8" and limited.predicted.itl_ms <= itl * 0.8
    for slo in ({"itl_ms": itl / 100}, {"ttft_ms": 0.1}, {"tokens_per_second": 1e6}):
        error = refused(on_llama(slo=slo), LLAMA, gpu(memory_gb=80.0))
        assert codes(error) == ["IC201"] and next(iter(slo)) in error.problems[0].because


def test_an_arrival_rate_brings_its_concurrency() -> None:
    def at(rate: float) -> Plan:
        workload = load(context_tokens=8192, input_tokens=1000, output_tokens=200, requests_per_second=rate)
        del workload["concurrency"]
        return plan(spec(workload=workload), LLAMA, gpu(memory_gb=80.0))

    slow, fast = at(0.25), at(1.5)
    assert slow.limits.max_sequences < fast.limits.max_sequences
    seen = fast.predicted
    assert seen.tokens_per_second == pytest.approx(1.5 * 200, rel=2e-3)
    # Little's law: arrivals times the time in the engine are in flight, and there is room for a few more.
    assert fast.limits.max_sequences >= 1.5 * seen.e2e_s


def test_objective_capacity_takes_what_fits() -> None:
    made = plan(natively(objective="capacity"), LLAMA, gpu(memory_gb=16.0))
    memory = made.predicted.memory_gib
    assert made.limits.max_sequences > 2
    one_more = made.kv.bytes_per_token * 1216 / 2**30
    assert memory.total <= memory.capacity < memory.total + 1.01 * one_more


def test_more_context_takes_more_and_is_not_faster() -> None:
    def at(context: int) -> Plan:
        workload = load(context_tokens=context, input_tokens=context - 200, output_tokens=100, concurrency=1)
        return plan(
            spec(workload=workload, pin={"weights": "bf16", "kv": "bf16", "engine": "vllm"}),
            LLAMA,
            gpu(memory_gb=80.0),
        )

    plans = [at(context) for context in (1024, 4096, 16384, 65536)]
    for shorter, longer in pairwise(plans):
        assert longer.predicted.itl_ms > shorter.predicted.itl_ms
        assert longer.predicted.ttft_ms > shorter.predicted.ttft_ms
        assert longer.predicted.memory_gib.kv > shorter.predicted.memory_gib.kv


def test_tensor_parallelism_splits_memory_and_pays_for_the_link() -> None:
    llama = card("llama-3.1-70b")
    asked = on_llama(target={"device": "round-gpu", "count": 4})
    pin = {"parallelism": {"tensor": 4}}
    made = plan(on_llama(target=asked.target, pin=pin), llama, gpu(memory_gb=80.0))
    assert made.parallelism.tensor == 4 and made.target.count == 4
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
            or other.ttft_ms < chosen.ttft_ms
        )
        assert other.gives_up


def test_the_quickstart_is_defensible(quickstart: Graph) -> None:
    """Its own measurements say what each format costs it: the fastest within one percent is int4."""
    made = plan(spec(objective="latency", pin={"kv": "tq3"}), quickstart, cpu())
    assert made.predicted.sources["quality_loss_percent.expected"].basis == "measurement"
    assert made.weights.format == "int4-rtn" and made.predicted.quality_loss_percent.expected <= 1
    assert made.kv.bytes_per_token * 5 < 6 * 2 * 2 * 128 * 2


@pytest.fixture
def quickstart() -> Graph:
    folder = SPECS / "models" / "quickstart"
    return build(json.loads((folder / "config.json").read_text()), "quickstart")
