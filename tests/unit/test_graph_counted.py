"""Costs of what is counted and not run, reckoned by hand, and mistakes in its configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from shrunk import LAYERS, card_of, first_cards, shrunk

from infer_compile.graph.build import build
from infer_compile.graph.cost import Attention, Mixture, expected_experts
from infer_compile.graph.graph import Graph
from infer_compile.graph.storage import (
    expert_bytes,
    misfits,
    native_scheme,
    shared_bytes,
    token_buffers,
    weight_bytes,
)
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.weights import BF16, weight_format


def graph(name: str) -> Graph:
    return build(card_of(name).config, name)


class TestExperts:
    def test_mixtral(self) -> None:
        found = graph("mixtral-8x7b")
        expert = 3 * 4096 * 14336
        assert found.totals.mixtures == (Mixture(32, 8, 2, expert, 0, 2 * 14336 + 4096),)
        attention = 4096 * (4096 + 1024 + 1024) + 4096 * 4096
        rest = 2 * 32000 * 4096 + 32 * (attention + 8 * 4096 + 2 * 4096) + 4096
        assert found.parameters == rest + 32 * 8 * expert
        assert found.active_parameters == rest + 32 * 2 * expert == 12_879_925_248
        assert found.totals.flops_per_token == 2 * 32 * (attention + 8 * 4096 + 2 * expert)

    def test_leading_layers_are_dense_and_an_expert_is_shared(self) -> None:
        totals = graph("deepseek-v3").totals
        expert = 3 * 7168 * 2048
        assert totals.mixtures == (Mixture(58, 256, 8, expert, 0, 2 * 2048 + 7168),)
        latent = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
        assert totals.weight_elements == 61 * latent + 3 * (3 * 7168 * 18432) + 58 * expert

    def test_experts_have_biases(self) -> None:
        (mixture,) = graph("gpt-oss-20b").totals.mixtures
        assert mixture == Mixture(24, 32, 4, 3 * 2880 * 2880, 3 * 2880, 3 * 2880)

    def test_two_kinds_of_layers_take_turns(self) -> None:
        found = graph("llama-4-maverick-17b-128e")
        assert [op.layer for op in found.experts] == list(range(1, 48, 2))
        assert found.totals.mixtures == (Mixture(24, 128, 1, 3 * 5120 * 8192, 0, 2 * 8192 + 5120),)

    def test_experts_behind_a_projection(self) -> None:
        (mixture,) = graph("nemotron-3-super-120b-a12b").totals.mixtures
        assert mixture == Mixture(40, 512, 22, 2 * 1024 * 2688, 0, 2688 + 1024)

    def test_the_experts_that_a_batch_hits(self) -> None:
        assert expected_experts(8, 2, 1) == 2
        assert expected_experts(8, 2, 2) == pytest.approx(3.5)
        assert expected_experts(8, 2, 1000) == pytest.approx(8)
        assert expected_experts(8, 8, 1) == 8
        many = expected_experts(256, 8, np.array([1.0, 16.0]))
        np.testing.assert_allclose(many, [8, 256 * (1 - (248 / 256) ** 16)])

    def test_bytes(self) -> None:
        found = graph("mixtral-8x7b")
        totals = found.totals
        weights = native_scheme(weight_format("int8", 64))
        every = 32 * 8 * 3 * 4096 * 14336 * (1 + 2 / 64)
        assert expert_bytes(totals, weights, 1) == pytest.approx(every / 4)
        assert expert_bytes(totals, weights, 1e4) == pytest.approx(every)
        table = totals.table_elements * 2
        assert weight_bytes(found, weights) == table + shared_bytes(totals, weights) + every

    def test_groups_have_to_divide_experts_too(self) -> None:
        found = graph("nemotron-3-nano-30b-a3b")
        names = {one.name: one.cols for one in misfits(found, weight_format("int8", 128))}
        assert names["layers.1.mlp.experts"] == 1856
        assert "layers.0.mamba.input" not in names
        assert misfits(found, weight_format("int8", 64)) == ()

    def test_buffers_hold_all_experts_of_a_token(self) -> None:
        buffers = token_buffers(graph("mixtral-8x7b"), BF16)
        assert buffers["expert"] == 2 * 2 * 14336
        assert buffers["qkv"] == 4096 + 2 * 1024


class TestCaches:
    def test_latent(self) -> None:
        found = graph("deepseek-v3")
        (group,) = found.totals.attention
        assert (group.layers, group.cache_elements_per_token) == (61, 61 * 576)
        assert group.latent_elements_per_token == 61 * 576 == found.totals.latent_elements_per_token
        assert group.flops_per_token_context == 61 * 2 * 128 * (576 + 512)
        assert group.prompt_flops_per_token_context == 61 * 2 * 128 * (192 + 128)
        assert graph("kimi-k2").totals.cache_elements_per_token == 61 * 576

    def test_keys_that_an_index_selects(self) -> None:
        totals = graph("deepseek-v3.2").totals
        (group,) = totals.attention
        assert (group.window, group.selected) == (None, 2048)
        assert totals.index_elements_per_token == 61 * 128
        assert totals.index_flops_per_token_context == 61 * 2 * 64 * 128
        shared = graph("glm-5.2").totals
        assert shared.index_elements_per_token == 21 * 128
        assert shared.cache_elements_per_token == 78 * 576

    def test_blocks_that_an_index_selects(self) -> None:
        groups = graph("minimax-m3").totals.attention
        assert [(one.layers, one.selected) for one in groups] == [(3, None), (57, 16 * 128)]

    def test_compressed(self) -> None:
        found = graph("deepseek-v4-flash")
        groups = {(one.window, one.selected): one for one in found.totals.attention}
        assert set(groups) == {(None, None), (None, 512 * 4), (128, None)}
        assert groups[128, None].cache_elements_per_token == 43 * 512
        assert groups[None, 2048].cache_elements_per_token == 21 * 512 // 4
        assert groups[None, None].cache_elements_per_token == 20 * 512 // 128
        assert groups[None, None].flops_per_token_context == 20 * 4 * 64 * 512 // 128
        assert found.totals.index_elements_per_token == 21 * 128 // 4
        assert found.cache_layers == 43

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("gpt-oss-20b", {None: 12, 128: 12}),
            ("gemma-2-9b", {None: 21, 4096: 21}),
            ("gemma-3-27b", {None: 10, 1024: 52}),
            ("gemma-4-31b", {None: 10, 1024: 50}),
            ("llama-4-scout-17b-16e", {None: 12, 8192: 36}),
            ("mimo-v2-flash", {None: 9, 128: 39}),
            ("step-3.7-flash", {None: 12, 512: 33}),
        ],
    )
    def test_windows(self, name: str, expected: dict[int | None, int]) -> None:
        assert {one.window: one.layers for one in graph(name).totals.attention} == expected

    def test_which_layers_have_the_window(self) -> None:
        assert [one.window for one in graph("gpt-oss-20b").attention][:3] == [128, None, 128]
        assert [one.window for one in graph("gemma-2-2b").attention][:3] == [4096, None, 4096]
        assert [one.window for one in graph("gemma-3-1b").attention][4:7] == [512, None, 512]
        assert [one.window for one in graph("llama-4-scout-17b-16e").attention][2:5] == [8192, None, 8192]

    def test_two_shapes_of_attention(self) -> None:
        full, near = graph("mimo-v2-flash").totals.attention
        assert full == Attention(None, 9, 9 * 2 * 64 * (192 + 128), 9 * 4 * (192 + 128))
        assert near.cache_elements_per_token == 39 * 8 * (192 + 128)
        full, near = graph("gemma-4-31b").totals.attention
        assert full.cache_elements_per_token == 10 * 2 * 4 * 512
        assert near.cache_elements_per_token == 50 * 2 * 16 * 256

    def test_states(self) -> None:
        delta = graph("qwen3.5-27b")
        assert delta.totals.state_bytes == 48 * (48 * 128 * 128 * 4 + 3 * (2 * 2048 + 6144) * 2)
        assert delta.cache_layers == 16
        mamba = graph("nemotron-3-nano-30b-a3b")
        assert mamba.totals.state_bytes == 23 * (64 * 64 * 128 * 4 + 3 * (4096 + 2 * 8 * 128) * 2)
        assert mamba.cache_layers == 6
        mixers = [op.cost.flops_per_token for op in mamba.operations if op.name == "layers.0.mamba"]
        assert mixers == [2 * 2 * 64 * 64 * 128 + 2 * 4 * (4096 + 2 * 8 * 128)]

    @pytest.mark.parametrize(
        "name", ["deepseek-v3", "qwen3.5-27b", "gemma-4-31b", "mimo-v2-flash", "minimax-m3"]
    )
    def test_one_shape_is_not_made_up(self, name: str) -> None:
        found = graph(name)
        for read in (lambda: found.heads, lambda: found.kv_heads, lambda: found.head_dim):
            with pytest.raises(InferCompileError) as caught:
                read()
            (problem,) = caught.value.problems
            assert problem.code == "IC115" and problem.where == name

    def test_yarn_stretches_the_context(self) -> None:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
        assert build(shrunk("qwen3-30b-a3b")).max_context == 40960
        assert build(shrunk("qwen3-30b-a3b", rope_scaling=scaling)).max_context == 131072
        with pytest.raises(InferCompileError, match="factor is missing"):
            build(shrunk("qwen3-30b-a3b", rope_scaling={"type": "yarn"}))

    def test_one_shape_is_told_where_there_is_one(self) -> None:
        found = graph("gpt-oss-20b")
        assert (found.heads, found.kv_heads, found.head_dim) == (64, 8, 64)


def problems(config: Mapping[str, object]) -> list[str]:
    with pytest.raises(InferCompileError) as caught:
        build(config, "m")
    return [f"{problem.code} {problem.message}" for problem in caught.value.problems]


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("mixtral-8x7b", "num_local_experts"),
            ("mixtral-8x7b", "num_experts_per_tok"),
            ("qwen3-30b-a3b", "moe_intermediate_size"),
            ("deepseek-v3", "kv_lora_rank"),
            ("deepseek-v3", "q_lora_rank"),
            ("deepseek-v3", "first_k_dense_replace"),
            ("deepseek-v3", "n_shared_experts"),
            ("deepseek-v3.2", "index_topk"),
            ("deepseek-v4-flash", "compress_ratios"),
            ("glm-5.2", "indexer_types"),
            ("gpt-oss-20b", "sliding_window"),
            ("gemma-3-1b", "sliding_window"),
            ("gemma-4-31b", "layer_types"),
            ("gemma-4-31b", "global_head_dim"),
            ("llama-4-scout-17b-16e", "attention_chunk_size"),
            ("mimo-v2-flash", "swa_v_head_dim"),
            ("mimo-v2-flash", "hybrid_layer_pattern"),
            ("minimax-m3", "sparse_attention_config"),
            ("nemotron-3-nano-30b-a3b", "hybrid_override_pattern"),
            ("nemotron-3-nano-30b-a3b", "mamba_ssm_cache_dtype"),
            ("qwen3.5-27b", "linear_num_value_heads"),
            ("qwen3.5-27b", "mamba_ssm_dtype"),
            ("step-3.7-flash", "share_expert_dim"),
        ],
    )
    def test_what_is_missing_is_not_guessed(self, name: str, key: str) -> None:
        assert problems(shrunk(name, **{key: "absent"})) == [f"IC111 {key} is missing"]

    @pytest.mark.parametrize(
        ("name", "changes", "expected"),
        [
            ("deepseek-v3.2", {"q_lora_rank": None}, "IC112 q_lora_rank is None"),
            ("deepseek-v4-flash", {"compress_ratios": [3] * LAYERS}, "IC112 compress_ratios"),
            ("deepseek-v4-flash", {"head_dim": 96}, "IC112 head_dim is 96"),
            ("gemma-4-31b", {"num_kv_shared_layers": 2}, "IC112 num_kv_shared_layers is 2"),
            ("gemma-4-31b", {"hidden_size_per_layer_input": 8}, "IC112 hidden_size_per_layer_input is 8"),
            ("nemotron-3-nano-30b-a3b", {"hybrid_override_pattern": "MEMEMX"}, "IC112 hybrid_override"),
            ("nemotron-3-nano-30b-a3b", {"mamba_ssm_cache_dtype": "int7"}, "IC112 mamba_ssm_cache_dtype"),
            ("mimo-v2-flash", {"moe_layer_freq": [1]}, "IC112 moe_layer_freq is [1]"),
            ("qwen3-30b-a3b", {"mlp_only_layers": "all"}, "IC112 mlp_only_layers is 'all'"),
            ("mixtral-8x7b", {"num_key_value_heads": 5}, "IC113 num_attention_heads 32"),
            ("mixtral-8x7b", {"num_experts_per_tok": 9}, "IC113 num_experts_per_tok 9"),
            ("phi-2", {"qk_layernorm": True}, "IC112 qk_layernorm is True"),
        ],
    )
    def test_a_mistake_is_named_once(self, name: str, changes: dict[str, Any], expected: str) -> None:
        (found,) = problems(shrunk(name, **changes))
        assert found.startswith(expected)

    @pytest.mark.parametrize("architecture", first_cards())
    def test_any_field_may_be_wrong(self, architecture: str) -> None:
        """Whatever a field holds, the config is read or refused by a coded error."""
        name = first_cards()[architecture]
        whole = shrunk(name)
        refused = 0
        for key in whole.get("text_config", whole):
            for value in ("absent", "x", -1, [], {}):
                if key in ("architectures", "num_hidden_layers") and value != "absent":
                    continue
                try:
                    build(shrunk(name, **{key: value}))
                except InferCompileError as error:
                    refused += all(problem.code.startswith("IC11") for problem in error.problems)
        assert refused > 20
