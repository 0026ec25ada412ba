"""Gemma2ForCausalLM: norms before and after each part, every other layer sees a window. Source: transformers
5.23, ``models/gemma2``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..operations import Operation

NAMES = ("Gemma2ForCausalLM",)


def read(fields: Fields) -> Counted:
    return family(fields, every=2, normed=False, reason="soft-capped attention and logits")


def family(
    fields: Fields, *, every: int, normed: bool, reason: str, tied: bool = True, prefix: str = "model."
) -> Counted:
    """Gemma 2 and 3: of ``every`` so many layers the last sees everything, where ``layer_types`` does not say
    otherwise; ``normed``: heads of queries and keys are normalised."""
    heads, kv_heads = fields.integer("num_attention_heads"), decoder.kv_heads(fields)
    fields.need("head_dim")
    size, bias = decoder.head_dim(fields), fields.boolean("attention_bias", False)
    window = fields.integer("sliding_window")
    layers = fields.integer("num_hidden_layers")
    implied = tuple(window if (i + 1) % every else None for i in range(layers))
    seen = windows.by_layer(fields, implied, window)
    width = fields.integer("intermediate_size")
    activation = fields.text("hidden_activation", "gelu_pytorch_tanh")

    def write(layer: Layer) -> Iterator[Operation]:
        attention = Grouped(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            window=seen[layer.index],
            bias=bias,
            output_bias=bias,
            norms=(size, size) if normed else None,
        )
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("attention.after", "post_attention_layernorm")
        yield layer.norm("mlp.norm", "pre_feedforward_layernorm")
        yield from layer.gated("mlp", "mlp", width, activation)
        yield layer.norm("mlp.after", "post_feedforward_layernorm")

    return counted(fields, write, f"{reason}; norms after each part", tied=tied, prefix=prefix)
