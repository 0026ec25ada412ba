"""Small random models of every family, as transformers' modules and as Programs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import transformers

from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.lower.assemble import assemble
from infer_compile.lower.signs import signs
from infer_compile.runtime.engines.reference import Load
from infer_compile.runtime.formats.kv import CacheLayout, LevelName, uniform
from infer_compile.runtime.formats.program import Limits, Program, Tensor
from infer_compile.runtime.formats.weights import BF16, WeightFormat

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
SHARED = {"shared_expert_intermediate_size": 48}

CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama-grouped": ("Llama", {}),
    "llama-multi-head": ("Llama", {"num_attention_heads": 2, "num_key_value_heads": 2}),
    "llama-head-dim-from-hidden": ("Llama", {"hidden_size": 128, "head_dim": None}),
    "llama-wide-heads-tied": ("Llama", {"head_dim": 128, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0}},
    ),
    "llama-yarn-rope": ("Llama", {"rope_parameters": YARN}),
    "llama-yarn-rope-in-detail": (
        "Llama",
        {
            "rope_parameters": YARN
            | {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}
        },
    ),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "mistral-full": ("Mistral", {"sliding_window": None, "num_attention_heads": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN | {"attention_factor": 1.25}}),
    "qwen2-windows-above": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 6}),
    "qwen3-moe-as-they-are": ("Qwen3Moe", EXPERTS | {"norm_topk_prob": False}),
    "qwen3-moe-normalized-every-other": (
        "Qwen3Moe",
        EXPERTS | {"norm_topk_prob": True, "decoder_sparse_step": 2, "num_attention_heads": 4},
    ),
    "qwen2-moe-as-they-are": ("Qwen2Moe", EXPERTS | SHARED),
    "qwen2-moe-normalized-dense-first": (
        "Qwen2Moe",
        EXPERTS | SHARED | {"norm_topk_prob": True, "mlp_only_layers": [0], "qkv_bias": False},
    ),
    "qwen3-biases-and-layer-types": (
        "Qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def model(name: str, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """The family's transformers module in float32; norms and biases are random too."""
    family, special = CONFIGS[name]
    fields = SHAPE | special | changes
    if fields.get("head_dim", 0) is None:
        del fields["head_dim"]
    config = getattr(transformers, f"{family}Config")(**fields)
    torch.manual_seed(seed)
    module = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0.0, 0.12)
    return module


def config(module: transformers.PreTrainedModel) -> dict[str, object]:
    """What its ``config.json`` would hold."""
    return module.config.to_dict() | {"architectures": [type(module).__name__]}


def state(module: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Its tensors as a checkpoint names them: transformers stacks the experts of a layer."""
    mixtral = type(module).__name__.startswith("Mixtral")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    found: dict[str, torch.Tensor] = {}
    for full, tensor in module.state_dict().items():
        name = full.replace(".mlp.", ".block_sparse_moe.") if mixtral else full
        stem, _, part = name.partition(".experts.")
        halves = dict(zip((gate, up), tensor.chunk(2, 1), strict=True)) if part.startswith("gate_up") else {}
        for inner, experts in (halves or {down: tensor}).items() if part else ():
            found |= {f"{stem}.experts.{i}.{inner}.weight": one for i, one in enumerate(experts)}
        if not part:
            found[name] = tensor
    return found


def graph(module: transformers.PreTrainedModel) -> Graph:
    return build(config(module), "random")


def program(
    of: Graph,
    *,
    level: LevelName = "bf16",
    page_tokens: int = 8,
    sink_pages: int = 1,
    recent_pages: int = 1,
    weights: WeightFormat = BF16,
    pages: int = 64,
) -> Program:
    layout = CacheLayout(
        level=level,
        page_tokens=page_tokens,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        kv_heads=of.kv_heads,
        head_dim=of.head_dim,
        layers=uniform(level, of.cache_layers, of.head_dim),
        signs="" if level == "bf16" else signs(of.head_dim),
    )
    limits = Limits(
        max_context=of.max_context,
        max_sequences=32,
        max_batch_tokens=256,
        exact_pages=pages,
        packed_pages=0 if level == "bf16" else pages,
    )
    return assemble(of, weights, layout, limits)


def loader(state: Mapping[str, torch.Tensor]) -> Load:
    """Float32 numbers of a Program's tensors, stacked from ``state``."""

    def load(tensor: Tensor) -> np.ndarray:
        parts = [state[source].float().numpy() for source in tensor.sources]
        return np.concatenate(parts).reshape(tensor.rows, tensor.cols)

    return load
