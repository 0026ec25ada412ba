"""Qwen3MoeForCausalLM: Qwen3's attention and experts in most layers. Source: transformers 5.23,
``models/qwen3_moe``."""

from __future__ import annotations

from ...runtime.formats.program import Routing
from .. import decoder
from ..fields import Fields
from ..mixture import MixtureShape, chosen
from .qwen2 import layer_windows
from .qwen2_moe import sparse

NAME = "Qwen3MoeForCausalLM"


def read(fields: Fields) -> decoder.Decoder:
    bias = fields.boolean("attention_bias", False)
    # Published configs have the one name, those that transformers 5 saves the other.
    experts = "num_local_experts" if fields.has("num_local_experts") else "num_experts"
    mixture = MixtureShape(
        experts=fields.integer(experts),
        per_token=chosen(fields, experts),
        width=fields.integer("moe_intermediate_size"),
        routing=Routing(normalized=fields.boolean("norm_topk_prob", False)),
    )
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        windows=layer_windows(fields),
        qkv_bias=bias,
        output_bias=bias,
        head_norms=True,
        mixtures=sparse(fields, mixture),
    )
