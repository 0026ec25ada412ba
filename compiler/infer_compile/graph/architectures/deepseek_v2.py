"""DeepseekV2ForCausalLM: latent attention, experts after some dense layers. Source: arXiv 2405.04434;
transformers 5.23, ``models/deepseek_v2``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...runtime.formats.program import Routing
from .. import latent_layer
from ..counted import Counted, counted
from ..fields import Fields
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation

NAMES = ("DeepseekV2ForCausalLM",)
LIMITED = "group_limited_greedy"


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
    lacks: str = "",
) -> Counted:
    """DeepSeek's layers: experts from ``first_k_dense_replace`` on, ``corrected`` by a bias per expert.

    ``indexes`` tells which layers select keys with an index of their own; the others of such a model use
    what the layer before them selected. ``lacks``: what else our own engine does not run. Layers that predict
    further tokens are not counted.
    """
    dense = fields.integer("first_k_dense_replace", minimum=0)
    attention = latent_layer.read(fields, indexed=indexes is not None)
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
        routing=_corrected(fields) if corrected else _greedy(fields),
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from latent_layer.attend(layer, attention, indexes is not None and indexes(layer.index))
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if layer.index < dense or layer.index % every:
            yield from layer.gated("mlp", "mlp", width, activation)
        else:
            yield from mix(layer, mixture)

    reasons = (lacks, latent_layer.not_native(attention), *_strange(fields, corrected))
    return counted(fields, write, "; ".join(filter(None, reasons)), tied=tied, prefix=prefix, head=head)


def _greedy(fields: Fields) -> Routing:
    """DeepSeek-V2's: arXiv 2405.04434, section 2.2."""
    scale = fields.number("routed_scaling_factor", 1.0)
    if fields.text("topk_method", "greedy") != LIMITED:
        return Routing(normalized=False, scale=scale)
    groups, kept = _groups(fields, best=1)
    return Routing(normalized=False, groups=groups, kept_groups=kept, scale=scale)


def _corrected(fields: Fields) -> Routing:
    """DeepSeek-V3's: arXiv 2412.19437, section 2.1.2."""
    best = 2
    groups, kept = _groups(fields, best)
    return Routing(
        normalized=fields.boolean("norm_topk_prob", True),
        likelihood="sigmoid",
        groups=groups,
        kept_groups=kept,
        group_best=best if groups > 1 else 1,
        scale=fields.number("routed_scaling_factor", 1.0),
    )


def _groups(fields: Fields, best: int) -> tuple[int, int]:
    """Groups of experts, and how many take part: one where all do. A group is ranked by its ``best``."""
    groups, kept = fields.integer("n_group", 1), fields.integer("topk_group", 1)
    if not fields.sound("n_group", "topk_group", "n_routed_experts", "num_experts_per_tok"):
        return 1, 1
    experts, per_token = fields.integer("n_routed_experts"), fields.integer("num_experts_per_tok")
    if kept >= groups:
        if kept > groups:
            fields.contradiction(
                f"topk_group {kept} is more than n_group {groups}", "some of the groups take part"
            )
        return 1, 1
    if experts % groups or experts // groups < best:
        fields.contradiction(
            f"n_routed_experts {experts} do not make {groups} groups (n_group)",
            f"groups have equally many experts, {best} or more",
        )
        return 1, 1
    if per_token > kept * (experts // groups):
        fields.contradiction(
            f"num_experts_per_tok {per_token} is more than {kept} groups (topk_group) of {experts // groups}",
            "a token chooses among the experts of these groups",
        )
    return groups, kept


def _strange(fields: Fields, corrected: bool) -> list[str]:
    """What some config may ask for and no published one does."""
    found = []
    if (asked := fields.text("hidden_act", "silu")) != "silu":
        found.append(f"hidden_act {asked!r}; the gate is silu")
    likelihood = "sigmoid" if corrected else "softmax"
    if (asked := fields.text("scoring_func", likelihood)) != likelihood:
        found.append(f"scoring_func {asked!r}; experts are chosen by a {likelihood}")
    if not corrected and (asked := fields.text("topk_method", "greedy")) not in ("greedy", LIMITED):
        found.append(f"topk_method {asked!r}")
    if not corrected and fields.boolean("norm_topk_prob", False):
        found.append("norm_topk_prob; choices of DeepSeek-V2 are not normalized")
    if fields.boolean("mlp_bias", False):
        found.append("mlp_bias")
    return found
