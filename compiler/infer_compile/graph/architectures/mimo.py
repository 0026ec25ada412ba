"""MiMoForCausalLM: Qwen2's layers, and layers that predict further tokens, which are not counted. Source: the
model's own ``modeling_mimo.py`` on the Hugging Face hub, which builds on transformers' ``models/qwen2``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..operations import Operation
from .qwen2 import layer_windows

NAMES = ("MiMoForCausalLM",)


def read(fields: Fields) -> Counted:
    heads, kv_heads, size = (
        fields.integer("num_attention_heads"),
        decoder.kv_heads(fields),
        decoder.head_dim(fields),
    )
    windows, bias = layer_windows(fields), fields.boolean("attention_bias", True)
    width, activation = fields.integer("intermediate_size"), fields.text("hidden_act", "silu")

    def write(layer: Layer) -> Iterator[Operation]:
        window = windows[layer.index]
        attention = Grouped(heads=heads, kv_heads=kv_heads, head_dim=size, window=window, bias=bias)
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from layer.gated("mlp", "mlp", width, activation)

    return counted(fields, write, "an architecture that it was not tried on")
