"""Times by hand, and that no prediction is faster than bandwidth and arithmetic allow."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import LAYERS, NORMS, TABLE, card, cpu, tiny

from infer_compile.catalog.coefficients import Coefficients
from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import Target, load_target
from infer_compile.graph.graph import Graph
from infer_compile.planner.performance.cache import Cache, own_cache
from infer_compile.planner.performance.forecast import Load, forecast
from infer_compile.planner.performance.latency import (
    Runner,
    matrix_tflops,
    network_gbs,
    prompt_operations,
    seen_keys,
    slots_per_second,
    speed,
    visible_keys,
)
from infer_compile.planner.performance.layout import Layout
from infer_compile.planner.performance.shape import shape, stored
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import LEVELS

FACTS = load_facts()
NO_COST = dict.fromkeys(
    (
        "step_us",
        "layer_us",
        "mixture_us",
        "sequence_us",
        "prompt_us",
        "prompt_layer_us",
        "reduce_us",
        "node_us",
    ),
    0.0,
)
PERFECT: dict[str, Any] = {
    **{
        name: {"other": 1.0}
        for name in (
            "weight_efficiency",
            "cache_efficiency",
            "matrix_efficiency",
            "expert_efficiency",
            "decode_matrix_efficiency",
        )
    },
    "attention_efficiency": 1.0,
    "decode_attention_efficiency": 1.0,
    "link_efficiency": 1.0,
    "routing": 1.0,
    **NO_COST,
}


def coefficients(**rates: Any) -> Coefficients:
    """One engine, ``round``, that reaches every peak and costs nothing, but for ``rates``."""
    known = FACTS.coefficients
    prior = next(each for each in known.calibrations if each.engine == "prior")
    generation = known.settings(prior).model_copy(update={"engine": "round"})
    fields = {**prior.model_dump(), "engine": "round", "rates": PERFECT | rates}
    one = type(prior).model_validate(fields)
    return known.model_copy(
        update={
            "calibrations": (*known.calibrations, one),
            "generations": (*known.generations, generation),
        }
    )


def runner(graph: Graph, target: Target | None = None, layout: Layout | None = None, **rates: Any) -> Runner:
    scheme, level = FACTS.formats.of_weights("bf16"), FACTS.formats.of_kv("bf16")
    fast = speed(target or cpu(), coefficients(**rates), "round", scheme, level)
    return Runner(shape(graph), stored(graph, scheme), Cache(level, 16), layout or Layout(), fast)


def engine(graph: Graph, name: str, target: str, weights: str = "fp8", **layout: Any) -> Runner:
    scheme = FACTS.formats.of_weights(weights, graph.architecture, name)
    level = FACTS.formats.of_kv("bf16")
    fast = speed(load_target(target, Path()), FACTS.coefficients, name, scheme, level)
    return Runner(shape(graph), stored(graph, scheme), Cache(level, 16), Layout(**layout), fast)


def ours(level: str, target: Target | None = None, **rates: Any) -> Runner:
    """Our own cache, in pages of 32 tokens: the first and four recent ones stay exact."""
    graph, scheme = tiny(), FACTS.formats.of_weights("bf16")
    fast = speed(
        target or cpu(), coefficients(**rates), "round", scheme, FACTS.formats.of_kv(level), own=True
    )
    cache = own_cache(shape(graph), FACTS.formats.of_kv(level), FACTS.choices.cache, windows_freed=True)
    return Runner(shape(graph), stored(graph, scheme), cache, Layout(), fast)


@pytest.mark.parametrize(("level", "coded"), [("tq3", 1), ("ct3", 1), ("k8v4", 0.5), ("fp8", 0)])
def test_attention_multiplies_codes_at_a_rate_of_their_own(level: str, coded: float) -> None:
    """Of 1,000 tokens 832 are packed: what of them are codes takes a quarter of the time."""
    plain, quick = (ours(level, coded_attention=factor).decode(1, 1000) for factor in (1.0, 4.0))
    pairs = 2 * 2 * 2 * 2 * 64 * 1000
    saved = pairs * 832 / 1000 * coded * 3 / 4
    assert float(plain.compute - quick.compute) * 1e9 == pytest.approx(saved)
    prompt, sooner = (ours(level, coded_attention=factor).prefill(2000, 512) for factor in (1.0, 4.0))
    share = 1 - float(sooner.compute) / float(prompt.compute)
    assert share > 0.01 if coded else share == 0


def test_what_attention_issues_for_each_number_is_arithmetic() -> None:
    """Of 1,000 tokens 832 are packed, 2 x 2 x 64 numbers each, at one operation for a slot."""
    slots = {"tq3": 5.0, "bf16": 2.0}
    plain, counted = ours("tq3"), ours("tq3", cache_slots=slots)
    most = max(FACTS.coefficients.issue.operations.values())
    before, after = plain.decode(3, 1000), counted.decode(3, 1000)
    issued = 3 * 2 * 2 * 64 * (832 * 5 * (3 + 16 / 64) / 3 + 168 * 2) * most
    assert float(after.compute - before.compute) * 1e9 == pytest.approx(issued)
    assert float(after.cache) == float(before.cache)
    # A chunk of a prompt multiplies whole tiles: its rate is another.
    assert float(counted.prefill(2000, 512).total) == float(plain.prefill(2000, 512).total)


def test_single_tokens_multiply_codes_as_bytes() -> None:
    """At the rate of bytes, here four times that of bf16; prompts do not, nor is fp8 codes."""
    target = cpu(rates={"bf16_tflops": 0.001, "int8_tops": 0.004})
    for level, share in (("tq3", 832 / 1000), ("fp8", 0.0)):
        plain, quick = (ours(level, target, integer_levels=names) for names in ((), ("tq3",)))
        saved = float(plain.decode(1, 1000).compute - quick.decode(1, 1000).compute)
        assert saved * 1e9 == pytest.approx(2 * 2 * 2 * 2 * 64 * 1000 * share * 3 / 4)
        assert float(plain.prefill(2000, 512).compute) == float(quick.prefill(2000, 512).compute)


@pytest.mark.parametrize(("name", "lanes"), [("h200-sxm", 30.9), ("a100-sxm-80gb", 19.5), ("l40s", 45.2)])
def test_lanes_that_a_device_issues_for(name: str, lanes: float) -> None:
    """132 x 1.83 GHz, 108 x 1.41 and 142 x 2.49, times 128, in 1e12."""
    found = slots_per_second(load_target(name, Path()), FACTS.coefficients)
    assert found / 1e12 == pytest.approx(lanes, rel=0.01)


def test_slots_are_those_of_the_page_of_kernels() -> None:
    """Within a fifth of the largest of docs/cuda-kernels.md; where decode serves a level, its rows count."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "cuda-kernels.md").read_text(encoding="utf-8")
    prior = next(each for each in FACTS.coefficients.calibrations if each.engine == "prior")
    slots = prior.rates.cache_slots
    assert slots.keys() == LEVELS.keys()
    found: dict[str, list[float]] = {}
    for kernel, suffix in (("decode", ""), ("attend", ", decode")):
        row = rf"^\| {kernel} (\w+){suffix} \| sm_\d+ \|(?:[^|]*\|){{3}} ([\d.]+) \|"
        listed = [one for one in re.findall(row, page, re.MULTILINE) if one[0] not in found]
        for level, count in listed:
            found.setdefault(level, []).append(float(count))
    assert found.keys() >= {"bf16", "fp8", "int8", "tq4", "tq3", "tq2"}
    for level, counts in found.items():
        assert slots[level] == pytest.approx(max(counts), rel=0.2), level


