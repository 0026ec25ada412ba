"""GptOssForCausalLM: every other layer sees a window, attention has sinks, experts have biases. Source:
transformers 5.23, ``models/gpt_oss``. In the published checkpoints each expert matrix is a pair of tensors,
``_blocks`` and ``_scales``; they are counted as the matrix that they stand for."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix_stacked
from ..operations import Operation

NAMES = ("GptOssForCausalLM",)


def read(fields: Fields) -> Counted:
    heads, kv_heads = fields.integer("num_attention_heads"), decoder.kv_heads(fields)
    size, bias = decoder.head_dim(fields), fields.boolean("attention_bias", True)
    window = fields.integer("sliding_window")
    implied = tuple(None if i % 2 else window for i in range(fields.integer("num_hidden_layers")))
    seen = windows.by_layer(fields, implied, window)
    hidden, width = fields.integer("hidden_size"), fields.integer("intermediate_size")
    mixture = MixtureShape(
        experts=fields.integer("num_local_experts"),
        per_token=chosen(fields, "num_local_experts"),
        width=width,
        router="router.weight",
        corrections=("router.bias",),
    )
    tensors = (
        ("mlp.experts.gate_up_proj", (hidden, 2 * width)),
        ("mlp.experts.down_proj", (width, hidden)),
    )
    biases = (("mlp.experts.gate_up_proj_bias", 2 * width), ("mlp.experts.down_proj_bias", hidden))

    def write(layer: Layer) -> Iterator[Operation]:
        attention = Grouped(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            window=seen[layer.index],
            bias=bias,
            output_bias=bias,
            sinks="sinks",
        )
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from mix_stacked(layer, mixture, tensors, biases)

    return counted(fields, write, "attention sinks; mixture of experts")
