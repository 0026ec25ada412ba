"""Step 3.7 Flash: three layers see a window, the fourth everything; each head's output has a gate. Source:
transformers 5.23, ``models/step3p7``. What sees, and layers that predict further tokens, is not counted."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted, language
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix_stacked
from ..operations import Operation

NAMES = ("Step3p7FlashForCausalLM",)


def read(fields: Fields) -> Counted:
    """``attention_other_setting`` gives the query heads of layers with a window, where they differ."""
    text = language(fields)
    heads, groups, size = text.integer("num_attention_heads"), decoder.kv_heads(text), decoder.head_dim(text)
    other = text.section("attention_other_setting")
    near = heads if other is None else other.integer("num_attention_heads", heads)
    window = text.integer("sliding_window")
    text.need("layer_types")
    seen = windows.by_layer(text, (window,) * text.integer("num_hidden_layers"), window)
    dense = text.integer("first_k_dense_replace", minimum=0)
    width, hidden = text.integer("intermediate_size"), text.integer("hidden_size")
    expert = text.integer("moe_intermediate_size")
    mixture = MixtureShape(
        experts=text.integer("num_experts"),
        per_token=chosen(text, "num_experts"),
        width=expert,
        module="moe",
        corrections=("router_bias",) if text.boolean("use_moe_router_bias", True) else (),
        shared="share_expert",
        shared_width=text.integer("share_expert_dim"),
    )
    tensors = (
        ("moe.gate_proj.weight", (expert, hidden)),
        ("moe.up_proj.weight", (expert, hidden)),
        ("moe.down_proj.weight", (hidden, expert)),
    )

    def write(layer: Layer) -> Iterator[Operation]:
        limit = seen[layer.index]
        attention = Grouped(
            heads=heads if limit is None else near,
            kv_heads=groups,
            head_dim=size,
            window=limit,
            norms=(size, size),
        )
        yield layer.norm("attention.norm", "input_layernorm")
        yield layer.control("attention.gate", {"self_attn.g_proj.weight": (attention.heads, layer.hidden)})
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if layer.index < dense:
            yield from layer.gated("mlp", "mlp", width, "silu")
        else:
            yield from mix_stacked(layer, mixture, tensors)

    reason = "a gate on each head's output; mixture of experts"
    return counted(text, write, reason, tied=fields.boolean("tie_word_embeddings", False))
