"""The tensors that a graph reads are those that transformers writes, for every architecture that is counted.

Models are made without storage, so they have their real widths; layers and experts are few.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from shrunk import VOCABULARY, first_cards, shrunk

from infer_compile.graph.build import build

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
core_model_loading = pytest.importorskip("transformers.core_model_loading")

# What transformers calls these, where the card has the name that others gave them.
TYPES = {"kimi_k2": "deepseek_v3", "mimo": "qwen2", "minimax_m3": "minimax_m3_vl_text"}
# Of these, transformers does not restore the names when it is the language model alone that is written; so
# the numbers of elements are compared.
RENAMED = ("DeepseekV4ForCausalLM", "MiniMaxM3ForCausalLM", "Step3p7FlashForCausalLM")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "experts-in-every-other-layer": ("qwen3-30b-a3b", {"decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    "biases": ("qwen3-30b-a3b", {"attention_bias": True}),
    "queries-at-once": ("deepseek-v3", {"q_lora_rank": None}),
    "three-shared-experts": ("deepseek-v3", {"n_shared_experts": 3}),
    "indexes-shared": ("glm-5.2", {}),
    "every-fourth-expert-layer": ("llama-4-maverick-17b-128e", {"interleave_moe_layer_step": 3}),
    "no-biases": ("gpt-oss-20b", {"attention_bias": False}),
    "mlp-layers": ("nemotron-3-nano-30b-a3b", {"hybrid_override_pattern": "M-E*-M", "mlp_bias": True}),
    "folded-experts": ("nemotron-3-super-120b-a12b", {"use_conv_bias": False}),
    "few-heads": ("phi-4", {"num_key_value_heads": 5}),
    "own-head": ("gemma-2-2b", {"tie_word_embeddings": False}),
    "experts": ("qwen3.5-35b-a3b", {"linear_num_value_heads": 48}),
    "dense": ("gemma-4-31b", {}),
    "tied": ("mixtral-8x7b", {"tie_word_embeddings": True, "head_dim": 64}),
}


def written(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a checkpoint of the language model, integers left out."""
    settings = dict(config.get("text_config", config)) | {"pad_token_id": 0}
    kind = settings.pop("model_type")
    for key in ("architectures", "quantization_config"):
        settings.pop(key, None)
    with torch.device("meta"):
        if kind == "step3p7":
            module = transformers.models.step3p7.modeling_step3p7
            settings["n_routed_experts"] = settings.pop("num_experts")
            model = module.Step3p7TextModel(module.Step3p7TextConfig(**settings))
        else:
            found = transformers.AutoConfig.for_model(TYPES.get(kind, kind), **settings)
            model = transformers.AutoModelForCausalLM.from_config(found)
    tensors = core_model_loading.revert_weight_conversion(model, model.state_dict())
    shapes = {name: tuple(one.shape) for name, one in tensors.items() if one.dtype != torch.int64}
    if kind == "step3p7":
        shapes["lm_head.weight"] = (VOCABULARY, settings["hidden_size"])
    elif model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def compare(config: dict[str, Any]) -> None:
    architecture = config["architectures"][0]
    graph = build(config)
    try:
        theirs = written(config)
    except (ValueError, AttributeError, ImportError) as error:
        if "nrecognized" in str(error) or "step3p7" in str(error):
            pytest.skip(f"transformers {transformers.__version__} has no {architecture}")
        raise
    ours = {source.name: source.shape for source in graph.sources}
    assert sum(map(torch.Size.numel, map(torch.Size, theirs.values()))) == graph.parameters
    if architecture not in RENAMED:
        for prefix in ("language_model.", "model.language_model."):
            plain = "model." if prefix.startswith("model.") else ""
            ours = {
                plain + name.removeprefix(prefix) if name.startswith(prefix) else name: shape
                for name, shape in ours.items()
            }
        assert ours == theirs


@pytest.mark.parametrize("architecture", first_cards())
def test_tensors_of_every_architecture(architecture: str) -> None:
    compare(shrunk(first_cards()[architecture]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_of_variants(variant: str) -> None:
    name, changes = VARIANTS[variant]
    config = shrunk(name, **changes)
    if "tie_word_embeddings" in config and "tie_word_embeddings" in changes:
        config["tie_word_embeddings"] = changes["tie_word_embeddings"]
    compare(config)
