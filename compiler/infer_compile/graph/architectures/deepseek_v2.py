"""DeepseekV2ForCausalLM: latent attention, experts after some dense layers. Source: arXiv 2405.04434;
transformers 5.23, ``models/deepseek_v2``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .. import latent_layer
from ..counted import Counted, counted
from ..fields import Fields
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation

NAMES = ("DeepseekV2ForCausalLM",)


def read(fields: Fields) -> Counted:
    return latent(fields, corrected=fields.text("topk_method", "greedy") == "noaux_tc")


def latent(
    fields: Fields,
    *,
    corrected: bool,
    indexes: Callable[[int], bool] | None = None,
    tied: bool = False,
    prefix: str = "model.",
    head: str = "lm_head",
) -> Counted:
    """DeepSeek's layers: experts from ``first_k_dense_replace`` on, ``corrected`` by a bias per expert.

    ``indexes`` tells which layers select keys with an index of their own; the others of such a model use
    what the layer before them selected. Layers that predict further tokens are not counted.
    """
    dense = fields.integer("first_k_dense_replace", minimum=0)
    runs = indexes is None and dense >= fields.integer("num_hidden_layers")
    attention = latent_layer.read(fields, indexed=indexes is not None, runs=runs)
    every = fields.integer("moe_layer_freq", 1)
    width, activation = fields.integer("intermediate_size"), fields.text("hidden_act", "silu")
    expert = fields.integer("moe_intermediate_size")
    shared = fields.nullable("n_shared_experts", minimum=0) or 0
    mixture = MixtureShape(
        experts=fields.integer("n_routed_experts"),
        per_token=chosen(fields, "n_routed_experts"),
        width=expert,
        corrections=("gate.e_score_correction_bias",) if corrected else (),
        shared="mlp.shared_experts" if shared else "",
        shared_width=shared * expert,
        activation=activation,
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from latent_layer.attend(layer, attention, indexes is not None and indexes(layer.index))
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if layer.index < dense or layer.index % every:
            yield from layer.gated("mlp", "mlp", width, activation)
        else:
            yield from mix(layer, mixture)

    lacks = "latent attention, with keys selected by an index" if indexes else "latent attention"
    reason = lacks if runs else f"{lacks}; mixture of experts"
    return counted(fields, write, reason, tied=tied, prefix=prefix, head=head, assembled=runs)