def test_a_step_reads_the_tables_of_a_calibrated_level() -> None:
    fitted, rotated = (ours(level).decode(1, 10).weights for level in ("ct3", "tq3"))
    # Float32, two layers: means, a transform and its inverse of keys and of values.
    assert float(fitted - rotated) * 1e9 == pytest.approx(2 * 4 * (2 * 64 + 4 * 64 * 64))


def test_a_decode_step_by_hand() -> None:
    """A byte takes a nanosecond, an operation too."""
    found = runner(tiny()).decode(sequences=3, context=10)
    streamed = 2 * (LAYERS + TABLE + NORMS) + 3 * 2 * 64
    cached = 3 * 10 * 2 * 64 * 2 * 2
    products = 3 * 2 * (LAYERS + TABLE)
    attention = 3 * 10 * 2 * 2 * 2 * 64 * 2
    assert found.weights == pytest.approx(streamed * 1e-9)
    assert found.cache == pytest.approx(cached * 1e-9)
    assert found.compute == pytest.approx((products + attention) * 1e-9)
    assert found.fixed == found.links == 0


def test_fixed_costs_by_hand() -> None:
    found = runner(tiny(), step_us=100, layer_us=10, sequence_us=3).decode(4, 10)
    assert found.fixed == pytest.approx((100 + 2 * 10 + 4 * 3) * 1e-6)
    riding = runner(tiny(), prompt_us=7, prompt_layer_us=2).decode(1, 10, prompt_tokens=50, prompt=100)
    assert riding.fixed == pytest.approx((7 + 2 * 2) * 1e-6 / 2)


