"""Formats as a planner counts them, held against the sizes of published files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from planning import card

from infer_compile.catalog.formats import Formats, checkpoint_format
from infer_compile.catalog.model import card_names
from infer_compile.graph.storage import weight_bytes
from infer_compile.spec.names import KV, WEIGHTS
from infer_compile.spec.unserved import UNSERVED

GIB = 1.073741824
# 1e9 bytes of the weights' files: README of bartowski/Meta-Llama-3.1-8B-Instruct-GGUF, tools/quantize and
# tools/perplexity of llama.cpp (README.md of each), the files of the repositories that are named.
PUBLISHED = [
    ("llama-3.1-8b", "q8_0", 8.54),
    ("llama-3.1-8b", "q6_k", 6.60),
    ("llama-3.1-8b", "q5_k_m", 5.73),
    ("llama-3.1-8b", "q4_k_m", 4.92),
    ("llama-3.1-8b", "q4_0", 4.66),
    ("llama-3.1-8b", "q3_k_m", 4.02),
    ("llama-3.1-8b", "q2_k", 3.18),
    ("llama-3.1-8b", "iq4_xs", 4.45),
    ("llama-2-70b", "q6_k", 52.70 * GIB),
    ("llama-2-70b", "q5_k_m", 45.41 * GIB),
    ("llama-2-70b", "q4_k_m", 38.54 * GIB),
    ("llama-2-70b", "q4_0", 36.20 * GIB),
    ("llama-2-70b", "q3_k_m", 30.83 * GIB),
    ("llama-3.1-8b", "bf16", 16.06),
    ("llama-3.1-8b", "int4-awq", 5.73),  # hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4
    ("llama-3.1-8b", "fp8", 9.08),  # neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8
    ("gpt-oss-20b", "mxfp4", 13.76),  # openai/gpt-oss-20b
    ("gpt-oss-120b", "mxfp4", 65.25),  # openai/gpt-oss-120b
    ("kimi-k2.5", "int4-rtn", 595.0),  # moonshotai/Kimi-K2.5, with its vision tower
]


@pytest.fixture(scope="module")
def formats() -> Formats:
    path = Path(__file__).resolve().parents[2] / "compiler/infer_compile/catalog/formats.yaml"
    return Formats.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(("model", "name", "published"), PUBLISHED)
def test_published_sizes(formats: Formats, model: str, name: str, published: float) -> None:
    graph = card(model)
    scheme = formats.of_weights(name, graph.architecture)
    assert weight_bytes(graph, scheme) / 1e9 == pytest.approx(published, rel=0.015)


# Bytes of a block and its weights, ggml/src/ggml-common.h.
@pytest.mark.parametrize(("name", "size", "weights"), [("q8_0", 34, 32), ("q6_k", 210, 256)])
def test_formats_without_a_mix_are_their_blocks(formats: Formats, name: str, size: int, weights: int) -> None:
    bits = formats.of_weights(name).bits
    assert {bits.table, bits.matrix, bits.expert, bits.head} == {size * 8 / weights}


@pytest.mark.parametrize(
    ("name", "size", "weights"),
    [("q5_k_m", 176, 256), ("q4_k_m", 144, 256), ("q4_0", 18, 32), ("q3_k_m", 110, 256), ("q2_k", 84, 256)],
)
def test_mixes_begin_at_their_commonest_block(formats: Formats, name: str, size: int, weights: int) -> None:
    bits = formats.of_weights(name).bits
    assert bits.table == size * 8 / weights
    assert bits.table <= bits.matrix < bits.head


def test_every_name_of_the_language_has_an_entry(formats: Formats) -> None:
    for name in (*WEIGHTS, *UNSERVED["weights"]):
        assert formats.of_weights(name).name == name
    for name in KV:
        assert formats.of_kv(name).name == name
    with pytest.raises(KeyError):
        formats.of_weights("int3")


def test_a_format_as_one_model_stores_it(formats: Formats) -> None:
    graph = card("deepseek-v4-flash")
    assert formats.of_weights("fp8", graph.architecture).bits.expert == 4.25
    assert formats.of_weights("fp8", "LlamaForCausalLM").bits.expert == 8
    assert formats.of_weights("fp8") == formats.of_weights("fp8", "LlamaForCausalLM")


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            (None, ""),
            ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
            ({"quant_method": "mxfp4"}, "mxfp4"),
            ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4-awq"),
            ({"quant_method": "gptq", "bits": 4}, "int4-gptq"),
            ({"quant_method": "gptq", "bits": 8}, ""),
            ({"quant_method": "bitsandbytes"}, ""),
            ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
            ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
            ({"quant_method": "compressed-tensors"}, ""),
        ],
    )
    def test_by_method(self, settings: object, name: str) -> None:
        assert checkpoint_format({"quantization_config": settings}) == name
        assert checkpoint_format({"text_config": {"quantization_config": settings}}) == name

    @pytest.mark.parametrize(
        ("weights", "name"),
        [
            ({"num_bits": 4, "type": "int", "group_size": 32}, "int4-rtn"),
            ({"num_bits": 8, "type": "int"}, "int8"),
            ({"num_bits": 8, "type": "float"}, "fp8"),
            ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4"),
            ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4"),
            ({"num_bits": 2, "type": "int"}, ""),
        ],
    )
    def test_compressed_tensors(self, weights: object, name: str) -> None:
        settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
        assert checkpoint_format({"quantization_config": settings}) == name

    def test_of_the_catalog(self) -> None:
        stored = {name: card(name).stored_as for name in card_names()}
        assert {name: form for name, form in stored.items() if form} == {
            "deepseek-v3": "fp8",
            "deepseek-v3.2": "fp8",
            "deepseek-v4-flash": "fp8",
            "deepseek-v4-pro": "fp8",
            "gpt-oss-120b": "mxfp4",
            "gpt-oss-20b": "mxfp4",
            "kimi-k2": "fp8",
            "kimi-k2.5": "int4-rtn",
            "mimo-v2-flash": "fp8",
            "minimax-m2.5": "fp8",
        }
