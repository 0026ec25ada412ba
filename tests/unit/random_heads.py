"""Checkpoints of random heads for a model, in the layouts that they are published in, and the heads by
themselves in plain numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(
            random.standard_normal(shape) * shape[-1] ** -0.5
            if len(shape) > 1
            else 1 + 0.2 * random.standard_normal(shape),
            ml_dtypes.bfloat16,
        )
        for name, shape in shapes.items()
    }


def medusa(model: dict[str, Any], heads: int = 3, blocks: int = 1, seed: int = 0) -> tuple[Any, Tensors]:
    """As FasterDecoding publishes them: config.json and tensors."""
    hidden, vocabulary = model["hidden_size"], model["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for block in range(blocks):
            shapes[f"{head}.{block}.linear.weight"] = (hidden, hidden)
            shapes[f"{head}.{block}.linear.bias"] = (hidden,)
        shapes[f"{head}.{blocks}.weight"] = (vocabulary, hidden)
    return {"medusa_num_heads": heads, "medusa_num_layers": blocks}, _random(shapes, seed)


def vllm_medusa(model: dict[str, Any], heads: int = 3, seed: int = 0) -> tuple[Any, Tensors]:
    """The same heads as vLLM names them, without biases."""
    _, tensors = medusa(model, heads, seed=seed)
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": model["hidden_size"],
        "vocab_size": model["vocab_size"],
        "truncated_vocab_size": model["vocab_size"],
        "num_heads": heads,
        "num_hidden_layers": 1,
    }
    renamed = {}
    for name, values in tensors.items():
        head, place, *rest = name.split(".")
        if rest[-1] == "bias":
            continue
        renamed[f"blocks.{head}.layers.0.weight" if place == "0" else f"lm_heads.{head}.weight"] = values
    return config, renamed


def eagle3(
    model: dict[str, Any],
    layers: tuple[int, ...] = (0, 1, 2),
    vocabulary: int | None = 96,
    seed: int = 0,
    **settings: Any,
) -> tuple[Any, Tensors]:
    """As SGLang loads it: config.json and tensors, the embedding left to the model. ``layers`` are those of
    the model whose inputs are read; ``vocabulary`` None is the model's."""
    hidden, heads, keys = model["hidden_size"], 4, 2
    wide, size, words = 160, 64, model["vocab_size"]
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": size,
        "num_hidden_layers": 1,
        "vocab_size": words,
        "draft_vocab_size": vocabulary or words,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers]},
        **settings,
    }
    tensors = _random(
        {
            "fc.weight": (hidden, len(layers) * hidden),
            "midlayer.input_layernorm.weight": (hidden,),
            "midlayer.hidden_norm.weight": (hidden,),
            "midlayer.self_attn.q_proj.weight": (heads * size, 2 * hidden),
            "midlayer.self_attn.k_proj.weight": (keys * size, 2 * hidden),
            "midlayer.self_attn.v_proj.weight": (keys * size, 2 * hidden),
            "midlayer.self_attn.o_proj.weight": (hidden, heads * size),
            "midlayer.post_attention_layernorm.weight": (hidden,),
            "midlayer.mlp.gate_proj.weight": (wide, hidden),
            "midlayer.mlp.up_proj.weight": (wide, hidden),
            "midlayer.mlp.down_proj.weight": (hidden, wide),
            "norm.weight": (hidden,),
            "lm_head.weight": (vocabulary or words, hidden),
        },
        seed,
    )
    if vocabulary is not None:
        chosen = np.sort(np.random.default_rng(seed).choice(words, vocabulary, replace=False))
        tensors["d2t"] = chosen - np.arange(vocabulary)
        tensors["t2d"] = np.isin(np.arange(words), chosen)
    return config, tensors


def save(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
