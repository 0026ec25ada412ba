"""Configs become graphs: shapes, sources, costs and mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from infer_compile.catalog.model import card_names, load_card
from infer_compile.graph.build import ARCHITECTURES, build
from infer_compile.graph.cost import Attention
from infer_compile.graph.graph import Graph
from infer_compile.graph.operations import Attend, HeadNorm, Linear, Rotary
from infer_compile.graph.storage import (
    misfits,
    native_scheme,
    output_buffers,
    shared_bytes,
    stores_head,
    token_buffers,
    weight_bytes,
)
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.weights import BF16, weight_format

ROOT = Path(__file__).resolve().parents[2]
LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128}


def config(**changes: object) -> dict[str, object]:
    return {key: value for key, value in (LLAMA | changes).items() if value != "absent"}


def windows(graph: Graph) -> list[int | None]:
    return [attend.window for attend in graph.attention]


# Published on the models' pages (model.safetensors.index.json or the page's own count).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_known_models_have_their_published_parameters(name: str, parameters: int) -> None:
    card = load_card(name)
    assert card is not None
    assert build(card.config, name).parameters == parameters


WITHOUT_CARD = {"Qwen2MoeForCausalLM"}


def test_every_card_of_a_known_architecture_builds() -> None:
    built = []
    for name in card_names():
        card = load_card(name)
        assert card is not None
        if card.config["architectures"][0] in ARCHITECTURES:
            graph = build(card.config, name)
            assert graph.parameters / 1e9 == pytest.approx(card.parameters_b, rel=1e-3, abs=0.006), name
            assert graph.native, graph.native_reason
            built.append(graph.architecture)
    assert set(ARCHITECTURES) - set(built) == WITHOUT_CARD


def test_the_quickstart_model() -> None:
    folder = ROOT / "specs" / "models" / "quickstart"
    graph = build(json.loads((folder / "config.json").read_text()), "quickstart")
    assert (graph.layers, graph.heads, graph.kv_heads, graph.head_dim, graph.tied) == (6, 4, 2, 128, True)
    header = (folder / "model.safetensors").open("rb").read(1 << 20)
    tensors = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    stored = {name: tuple(entry["shape"]) for name, entry in tensors.items() if name != "__metadata__"}
    assert {source.name: source.shape for source in graph.sources} == stored


def test_coefficients_are_the_sums_of_the_shapes() -> None:
    graph = build(config(attention_bias=True, mlp_bias=True))
    totals = graph.totals
    layer = 256 * (256 + 128 + 128) + 256 * 256 + 3 * 256 * 512
    assert totals.table_elements == totals.head_elements == 1000 * 256
    assert totals.weight_elements == 3 * layer
    biases = (256 + 128 + 128) + 256 + (512 + 512) + 256
    assert totals.vector_elements == 3 * (2 * 256 + biases) + 256
    assert totals.flops_per_token == 2 * 3 * layer
    assert totals.flops_per_output == 2 * 1000 * 256
    assert totals.attention == (Attention(None, 3, 3 * 4 * 256, 3 * 2 * 128),)
    assert totals.cache_elements_per_token == 768
    assert graph.parameters == 2 * 256_000 + totals.weight_elements + totals.vector_elements


def test_attention_is_summed_for_each_window() -> None:
    changes = {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 1,
    }
    graph = build(config(**changes))
    assert [(group.window, group.layers) for group in graph.totals.attention] == [(None, 1), (64, 2)]
    assert graph.totals.cache_elements_per_token == 3 * 2 * 128


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("name", "group"), [("bf16", 0), ("int8", 32), ("int4-rtn", 64)])
def test_weight_bytes_are_those_of_every_tensor(tied: bool, name: str, group: int) -> None:
    graph = build(config(tie_word_embeddings=tied))
    weights = weight_format(name, group) if group else BF16
    matrix, head = {"bf16": (2, 2), "int8": (1 + 2 / 32, 1 + 2 / 32), "int4-rtn": (0.5 + 2 / 64, 1 + 2 / 64)}[
        name
    ]
    layers = graph.totals.weight_elements * matrix + graph.totals.vector_elements * 2
    assert stores_head(tied, weights) is not (tied and name == "bf16")
    stored = 2 * 256_000 + layers + (256_000 * head if stores_head(tied, weights) else 0)
    assert weight_bytes(graph, native_scheme(weights)) == stored
    assert shared_bytes(graph.totals, native_scheme(weights)) == layers + 256_000 * head


def test_groups_that_do_not_divide_are_named() -> None:
    graph = build(config(hidden_size=320, head_dim=64))
    names = {matrix.name for matrix in misfits(graph, weight_format("int8", 128))}
    assert names == {f"layers.{i}.{part}" for i in range(3) for part in ("attention.qkv", "mlp.gate_up")} | {
        "head"
    }
    assert misfits(graph, weight_format("int8", 64)) == ()


def test_buffers_hold_what_operations_write() -> None:
    graph = build(config())
    plain = {"x": 256, "normed": 256, "qkv": 512, "attended": 256, "gate_up": 1024, "gated": 512}
    assert token_buffers(graph, BF16) == plain
    assert token_buffers(graph, weight_format("int8", 32)) == plain | {"quantized": 512}
    assert output_buffers(graph) == {"selected": 256, "final": 256, "logits": 1000}


def test_architectures_differ_where_their_configs_say() -> None:
    def biases(graph: Graph) -> set[str]:
        return {op.name.split(".", 2)[-1] for op in graph.matrices if op.biases}

    assert biases(build(config())) == set()
    assert biases(build(config(attention_bias=True))) == {"attention.qkv", "attention.output"}
    assert biases(build(config(mlp_bias=True))) == {"mlp.gate_up", "mlp.down"}
    assert biases(build(config(architectures=["Qwen2ForCausalLM"]))) == {"attention.qkv"}
    qwen3 = build(QWEN3)
    norms = [op for op in qwen3.operations if isinstance(op, HeadNorm) and op.layer == 0]
    assert [(norm.first_head, norm.heads) for norm in norms] == [(0, 4), (4, 2)]
    assert not any(isinstance(op, HeadNorm) for op in build(config()).operations)
    turned = next(op for op in qwen3.operations if isinstance(op, Rotary))
    assert (turned.first_head, turned.heads, turned.head_dim) == (0, 6, 128)


def test_head_dim_does_not_follow_from_the_hidden_size() -> None:
    assert build(config()).head_dim == 64
    wide = build(config(head_dim=256))
    qkv = next(op for op in wide.operations if isinstance(op, Linear))
    assert (wide.head_dim, qkv.rows, qkv.cols) == (256, 8 * 256, 256)
    assert build({key: value for key, value in QWEN3.items() if key != "head_dim"}).head_dim == 128
    assert build(config(num_key_value_heads="absent")).kv_heads == 4


def test_windows() -> None:
    mistral = {"architectures": ["MistralForCausalLM"]}
    assert windows(build(config(**mistral, sliding_window=100))) == [100] * 3
    assert windows(build(config(**mistral, sliding_window=None))) == [None] * 3
    assert windows(build(config(**mistral))) == [4096] * 3
    assert windows(build(config(sliding_window=100))) == [None] * 3, "Llama has no windows"
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 100}
    assert windows(build(config(**qwen, use_sliding_window=False))) == [None] * 3
    on = qwen | {"use_sliding_window": True}
    assert windows(build(config(**on, max_window_layers=2))) == [None, None, 100]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(build(config(**on, layer_types=kinds))) == [100, None, 100]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"head_dim": 80}, "head_dim 80"), ({"hidden_act": "gelu"}, "hidden_act 'gelu'")],
)
def test_what_the_native_engine_does_not_run_is_counted(changes: Mapping[str, object], reason: str) -> None:
    graph = build(config(**changes))
    assert not graph.native and reason in graph.native_reason
    assert graph.parameters > 0 and isinstance(graph.attention[0], Attend)


def problems(wrong: Mapping[str, object]) -> list[str]:
    with pytest.raises(InferCompileError) as caught:
        build(wrong, "m")
    assert all(problem.where.startswith("config.json of m") for problem in caught.value.problems)
    return [f"{problem.code} {problem.message}" for problem in caught.value.problems]


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(InferCompileError) as caught:
        build(config(architectures=["GemmaForCausalLM"]))
    (problem,) = caught.value.problems
    assert problem.code == "IC110" and "GemmaForCausalLM" in problem.message
    assert all(name in str(problem) for name in ARCHITECTURES)
    assert problems({})[0].startswith("IC110 architectures is missing")
    assert problems(config(architectures=["LlamaForCausalLM", "Other"]))[0].startswith("IC110")


def test_all_mistakes_at_once() -> None:
    wrong = config(
        vocab_size="absent",
        hidden_size="256",
        rms_norm_eps=-1,
        tie_word_embeddings="yes",
        num_key_value_heads=3,
    )
    assert sorted(problems(wrong)) == [
        "IC111 vocab_size is missing",
        "IC112 hidden_size is '256'",
        "IC112 rms_norm_eps is -1",
        "IC112 tie_word_embeddings is 'yes'",
        "IC113 num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ]


SWITCHED = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 9}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": 250}, "IC113 hidden_size 250 is not a multiple"),
        ({"head_dim": 63}, "IC113 head_dim 63 is odd"),
        ({"num_hidden_layers": True}, "IC112 num_hidden_layers is True"),
        ({"num_hidden_layers": 0}, "IC112 num_hidden_layers is 0"),
        ({"max_position_embeddings": "absent"}, "IC111 max_position_embeddings is missing"),
        ({"rope_theta": 1}, "IC112 rope_theta is 1"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "IC114 rotary scaling 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "IC111 factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "IC112 factor is 0.5"),
        ({"rope_scaling": "linear"}, "IC112 rope_scaling is 'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 9.0}}}, "IC114 rotary settings for each kind"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "IC113 rope_theta is 5"),
        (
            {
                "rope_parameters": {"rope_type": "default"},
                "rope_scaling": {"rope_type": "linear", "factor": 2},
            },
            "IC113 rope_parameters and rope_scaling differ",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            "IC113 high_freq_factor 4",
        ),
        (
            {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}},
            "IC112 partial_rotary_factor",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 0.5}}, "IC113 beta_fast 0.5"),
        (SWITCHED | {"layer_types": ["full_attention"]}, "IC113 layer_types has 1 entries"),
        (SWITCHED | {"layer_types": ["full"] * 3}, "IC112 layer_types"),
        (
            SWITCHED | {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3},
            "IC113 layer_types names sliding_attention",
        ),
        (
            {"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"] * 3},
            "IC113 layer_types mixes",
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": "absent"},
            "IC111 num_key_value_heads",
        ),
    ],
)
def test_a_mistake_is_named_once(changes: Mapping[str, object], expected: str) -> None:
    (found,) = problems(config(**changes))
    assert found.startswith(expected)
