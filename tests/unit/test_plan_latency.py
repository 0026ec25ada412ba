"""Times by hand, and that no prediction is faster than bandwidth and arithmetic allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import LAYERS, NORMS, TABLE, card, coefficients, cpu, gpu, tiny

from infer_compile.catalog.coefficients import load_facts
from infer_compile.catalog.target import Target, load_target, target_names
from infer_compile.graph.graph import Graph
from infer_compile.planner.forecast import Load, forecast, queue_factor
from infer_compile.planner.latency import Runner, link_gbs, machine, matrix_tflops, seen_keys
from infer_compile.planner.shape import shape
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format

INT8, INT4 = weight_format("int8", 64), weight_format("int4-rtn", 64)
FACTS = load_facts()
QUEUEING = FACTS.coefficients.queueing
LLAMA, MISTRAL = card("llama-3.1-8b"), card("mistral-7b-v0.1")
SHAPES = {id(graph): shape(graph) for graph in (LLAMA, MISTRAL)}


def layout(graph: Graph, level: str = "bf16") -> CacheLayout:
    compressed = level != "bf16"
    return CacheLayout.model_validate(
        {
            "level": level,
            "page_tokens": 32,
            "sink_pages": 1 if compressed else 0,
            "recent_pages": 4 if compressed else 0,
            "kv_heads": graph.kv_heads,
            "head_dim": graph.head_dim,
            "layers": graph.cache_layers,
        }
    )


def runner(
    graph: Graph,
    weights: WeightFormat = BF16,
    level: str = "bf16",
    target: Target | None = None,
    tensor: int = 1,
    **figures: float,
) -> Runner:
    summed = SHAPES.get(id(graph)) or shape(graph)
    speed = machine(
        target or cpu(),
        weights,
        "tq3" if level == "tq3" else "bf16",
        coefficients(**figures),
        tensor,
    )
    return Runner(summed, summed.stored[weights], layout(graph, level), speed)


def test_a_decode_step_by_hand() -> None:
    """A byte and an operation take a nanosecond each: 1 GB/s, 1 GFLOPS."""
    step = runner(tiny(), step_us=3, layer_us=2, sequence_us=1).decode(sequences=5, context=100)
    row = 2 * 64
    assert step.weights == pytest.approx(1e-9 * (2 * (LAYERS + TABLE + NORMS) + 5 * row))
    # Keys and values of 64 elements in bf16, two layers, 100 tokens, five sequences.
    assert step.cache == pytest.approx(1e-9 * 5 * 100 * 2 * 2 * 64 * 2)
    # Two operations per weight; two products of 64 elements with 100 keys for 2 heads in 2 layers.
    products, attention = 2 * (LAYERS + TABLE), 100 * 2 * 2 * 2 * 64 * 2
    assert step.compute == pytest.approx(1e-9 * 5 * (products + attention))
    assert step.fixed == pytest.approx(1e-6 * (3 + 2 * 2 + 5 * 1))
    assert step.links == 0
    assert step.total == pytest.approx(step.weights + step.cache + step.compute + step.fixed)


def test_a_compressed_cache_by_hand() -> None:
    exact = 32 + 1000 - 27 * 32
    step = runner(tiny(), level="tq3").decode(1, 1000)
    assert step.cache == pytest.approx(1e-9 * 2 * (exact * 256 + (1000 - exact) * 52))


def test_a_prompt_by_hand() -> None:
    whole = runner(tiny(), step_us=3).prefill(tokens=100, chunk=64)
    streamed = 2 * (LAYERS + TABLE + NORMS)
    assert whole.weights == pytest.approx(1e-9 * (2 * streamed + 100 * 128))
    assert whole.fixed == pytest.approx(2 * 3e-6)
    # Only the last token has logits; a token sees those before it and itself.
    assert whole.compute == pytest.approx(
        1e-9 * (100 * 2 * LAYERS + 2 * TABLE + 100 * 101 // 2 * 2 * 2 * 2 * 64 * 2)
    )
    # The first chunk reads the cache of 64 tokens, the second of 100.
    assert whole.cache == pytest.approx(1e-9 * 164 * 512)


def test_several_devices_by_hand() -> None:
    plain = runner(tiny(), target=gpu(), tensor=1).decode(4, 100)
    shared = runner(tiny(), target=gpu(), tensor=2, reduce_us=7).decode(4, 100)
    # Two key heads' worth of cache would divide; one is copied to both devices.
    assert shared.cache == plain.cache
    assert shared.compute == pytest.approx(plain.compute / 2)
    # Two sums per layer of 4 rows of 64 bf16 numbers, half of them twice over a wire of 100 GB/s.
    message = 4 * 64 * 2
    assert shared.links == pytest.approx(2 * 2 * (7e-6 + 2 * (1 / 2) * message / 100e9))


def test_efficiencies_and_peaks() -> None:
    fast = runner(tiny()).decode(1, 10)
    slow = runner(tiny(), weight_efficiency=0.5, matrix_efficiency=0.25, attention_efficiency=0.25).decode(
        1, 10
    )
    assert slow.weights == pytest.approx(2 * fast.weights)
    assert slow.compute == pytest.approx(4 * fast.compute)
    # A bandwidth that is a peak and no measurement is not reached.
    peak = runner(tiny(), target=cpu(measured=False), unmeasured_bandwidth=0.8).decode(1, 10)
    assert peak.weights == pytest.approx(fast.weights / 0.8)
    assert peak.cache == pytest.approx(fast.cache / 0.8)


def test_rates_of_a_target() -> None:
    both = cpu(rates={"bf16_tflops": 1.0, "int8_tops": 4.0})
    assert (matrix_tflops(both, BF16), matrix_tflops(both, INT8), matrix_tflops(both, INT4)) == (1, 4, 4)
    assert matrix_tflops(cpu(), INT8) == 0.001
    assert link_gbs(gpu()) == 100
    assert link_gbs(gpu(interconnect=None, host_link={"name": "a bus", "gbs_per_direction": 32.0})) == 32
    assert link_gbs(cpu()) is None
    with pytest.raises(ValueError, match="link"):
        machine(cpu(), BF16, "bf16", coefficients(), tensor=2)


@given(start=st.integers(0, 50), tokens=st.integers(1, 50), window=st.none() | st.integers(1, 60))
def test_pairs_of_tokens_and_keys(start: int, tokens: int, window: int | None) -> None:
    seen = (position + 1 for position in range(start, start + tokens))
    assert seen_keys(start, tokens, window) == sum(min(keys, window or keys) for keys in seen)


def test_a_window_bounds_what_is_read() -> None:
    inside, outside, far = (runner(MISTRAL).decode(1, n).cache for n in (4000, 5000, 30000))
    assert inside < outside == far


def test_queueing_is_the_table_and_between() -> None:
    assert [queue_factor(n, QUEUEING) for n in QUEUEING.concurrency] == list(QUEUEING.factor)
    factors = [queue_factor(n, QUEUEING) for n in range(1, 300)]
    assert factors == sorted(factors)
    assert queue_factor(256, QUEUEING) == 2 * QUEUEING.factor[-1]


def test_a_single_user_waits_for_nobody() -> None:
    seen = forecast(runner(tiny()), Load(1, 100, 50), 64, QUEUEING)
    assert seen.ttft == pytest.approx(runner(tiny()).prefill(100, 64).total)
    assert seen.itl == pytest.approx(runner(tiny()).decode(1, 125).total)
    assert seen.tokens_per_second == pytest.approx(50 / (seen.ttft + 49 * seen.itl))


def test_prompts_of_others_ride_along() -> None:
    seen = forecast(runner(tiny()), Load(5, 100, 50), 512, QUEUEING)
    # Four others compute 100 tokens each while one writes its 50.
    assert seen.prefill == runner(tiny()).interleaved(8, 100)
    assert seen.itl == pytest.approx(seen.step.total + seen.prefill.total)
    # With room for one token a step, the rest of them makes prompts wait.
    narrow = forecast(runner(tiny()), Load(5, 100, 50), 6, QUEUEING)
    assert narrow.ttft > seen.ttft
    assert narrow.prefill == runner(tiny()).interleaved(1, 100)


def test_an_arrival_rate_bounds_what_is_generated() -> None:
    free = forecast(runner(tiny()), Load(4, 100, 50), 64, QUEUEING)
    held = forecast(runner(tiny()), Load(4, 100, 50, rate=free.requests_per_second / 2), 64, QUEUEING)
    assert held.tokens_per_second == pytest.approx(free.tokens_per_second / 2)


TARGETS = [target for name in target_names() if (target := load_target(name, Path())).rates.bf16_tflops]


@settings(max_examples=300, deadline=None)
@given(
    target=st.sampled_from(TARGETS),
    graph=st.sampled_from([LLAMA, MISTRAL]),
    weights=st.sampled_from([BF16, INT8, INT4]),
    level=st.sampled_from(["bf16", "tq3"]),
    sequences=st.integers(1, 200),
    context=st.integers(1, 30_000),
    tensor=st.sampled_from([1, 2, 8]),
)
def test_no_prediction_lies_below_the_physical_bound(
    target: Target,
    graph: Graph,
    weights: WeightFormat,
    level: str,
    sequences: int,
    context: int,
    tensor: int,
) -> None:
    """Weights and cache once over the peak bandwidth, operations over the dense peak; all devices."""
    if tensor > 1 and link_gbs(target) is None:
        return
    engine = FACTS.coefficients.of("native", target.kind)
    stored = SHAPES[id(graph)].stored[weights]
    pages = layout(graph, level)
    speed = machine(target, weights, "tq3" if level == "tq3" else "bf16", engine, tensor)
    step = Runner(SHAPES[id(graph)], stored, pages, speed).decode(sequences, context)
    peak = target.bandwidth_gbs * 1e9 * tensor
    read = min(context, 4096) if graph is MISTRAL else context
    cache = sequences * read * pages.token_bytes
    assert step.total >= (stored.streamed_bytes + cache) / peak
    rate = max(filter(None, (matrix_tflops(target, weights), target.rates.bf16_tflops))) * 1e12 * tensor
    totals = SHAPES[id(graph)].totals
    assert step.total >= sequences * (totals.flops_per_token + totals.flops_per_output) / rate


@settings(max_examples=60, deadline=None)
@given(
    level=st.sampled_from(["bf16", "tq3"]),
    weights=st.sampled_from([BF16, INT8, INT4]),
    sequences=st.integers(1, 64),
    context=st.integers(2, 20_000),
)
def test_more_work_is_never_faster(level: str, weights: WeightFormat, sequences: int, context: int) -> None:
    run = runner(LLAMA, weights, level)
    once = run.decode(sequences, context).total
    assert run.decode(sequences + 1, context).total >= once
    assert run.decode(sequences, context + 2000).total >= once
    assert run.prefill(context + 1, 512).total >= run.prefill(context, 512).total
