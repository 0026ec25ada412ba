"""MiMoV2FlashForCausalLM: most layers see a window and have key heads of another number. Source: transformers
5.23, ``models/mimo_v2_flash``. Layers that predict further tokens are not counted."""

from __future__ import annotations

from collections.abc import Iterator

from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation

NAMES = ("MiMoV2FlashForCausalLM",)
ATTENTION = {"0": "full", "1": "sliding"}
MLP = {"0": "dense", "1": "sparse"}


def read(fields: Fields) -> Counted:
    layers = fields.integer("num_hidden_layers")
    for key in ("hybrid_layer_pattern", "moe_layer_freq"):
        fields.need(key)
    kinds = fields.kinds("hybrid_layer_pattern", layers, ATTENTION) or ()
    mlps = fields.kinds("moe_layer_freq", layers, MLP) or ()
    far = _attention(fields, "", None, fields.boolean("add_full_attention_sink_bias", False))
    window = fields.integer("sliding_window")
    near = _attention(fields, "swa_", window, fields.boolean("add_swa_attention_sink_bias", False))
    width, activation = fields.integer("intermediate_size"), fields.text("hidden_act", "silu")
    expert = fields.integer("moe_intermediate_size")
    shared = fields.nullable("n_shared_experts", minimum=0) or 0
    mixture = MixtureShape(
        experts=fields.integer("n_routed_experts"),
        per_token=chosen(fields, "n_routed_experts"),
        width=expert,
        corrections=("gate.e_score_correction_bias",),
        shared="mlp.shared_experts" if shared else "",
        shared_width=shared * expert,
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, near if kinds[layer.index] == "sliding" else far)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if mlps[layer.index] == "sparse":
            yield from mix(layer, mixture)
        else:
            yield from layer.gated("mlp", "mlp", width, activation)

    reason = "two shapes of attention, values narrower than keys, attention sinks; mixture of experts"
    return counted(fields, write, reason, epsilon="layernorm_epsilon")


def _attention(fields: Fields, prefix: str, window: int | None, sinks: bool) -> Grouped:
    bias = fields.boolean("attention_bias", False)
    return Grouped(
        heads=fields.integer(f"{prefix}num_attention_heads"),
        kv_heads=fields.integer(f"{prefix}num_key_value_heads"),
        head_dim=fields.integer(f"{prefix}head_dim"),
        value_dim=fields.integer(f"{prefix}v_head_dim"),
        window=window,
        bias=bias,
        sinks="attention_sink_bias" if sinks else "",
    )
