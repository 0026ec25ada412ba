"""MiniMaxM2ForCausalLM: experts in every layer, queries and keys normalised over all heads at once. Source:
transformers 5.23, ``models/minimax_m2``. The layers that predict further tokens are not counted."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from .mixtral import EXPERT

NAMES = ("MiniMaxM2ForCausalLM",)


def read(fields: Fields) -> Counted:
    heads, kv_heads = fields.integer("num_attention_heads"), decoder.kv_heads(fields)
    size = decoder.head_dim(fields)
    attention = Grouped(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        norms=(heads * size, kv_heads * size) if fields.boolean("use_qk_norm", True) else None,
    )
    mixture = MixtureShape(
        experts=fields.integer("num_local_experts"),
        per_token=chosen(fields, "num_local_experts"),
        width=fields.integer("intermediate_size"),
        module="block_sparse_moe",
        corrections=("e_score_correction_bias",) if fields.boolean("use_routing_bias", True) else (),
        names=EXPERT,
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from mix(layer, mixture)

    return counted(fields, write, "mixture of experts")
