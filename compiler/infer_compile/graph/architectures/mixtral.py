"""MixtralForCausalLM: experts in every layer. Source: transformers 5.23, ``models/mixtral``."""

from __future__ import annotations

from ...runtime.formats.program import Routing
from .. import decoder, windows
from ..fields import Fields
from ..mixture import MixtureShape, chosen

NAME = "MixtralForCausalLM"
EXPERT = ("w1", "w3", "w2")


def read(fields: Fields) -> decoder.Decoder:
    layers = fields.integer("num_hidden_layers")
    mixture = MixtureShape(
        experts=fields.integer("num_local_experts"),
        per_token=chosen(fields, "num_local_experts"),
        width=fields.integer("intermediate_size"),
        module="block_sparse_moe",
        names=EXPERT,
        routing=Routing(normalized=True),
    )
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        windows=(windows.window(fields, None),) * layers,
        mixtures=(mixture,) * layers,
    )
