"""Bytes by hand: weights, pools, activations, overhead, and how devices share them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import LAYERS, NORMS, TABLE, card, cpu, engine_kind, tiny

from infer_compile.catalog.engines import Activations
from infer_compile.catalog.facts import load_facts
from infer_compile.planner.performance.cache import Cache
from infer_compile.planner.performance.layout import Layout
from infer_compile.planner.performance.memory import (
    Held,
    activation_bytes,
    buffer_bytes,
    held_weights,
    memory,
    pool_bytes,
    pool_limits,
)
from infer_compile.planner.performance.shape import native_stored, shape, stored
from infer_compile.runtime.formats.kv import LEVELS, CacheLayout, uniform
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format
from infer_compile.runtime.pages import Pages

FORMATS = load_facts().formats
INT8, INT4 = weight_format("int8", 64), weight_format("int4-rtn", 64)
EXACT = Cache(FORMATS.of_kv("bf16"), 32, own=True)
PACKED = Cache(FORMATS.of_kv("tq3"), 32, 1, 4, kept_tails=2, own=True)


def pages(cache: Cache) -> CacheLayout:
    level = LEVELS[cache.scheme.name]
    return CacheLayout(
        level=level,
        page_tokens=cache.page_tokens,
        sink_pages=cache.sink_pages,
        recent_pages=cache.recent_pages,
        kv_heads=1,
        head_dim=64,
        layers=uniform(level, 2, 64),
    )


@pytest.mark.parametrize(
    ("form", "by_hand"),
    [
        (BF16, 2 * (LAYERS + 2 * TABLE + NORMS)),
        # One bf16 scale for 64 weights; the head is int8 with them, the embedding stays bf16.
        (INT8, LAYERS * 66 // 64 + TABLE * 66 // 64 + 2 * TABLE + 2 * NORMS),
        (INT4, LAYERS * 34 // 64 + TABLE * 66 // 64 + 2 * TABLE + 2 * NORMS),
    ],
)
def test_weights(form: WeightFormat, by_hand: int) -> None:
    kept = native_stored(tiny(), form)
    assert kept.weight_bytes == by_hand
    # A step reads everything but the embedding, of which it reads a row per token.
    assert kept.shared_bytes == by_hand - 2 * TABLE


def test_a_tied_head_is_read_though_it_is_stored_once() -> None:
    tied = native_stored(tiny(tie_word_embeddings=True), BF16)
    assert tied.weight_bytes == 2 * (LAYERS + TABLE + NORMS)
    assert tied.shared_bytes == tied.weight_bytes


def test_llama_3_1_8b() -> None:
    graph = card("llama-3.1-8b")
    assert graph.parameters == 8_030_261_248
    assert native_stored(graph, BF16).weight_bytes == 2 * 8_030_261_248


def test_devices_hold_their_part_of_layers_and_experts() -> None:
    graph = card("mixtral-8x7b")
    kept, model = stored(graph, FORMATS.of_weights("bf16")), shape(graph)
    whole = kept.weight_bytes
    assert held_weights(kept, model, Layout()) == whole
    assert held_weights(kept, model, Layout(tensor=8)) == pytest.approx(whole / 8)
    # Two copies of the attention: the experts are dealt over all eight devices, or held by each copy.
    experts = 32 * 8 * kept.expert_bytes[0]
    dealt = held_weights(kept, model, Layout(tensor=4, data=2, expert=8))
    assert dealt == pytest.approx(experts / 8 + (whole - experts) / 4)
    assert held_weights(kept, model, Layout(tensor=4, data=2)) == pytest.approx(whole / 4)
    # Stages share the layers; the fullest also holds the embedding or the head.
    outer = kept.table_bytes + kept.head_bytes
    staged = held_weights(kept, model, Layout(pipeline=4))
    assert staged == pytest.approx((whole - outer) / 4 + kept.head_bytes)
    columns = Layout(np.array([1, 8]), np.array([4, 1]), np.array([1, 1]), np.array([1, 1]))
    assert list(held_weights(kept, model, columns)) == [staged, held_weights(kept, model, Layout(tensor=8))]


@given(
    context=st.integers(1, 700),
    share=st.floats(0.1, 1),
    sequences=st.integers(1, 9),
    budget=st.sampled_from([64, 256]),
    cache=st.sampled_from([EXACT, PACKED]),
)
def test_the_pools_hold_what_the_runtime_takes(
    context: int, share: float, sequences: int, budget: int, cache: Cache
) -> None:
    """One sequence of the full context beside others of the typical length."""
    layout, typical = pages(cache), max(1, int(share * context))
    held = Held(context, typical, sequences, budget)
    limits = pool_limits(shape(tiny()), cache, held)
    pools = Pages(layout, limits)
    others = [pools.open() for _ in range(sequences - 1)]
    longest = pools.open()
    assert pools.fits([(longest, context), *((other, typical) for other in others)])
    for other in others:
        for done in range(0, typical, layout.page_tokens):
            count = min(layout.page_tokens, typical - done)
            pools.prepare(other, done, count, count)
            pools.commit(other, done + count)
    # What nobody of them ever holds keeps the ends of others.
    in_use = longest.exact.held + sum(other.exact.held for other in others)
    assert limits.exact_pages - in_use >= cache.spare_pages == (8 if cache is PACKED else 0)
    # And the longest may use the whole step for its prompt.
    assert pools.room(longest, 0, min(budget, context)) == min(budget, context)
    taken = limits.exact_pages * layout.exact_page_bytes + limits.packed_pages * layout.packed_page_bytes
    assert pool_bytes(shape(tiny()), cache, held, 1) == taken


def test_buffers_by_hand() -> None:
    # x and normed, qkv, attended, gate and up, gated; of int8 also the rounded inputs, the widest 128.
    per_token = 64 + 64 + 256 + 128 + 256 + 128
    # selected, normed, logits: rows for a chain of eight tokens of each sequence.
    per_output = 64 + 64 + 100
    model, kept = shape(tiny()), native_stored(tiny(), BF16)
    held = Held(64, 64, 2, 64)
    assert buffer_bytes(model, kept, held) == 4 * (per_token * 64 + per_output * 16)
    assert native_stored(tiny(), INT8).token_values == per_token + 128


def test_activations_by_the_rule_of_an_engine() -> None:
    rule = Activations(factor={1: 10, 4: 5}, mixture_factor={1: 20}, least_mib=1, source="a test")
    dense, mixed = shape(card("llama-3.1-8b")), shape(card("mixtral-8x7b"))
    assert activation_bytes(dense, rule, 1024, 1) == 2 * 1024 * 4096 * 10
    assert list(activation_bytes(dense, rule, 1024, np.array([2, 4, 8]))) == [
        2 * 1024 * 4096 * factor for factor in (10, 5, 5)
    ]
    assert activation_bytes(mixed, rule, 1024, 4) == 2 * 1024 * 4096 * 20
    assert activation_bytes(dense, rule, 1, 1) == 1 << 20


def test_capacity_by_what_the_fraction_is_for() -> None:
    graph = tiny()
    model, kept, held = shape(graph), native_stored(graph, BF16), Held(64, 64, 1, 64)

    def capacity(share: str) -> float:
        kind = engine_kind(share=share, memory_fraction=0.5, overhead_gib=1.0)
        found = memory(model, kept, EXACT, Layout(), held, cpu(), kind)
        assert float(found.free) == float(found.capacity) - float(found.total)
        return float(found.capacity)

    beside = float(buffer_bytes(model, kept, held)) + (1 << 30)
    assert capacity("all") == 2e9
    assert capacity("static") == 2e9 + beside
    rest = kept.weight_bytes + beside
    assert capacity("cache") == int(rest + (4e9 - rest) / 2)
