"""Every model of the catalog is counted: parameters, cache, experts and states agree with its card."""

from __future__ import annotations

from functools import cache

import pytest

from infer_compile.catalog.model import ModelCard, card_names, load_card
from infer_compile.graph.build import COUNTED, NATIVE, build
from infer_compile.graph.graph import Graph
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout, uniform
from infer_compile.runtime.formats.program import Limits
from infer_compile.runtime.formats.weights import BF16

# Counted without the embedding's table, of which a token reads a row: 201,088 x 2,880 elements.
WITHOUT_TABLE = ("gpt-oss-20b", "gpt-oss-120b")

# Bytes of keys and values that one token leaves in the layers that see everything, in bf16.
CACHE_BYTES = {
    "codellama-34b": 196608,
    "deepseek-v2-lite": 31104,
    "deepseek-v3": 70272,
    "deepseek-v3.2": 70272,
    "deepseek-v4-flash": 5536,
    "deepseek-v4-pro": 7928,
    "gemma-2-27b": 188416,
    "gemma-2-2b": 53248,
    "gemma-2-9b": 172032,
    "gemma-3-12b": 65536,
    "gemma-3-1b": 4096,
    "gemma-3-27b": 81920,
    "gemma-3-4b": 20480,
    "gemma-4-26b-a4b": 20480,
    "gemma-4-31b": 81920,
    "glm-5": 89856,
    "glm-5.2": 89856,
    "gpt-oss-120b": 36864,
    "gpt-oss-20b": 24576,
    "kimi-k2": 70272,
    "kimi-k2.5": 70272,
    "llama-2-13b": 819200,
    "llama-2-70b": 327680,
    "llama-2-7b": 524288,
    "llama-3-70b": 327680,
    "llama-3-8b": 131072,
    "llama-3.1-405b": 516096,
    "llama-3.1-70b": 327680,
    "llama-3.1-8b": 131072,
    "llama-3.2-1b": 32768,
    "llama-3.2-3b": 114688,
    "llama-4-maverick-17b-128e": 49152,
    "llama-4-scout-17b-16e": 49152,
    "mimo-7b": 147456,
    "mimo-v2-flash": 23040,
    "minimax-m2.5": 253952,
    "minimax-m3": 122880,
    "ministral-8b-2410": 147456,
    "mistral-7b-v0.1": 131072,
    "mistral-large-2407": 360448,
    "mistral-nemo-12b": 163840,
    "mistral-small-24b-2501": 163840,
    "mixtral-8x22b": 229376,
    "mixtral-8x7b": 131072,
    "nemotron-3-nano-30b-a3b": 6144,
    "nemotron-3-super-120b-a12b": 8192,
    "phi-2": 327680,
    "phi-4": 204800,
    "qwen2.5-0.5b": 12288,
    "qwen2.5-1.5b": 28672,
    "qwen2.5-14b": 196608,
    "qwen2.5-32b": 262144,
    "qwen2.5-3b": 36864,
    "qwen2.5-72b": 327680,
    "qwen2.5-7b": 57344,
    "qwen3-0.6b": 114688,
    "qwen3-1.7b": 114688,
    "qwen3-14b": 163840,
    "qwen3-235b-a22b": 192512,
    "qwen3-30b-a3b": 98304,
    "qwen3-32b": 262144,
    "qwen3-4b": 147456,
    "qwen3-8b": 147456,
    "qwen3-coder-480b-a35b": 253952,
    "qwen3.5-122b-a10b": 24576,
    "qwen3.5-27b": 65536,
    "qwen3.5-35b-a3b": 20480,
    "qwen3.5-397b-a17b": 30720,
    "step-3.7-flash": 49152,
    "yi-34b": 245760,
}
# Their layers all have a window, which some engines ignore; the table counts all of them.
WINDOWED = ("mistral-7b-v0.1", "ministral-8b-2410")


@cache
def card(name: str) -> ModelCard:
    found = load_card(name)
    assert found is not None
    return found


@cache
def graph(name: str) -> Graph:
    return build(card(name).config, name)


@pytest.mark.parametrize("name", card_names())
def test_parameters_are_those_of_the_card(name: str) -> None:
    found, table = graph(name), graph(name).totals.table_elements
    active = found.active_parameters - (table if name in WITHOUT_TABLE else 0)
    assert found.parameters / 1e9 == pytest.approx(card(name).parameters_b, rel=0.01)
    assert active / 1e9 == pytest.approx(card(name).active_parameters_b, rel=0.01)
    assert found.parameters == sum(source.elements for source in found.sources)


def test_every_card_has_a_cache_size_to_compare_with() -> None:
    assert set(CACHE_BYTES) == set(card_names())


@pytest.mark.parametrize("name", CACHE_BYTES)
def test_cache_bytes_of_a_token(name: str) -> None:
    groups = graph(name).totals.attention
    full = [group for group in groups if group.window is None or name in WINDOWED]
    assert 2 * sum(group.cache_elements_per_token for group in full) == CACHE_BYTES[name]


@pytest.mark.parametrize("name", card_names())
def test_the_native_engine_runs_its_own_architectures_alone(name: str) -> None:
    found = graph(name)
    assert found.native == (found.architecture in NATIVE)
    assert found.max_context == card(name).text_config["max_position_embeddings"]
    if found.native:
        return
    assert found.architecture in COUNTED and found.native_reason
    cache = CacheLayout(
        level="bf16",
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=1,
        head_dim=64,
        layers=uniform("bf16", 1, 64),
    )
    limits = Limits(max_context=64, max_sequences=1, max_batch_tokens=64, exact_pages=8, packed_pages=0)
    with pytest.raises(InferCompileError) as caught:
        assemble(found, BF16, cache, limits)
    (problem,) = caught.value.problems
    assert problem.code == "IC280" and problem.because == found.native_reason


def test_experts_and_their_costs_are_in_the_coefficients() -> None:
    """What the planner multiplies is what the parameters are: nothing is counted twice or left out."""
    for name in card_names():
        totals = graph(name).totals
        matrices = totals.weight_elements + sum(
            group.layers * group.experts_per_token * group.expert_elements for group in totals.mixtures
        )
        small = totals.flops_per_token - 2 * matrices
        # Routers, gates and states alone are left: little beside the matrices.
        assert 0 <= small < 0.03 * totals.flops_per_token, name
