"""Bytes by hand: weights, cache, pools, activations, overhead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import LAYERS, NORMS, TABLE, card, coefficients, cpu, tiny

from infer_compile.planner.memory import (
    activation_bytes,
    cache_bytes,
    memory,
    overhead_bytes,
    per_device,
    pool_limits,
    read_bytes,
    visible,
)
from infer_compile.planner.shape import shape
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.formats.program import Limits
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format
from infer_compile.runtime.pages import Pages

INT8, INT4 = weight_format("int8", 64), weight_format("int4-rtn", 64)


def layout(level: str = "tq3", page: int = 32, sinks: int = 1, recent: int = 4) -> CacheLayout:
    return CacheLayout.model_validate(
        {
            "level": level,
            "page_tokens": page,
            "sink_pages": sinks,
            "recent_pages": recent,
            "kv_heads": 1,
            "head_dim": 64,
            "layers": 2,
        }
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
    stored = shape(tiny()).stored[form]
    assert stored.weight_bytes == by_hand
    # A step reads everything but the embedding, of which it reads a row per token.
    assert stored.streamed_bytes == by_hand - 2 * TABLE


def test_a_tied_head_is_read_though_it_is_stored_once() -> None:
    tied = shape(tiny(tie_word_embeddings=True)).stored[BF16]
    assert tied.weight_bytes == 2 * (LAYERS + TABLE + NORMS)
    assert tied.streamed_bytes == tied.weight_bytes


def test_llama_3_1_8b() -> None:
    graph = card("llama-3.1-8b")
    assert graph.parameters == 8_030_261_248
    assert shape(graph).stored[BF16].weight_bytes == 2 * 8_030_261_248
    cache = CacheLayout(
        level="bf16", page_tokens=32, sink_pages=0, recent_pages=0, kv_heads=8, head_dim=128, layers=32
    )
    assert cache.token_bytes == 128 << 10
    for context, expected in ((4096, 512 << 20), (32768, 4 << 30), (131072, 16 << 30)):
        assert cache_bytes(cache, pool_limits(cache, context, 1, 512)) == expected


def test_formats_that_do_not_divide_the_model_are_not_stored() -> None:
    formats = shape(tiny(hidden_size=96, intermediate_size=96)).stored
    assert {form.group for form in formats} == {0, 32}


def test_visible_tokens_by_hand() -> None:
    # 1,000 tokens end in page 31; pages 27 to 31 and page 0 are exact.
    assert visible(layout(), 1000) == (32 + 1000 - 27 * 32, 1000 - 32 - (1000 - 27 * 32))
    assert visible(layout("bf16"), 1000) == (1000, 0)
    assert visible(layout("bf16"), 1000, window=256) == (256, 0)


@given(
    context=st.integers(1, 600),
    page=st.sampled_from([8, 32]),
    sinks=st.integers(0, 3),
    recent=st.integers(1, 4),
    window=st.none() | st.integers(1, 300),
)
def test_visible_tokens_are_those_of_the_rule(
    context: int, page: int, sinks: int, recent: int, window: int | None
) -> None:
    pages = layout(page=page, sinks=sinks, recent=recent)
    seen = range(max(0, context - window) if window else 0, context)
    exact = sum(pages.exact((context - 1) // page, key // page) for key in seen)
    assert visible(pages, context, window) == (exact, len(seen) - exact)


def test_bytes_read_by_hand() -> None:
    exact, packed = visible(layout(), 1000)
    # Per token and layer: a key and a value of 64 elements, bf16 or 24 bytes of codes and 2 of scale.
    assert read_bytes(layout(), 1000) == (exact * 2 * 256, packed * 2 * 52)
    assert read_bytes(layout(), 1000, layers=1) == (exact * 256, packed * 52)


@given(
    context=st.integers(1, 700),
    sequences=st.integers(1, 9),
    batch=st.sampled_from([64, 256]),
    level=st.sampled_from(["bf16", "tq3"]),
)
def test_the_pools_hold_what_the_runtime_reserves(
    context: int, sequences: int, batch: int, level: str
) -> None:
    pages = layout(level) if level == "tq3" else layout(level, sinks=0, recent=0)
    limits = pool_limits(pages, context, sequences, batch)
    pools = Pages(pages, limits)
    tables = [pools.open(context) for _ in range(sequences)]
    assert all(table is not None for table in tables)
    # And the last to come may use the whole step for its prompt.
    last = tables[-1]
    assert last is not None
    assert pools.room(last, 0, min(batch, context)) == min(batch, context)


def test_activations_and_overhead_by_hand() -> None:
    limits = Limits(max_context=64, max_sequences=2, max_batch_tokens=64, exact_pages=1, packed_pages=0)
    # x and normed, qkv, attended, gate and up, gated; of int8 also the rounded inputs, the widest 128.
    per_token = 64 + 64 + 256 + 128 + 256 + 128
    # selected, normed, logits: rows for a chain of eight tokens of each sequence.
    per_output = 64 + 64 + 100
    stored = shape(tiny()).stored
    assert activation_bytes(stored[BF16], limits) == 4 * (per_token * 64 + per_output * 16)
    assert stored[INT8].token_values == per_token + 128
    assert overhead_bytes(1000, coefficients(overhead_gib=1, weight_overhead_fraction=0.5)) == (1 << 30) + 500


def test_devices_share_weights_and_key_heads() -> None:
    stored = shape(tiny()).stored[BF16]
    limits = Limits(max_context=64, max_sequences=1, max_batch_tokens=64, exact_pages=2, packed_pages=0)
    pages = CacheLayout(
        level="bf16", page_tokens=32, sink_pages=0, recent_pages=0, kv_heads=8, head_dim=64, layers=2
    )
    one = memory(stored, pages, limits, cpu(), coefficients())
    four = memory(stored, pages, limits, cpu(), coefficients(), tensor=4)
    assert four.weights == -(-one.weights // 4)
    assert four.kv * 4 == one.kv
    assert four.activations == one.activations
    # More devices than key heads: each holds a copy of one.
    assert per_device(pages, 16).kv_heads == 1
    assert one.capacity == 4_000_000_000
    assert one.free == one.capacity - one.total == one.capacity - one.weights - one.kv - one.activations
