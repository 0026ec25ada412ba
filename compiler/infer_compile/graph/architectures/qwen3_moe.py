"""Qwen3MoeForCausalLM: Qwen3's attention and experts in most layers. Source: transformers 5.23,
``models/qwen3_moe``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from .qwen2 import layer_windows

NAMES = ("Qwen3MoeForCausalLM",)


def read(fields: Fields) -> Counted:
    heads, kv_heads = fields.integer("num_attention_heads"), decoder.kv_heads(fields)
    size, bias = decoder.head_dim(fields), fields.boolean("attention_bias", False)
    windows = layer_windows(fields)
    width, activation = fields.integer("intermediate_size"), fields.text("hidden_act", "silu")
    every = fields.integer("decoder_sparse_step", 1)
    dense = fields.integers("mlp_only_layers") or ()
    mixture = MixtureShape(
        experts=fields.integer("num_experts"),
        per_token=chosen(fields, "num_experts"),
        width=fields.integer("moe_intermediate_size"),
    )

    def write(layer: Layer) -> Iterator[Operation]:
        attention = Grouped(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            window=windows[layer.index],
            bias=bias,
            output_bias=bias,
            norms=(size, size),
        )
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if layer.index in dense or (layer.index + 1) % every:
            yield from layer.gated("mlp", "mlp", width, activation)
        else:
            yield from mix(layer, mixture)

    return counted(fields, write, "mixture of experts")
