"""MixtralForCausalLM: experts in every layer. Source: transformers 5.23, ``models/mixtral``."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation

NAMES = ("MixtralForCausalLM",)
EXPERT = ("w1", "w3", "w2")


def read(fields: Fields) -> Counted:
    attention = Grouped(
        heads=fields.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        window=windows.window(fields, None),
    )
    mixture = MixtureShape(
        experts=fields.integer("num_local_experts"),
        per_token=chosen(fields, "num_local_experts"),
        width=fields.integer("intermediate_size"),
        module="block_sparse_moe",
        names=EXPERT,
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from mix(layer, mixture)

    return counted(fields, write, "mixture of experts")
