"""Qwen2MoeForCausalLM: Qwen2's attention, experts in most layers, and one that all tokens pass through as far
as its gate says. Source: transformers 5.23, ``models/qwen2_moe``."""

from __future__ import annotations

from ...runtime.formats.program import Routing
from .. import decoder, windows
from ..fields import Fields
from ..mixture import MixtureShape, chosen
from .qwen2 import DEFAULT_FULL_LAYERS, DEFAULT_WINDOW

NAME = "Qwen2MoeForCausalLM"


def read(fields: Fields) -> decoder.Decoder:
    mixture = MixtureShape(
        experts=fields.integer("num_experts"),
        per_token=chosen(fields, "num_experts"),
        width=fields.integer("moe_intermediate_size"),
        shared="mlp.shared_expert",
        shared_width=fields.integer("shared_expert_intermediate_size"),
        shared_gate="mlp.shared_expert_gate",
        routing=Routing(normalized=fields.boolean("norm_topk_prob", False)),
    )
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        windows=_windows(fields),
        qkv_bias=fields.boolean("qkv_bias", True),
        mixtures=sparse(fields, mixture),
    )


def sparse(fields: Fields, mixture: MixtureShape) -> tuple[MixtureShape | None, ...]:
    """Of each layer: every ``decoder_sparse_step``-th has experts, but for ``mlp_only_layers``."""
    every = fields.integer("decoder_sparse_step", 1)
    dense = fields.integers("mlp_only_layers") or ()
    return tuple(
        None if layer in dense or (layer + 1) % every else mixture
        for layer in range(fields.integer("num_hidden_layers"))
    )


def _windows(fields: Fields) -> tuple[int | None, ...]:
    """With ``use_sliding_window`` every other layer before ``max_window_layers`` has the window, or those
    that ``layer_types`` names."""
    size = windows.window(fields, DEFAULT_WINDOW) if fields.boolean("use_sliding_window", False) else None
    last = fields.integer("max_window_layers", DEFAULT_FULL_LAYERS, minimum=0)
    layers = range(fields.integer("num_hidden_layers"))
    implied = tuple(size if layer < last and layer % 2 == 0 else None for layer in layers)
    return windows.by_layer(fields, implied, size)
