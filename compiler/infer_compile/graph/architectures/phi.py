"""PhiForCausalLM: Phi-1 and Phi-2, whose attention and MLP read the same norm. Source: transformers 5.23,
``models/phi``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..operations import LayerNorm, Operation

NAMES = ("PhiForCausalLM",)


def read(fields: Fields) -> Counted:
    attention = Grouped(
        heads=fields.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(fields, default=fields.integer("num_attention_heads")),
        head_dim=decoder.head_dim(fields),
        bias=True,
        output_bias=True,
        output="dense",
    )
    if fields.boolean("qk_layernorm", False):
        fields.wrong("qk_layernorm", "false: norms of queries and keys are not counted")
    width = fields.integer("intermediate_size")

    def write(layer: Layer) -> Iterator[Operation]:
        yield LayerNorm(
            name=layer.name("norm"),
            layer=layer.index,
            weight=layer.source("input_layernorm.weight", layer.hidden),
            bias=layer.source("input_layernorm.bias", layer.hidden),
            epsilon=layer.epsilon,
            input="x",
            output="normed",
        )
        yield from attend(layer, attention)
        yield from layer.plain("mlp", "mlp", width, ("fc1", "fc2"), True)

    return counted(
        fields,
        write,
        "attention and MLP side by side; norms with a mean; a part of each head turns",
        epsilon="layer_norm_eps",
        final="final_layernorm",
        layer_norm=True,
    )