def test_an_efficiency_slows_its_own_term_alone() -> None:
    full = runner(tiny()).decode(2, 50)
    half = runner(tiny(), cache_efficiency={"other": 0.5}).decode(2, 50)
    assert half.cache == pytest.approx(2 * full.cache)
    assert (half.weights, half.compute) == (full.weights, full.compute)


@pytest.mark.parametrize("budget", [16, 64, 1000])
def test_prefill_reads_the_weights_once_per_chunk(budget: int) -> None:
    one = runner(tiny())
    found = one.prefill(128, budget)
    chunks = -(-128 // budget)
    stream = 2 * (LAYERS + TABLE + NORMS)
    assert found.weights == pytest.approx((chunks * stream + 128 * 2 * 64) * 1e-9)
    assert found.compute == one.prefill(128, 16).compute


def test_seen_keys_are_the_sum_of_min_position_and_limit() -> None:
    for tokens in (1, 5, 40):
        for limit in (3, 5, 100):
            assert seen_keys(tokens, limit) == sum(min(position, limit) for position in range(1, tokens + 1))


def test_a_prompt_costs_the_attention_of_its_tokens() -> None:
    """Over a whole prompt as much as its tokens one by one, where prompts are computed in the same form."""
    for name in ("llama-3.1-8b", "gemma-3-12b", "gpt-oss-20b"):
        totals = shape(card(name)).totals
        each = sum(float(visible_keys(totals, position)) for position in range(1, 3001))
        assert prompt_operations(totals, 3000) == pytest.approx(each)


def test_devices_that_share_a_layer_divide_its_work_and_send_sums() -> None:
    linked = load_target("h100-sxm", Path())
    alone, shared = (runner(card("llama-3.1-8b"), linked, Layout(tensor=t), reduce_us=5) for t in (1, 4))
    one, four = alone.decode(8, 500), shared.decode(8, 500)
    assert four.cache == pytest.approx(float(one.cache) / 4)
    assert four.compute == pytest.approx(float(one.compute) / 4)
    message = 8 * 4096 * 2
    assert one.links == 0
    assert four.links == pytest.approx(2 * 32 * (5e-6 + 2 * 3 / 4 * message / 450e9))


def test_between_machines_the_network_counts() -> None:
    linked = load_target("h100-sxm", Path())
    within, across = (
        runner(card("llama-3.1-70b"), linked, Layout(tensor=8, per_node=n), node_us=30) for n in (8, 4)
    )
    assert network_gbs(linked) is not None
    assert float(across.decode(1, 100).links) > float(within.decode(1, 100).links) + 2 * 80 * 30e-6


def test_a_pipeline_waits_for_all_stages_and_shares_its_sequences() -> None:
    linked = load_target("h100-sxm", Path())
    graph = card("llama-3.1-70b")
    plain, staged = (runner(graph, linked, Layout(pipeline=p)) for p in (1, 4))
    alone, split = plain.decode(1, 100), staged.decode(1, 100)
    assert split.weights == pytest.approx(float(alone.weights))
    assert staged.decode(8, 100).cache == pytest.approx(float(plain.decode(2, 100).cache))
    whole, chunked = plain.prefill(4096, 1024), staged.prefill(4096, 1024)
    assert float(whole.total) / 4 < float(chunked.total) < float(whole.total)


def test_experts_are_read_as_they_are_hit() -> None:
    graph, linked = card("mixtral-8x7b"), load_target("h100-sxm", Path())
    one = runner(graph, linked)
    totals, kept = one.shape.totals, one.stored
    group = totals.mixtures[0]
    read = float(one.decode(1, 1).weights) * 3350e9 - 2 * 4096
    assert read == pytest.approx(kept.shared_bytes + group.layers * 2 * kept.expert_bytes[0])
    all_of_them = kept.shared_bytes + group.layers * 8 * kept.expert_bytes[0]
    assert float(one.decode(500, 1).weights) * 3350e9 == pytest.approx(all_of_them + 500 * 2 * 4096)
    slower = runner(graph, linked, routing=0.5)
    assert float(slower.decode(16, 1).weights) < float(one.decode(16, 1).weights)


def test_copies_of_the_attention_share_dealt_experts() -> None:
    graph, linked = card("deepseek-v3"), load_target("h200-sxm", Path())
    whole = runner(graph, linked, Layout(tensor=8))
    dealt = runner(graph, linked, Layout(data=8, expert=8), reduce_us=5)
    assert float(dealt.decode(16, 100).weights) < 8 * float(whole.decode(128, 100).weights)
    assert float(dealt.decode(16, 100).links) > 2 * 58 * 5e-6
    alone = runner(graph, linked, Layout(data=8))
    assert alone.decode(16, 100).links == 0


def test_a_verify_step_reads_the_cache_once() -> None:
    one = runner(card("llama-3.1-8b"), load_target("h100-sxm", Path()))
    plain, verify = one.decode(4, 1000), one.decode(4, 1000, tokens=4)
    assert verify.cache == plain.cache
    assert verify.compute == pytest.approx(4 * float(plain.compute))


def test_a_device_without_a_rate_or_a_link_is_refused() -> None:
    scheme, level = FACTS.formats.of_weights("bf16"), FACTS.formats.of_kv("bf16")
    with pytest.raises(InferCompileError, match="IC206"):
        speed(cpu(rates={}), FACTS.coefficients, "native", scheme, level)
    with pytest.raises(InferCompileError, match="IC206"):
        runner(tiny(), layout=Layout(tensor=2))


def test_products_run_at_the_rate_of_their_inputs_where_there_is_one() -> None:
    fp8 = FACTS.formats.of_weights("fp8")
    assert matrix_tflops(load_target("h100-sxm", Path()), fp8) == 1978
    assert matrix_tflops(load_target("a100-sxm-80gb", Path()), fp8) == 312


ENGINES = ("vllm", "tensorrt-llm", "sglang", "llama.cpp", "native", "gpt-fast", "nobody")
MODELS = {name: card(name) for name in ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-20b")}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    maker=st.sampled_from(ENGINES),
    target=st.sampled_from(("h100-sxm", "b200-sxm", "rtx-4090", "mi300x", "a100-sxm-40gb")),
    weights=st.sampled_from(("bf16", "fp8", "nvfp4", "q4_k_m")),
    tensor=st.sampled_from((1, 2, 8)),
    sequences=st.integers(1, 512),
    context=st.integers(1, 100_000),
    prompt=st.sampled_from((0, 1000)),
)
def test_nothing_is_faster_than_bandwidth_and_arithmetic(
    name: str, maker: str, target: str, weights: str, tensor: int, sequences: int, context: int, prompt: int
) -> None:
    one = engine(MODELS[name], maker, target, weights, tensor=tensor)
    asked = {"prompt_tokens": float(prompt), "prompt": 2000}
    bound = float(one.bound(sequences, context, 1, **asked))
    assert 0 < bound <= float(one.decode(sequences, context, 1, **asked).total) * (1 + 1e-12)


def test_arrays_are_many_numbers() -> None:
    tensor, batch, inputs, outputs = (
        np.array(v) for v in ((1, 2, 8), (1, 30, 200), (100, 5000, 0), (9, 0, 50))
    )
    graph = MODELS["mixtral-8x7b"]
    for load in ({"static": True}, {}, {"rate": np.array([0.1, 1.0, 3.0])}):
        many = engine(graph, "vllm", "h100-sxm", tensor=tensor)
        found = forecast(many, Load(batch.astype(float), inputs, outputs, **load), 2048)
        for i in range(3):
            each = {key: value[i] if key == "rate" else value for key, value in load.items()}
            one = engine(graph, "vllm", "h100-sxm", tensor=int(tensor[i]))
            alone = forecast(one, Load(float(batch[i]), int(inputs[i]), int(outputs[i]), **each), 2048)
            for name in ("ttft", "itl", "e2e", "requests_per_second"):
                both = np.asarray(getattr(found, name))[i], float(getattr(alone, name))
                assert both[0] == pytest.approx(both[1], rel=1e-6, nan_ok=True), (name, i, load)


def test_more_in_flight_take_longer_and_yield_more() -> None:
    one = engine(MODELS["llama-3.1-8b"], "vllm", "h100-sxm")
    found = forecast(one, Load(np.array([1.0, 4, 16, 64, 256]), 1000, 500), 8192)
    for name in ("ttft", "itl", "tokens_per_second"):
        assert np.all(np.diff(np.asarray(getattr(found, name))) > 0), name


def test_littles_law_and_what_arrives_is_served() -> None:
    one = engine(MODELS["llama-3.1-8b"], "vllm", "h100-sxm")
    rate = np.array([0.5, 5.0, 20.0])
    found = forecast(one, Load(np.full(3, 1000.0), 1000, 200, rate), 8192)
    assert np.asarray(found.requests_per_second) == pytest.approx(rate, rel=1e-3)
    assert np.asarray(found.concurrency) == pytest.approx(rate * np.asarray(found.e2e), rel=1e-3)


def test_what_the_memory_does_not_hold_waits() -> None:
    one = engine(MODELS["llama-3.1-8b"], "vllm", "h100-sxm")
    free, tight = (forecast(one, Load(64.0, 1000, 500), 8192, admitted=most) for most in (None, 16.0))
    assert float(tight.itl) < float(free.itl)
    assert float(tight.ttft) > 10 * float(free.ttft)
    assert float(tight.tokens_per_second) < float(free.tokens_per_second)
    whole, rounds = (
        forecast(one, Load(64.0, 1000, 500, static=True), 8192, admitted=most) for most in (None, 16.0)
    )
    assert float(rounds.e2e) > float(whole.e2e)


def test_drafts_shorten_the_time_between_tokens() -> None:
    one = engine(MODELS["llama-3.1-8b"], "vllm", "h100-sxm")
    plain = forecast(one, Load(1.0, 1000, 500), 8192)
    drafted = forecast(one, Load(1.0, 1000, 500), 8192, verify=(3.0, 2.5, 0.0005))
    step = float(one.decode(1, 1250, tokens=4).total) + 0.0005
    assert float(drafted.itl) == pytest.approx(step / 2.5)
    assert float(drafted.itl) < float(plain.itl)


def test_intervals_widen_with_distance() -> None:
    graph = MODELS["llama-3.1-8b"]
    reached = {}
    for name, target in (
        ("vllm", "h200-sxm"),
        ("vllm", "h20-96gb"),
        ("vllm", "v100-pcie-16gb"),
        ("nobody", "l4"),
    ):
        one = engine(graph, name, target)
        seen = forecast(one, Load(4.0, 1000, 100), 8192)
        reached[one.speed.reach] = float(seen.itl_high / seen.itl_low)
        assert float(seen.itl_low) < float(seen.itl) < float(seen.itl_high)
    assert list(reached) == ["device", "class", "family", "prior"]
    assert reached["device"] <= reached["class"] <= reached["family"]


def test_a_build_finds_its_generation() -> None:
    known, target = FACTS.coefficients, load_target("h100-sxm", Path())
    old, _ = known.find("vllm", target, "bf16", "vLLM (2024)")
    new, _ = known.find("vllm", target, "bf16", "vllm 0.21.3")
    assert (old.generation, new.generation) == ("2024", "v1")
    apple = load_target("m3-max-40-core", Path())
    assert known.find("llama.cpp", apple, "q4_0")[0].generation == "metal"
    assert known.find("llama.cpp", apple, "q4_k_m", "llama.cpp (May 2024)")[0].generation == "2024"
    ampere = load_target("rtx-3090", Path())
    assert known.find("llama.cpp", ampere, "q4_k_m", "")[0].generation == "2024"
    assert known.find("llama.cpp", ampere, "q4_k_m")[0].generation == "cuda"


def test_the_bottleneck_is_the_largest_term() -> None:
    one = engine(MODELS["llama-3.1-8b"], "llama.cpp", "rtx-4090", "q4_k_m")
    assert forecast(one, Load(1.0, 0, 100), 512).bottleneck == "weight bandwidth"
    slow = dataclasses.replace(one, speed=dataclasses.replace(one.speed, step=1.0))
    assert forecast(slow, Load(1.0, 0, 100), 512).bottleneck == "fixed cost"


def test_only_a_named_build_keeps_a_request_waiting_for_a_free_slot() -> None:
    scheme, level = FACTS.formats.of_weights("bf16"), FACTS.formats.of_kv("bf16")
    target = load_target("h100-sxm", Path())
    measured, planned = (
        speed(target, FACTS.coefficients, "tensorrt-llm", scheme, level, build)
        for build in ("trtllm 1.0.0rc3", None)
    )
    assert measured.calibration.waiting.queued > 0.5
    assert planned.calibration.waiting.queued == 0


def test_an_engine_without_rows_has_a_stand_in() -> None:
    apple, known = load_target("m3-max-40-core", Path()), FACTS.coefficients
    found, reach = known.find("mlx", apple, "int4-rtn")
    assert (found.engine, reach) == ("llama.cpp", "engine")
