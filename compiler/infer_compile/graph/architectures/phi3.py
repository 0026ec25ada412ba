"""Phi3ForCausalLM: Phi-3 and Phi-4, with fused projections. Source: transformers 5.23, ``models/phi3``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..operations import Operation

NAMES = ("Phi3ForCausalLM",)


def read(fields: Fields) -> Counted:
    attention = Grouped(
        heads=fields.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(fields, default=fields.integer("num_attention_heads")),
        head_dim=decoder.head_dim(fields),
        window=windows.window(fields, None),
        fused=True,
    )
    width, activation = fields.integer("intermediate_size"), fields.text("hidden_act", "silu")

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from layer.gated("mlp", "mlp", width, activation, ("gate_up_proj", "down_proj"))

    return counted(fields, write, "an architecture that it was not tried on")
