"""Gemma 4, dense and with experts: layers that see everything have wider heads, fewer of them for keys, and
make values from keys. Source: transformers 5.23, ``models/gemma4``. What sees or hears is not counted.

Values and keys leave the same projection, but keys are then scaled and turned, so both are cached.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder, windows
from ..counted import Counted, counted, language
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix_stacked
from ..operations import Operation

NAMES = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")


def read(fields: Fields) -> Counted:
    text = language(fields)
    for key, what in (
        ("hidden_size_per_layer_input", "embeddings for each layer"),
        ("num_kv_shared_layers", "keys shared between layers"),
    ):
        if text.integer(key, 0, minimum=0):
            text.wrong(key, f"0: {what} are not counted")
    if text.boolean("use_double_wide_mlp", False):
        text.wrong("use_double_wide_mlp", "false: MLPs of two widths are not counted")
    window = text.integer("sliding_window")
    text.need("layer_types")
    seen = windows.by_layer(text, (window,) * text.integer("num_hidden_layers"), window)
    near, far = _attention(text, window)
    width = text.integer("intermediate_size")
    activation = text.text("hidden_activation", "gelu_pytorch_tanh")
    mixture = _mixture(text) if text.boolean("enable_moe_block", False) else None

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, far if seen[layer.index] is None else near)
        yield layer.norm("attention.after", "post_attention_layernorm")
        yield layer.norm("mlp.norm", "pre_feedforward_layernorm")
        yield from layer.gated("mlp", "mlp", width, activation)
        if mixture is not None:
            yield from _experts(layer, mixture)
        yield layer.norm("mlp.after", "post_feedforward_layernorm")
        yield layer.control("scale", vectors={"layer_scalar": (1,)})

    return counted(
        text,
        write,
        "two shapes of attention; norms after each part" + ("; mixture of experts" if mixture else ""),
        tied=fields.boolean("tie_word_embeddings", True),
        prefix="model." if text is fields else "model.language_model.",
    )


def _attention(text: Fields, window: int) -> tuple[Grouped, Grouped]:
    """Of the layers that see a window, and of those that see everything."""
    heads, bias = text.integer("num_attention_heads"), text.boolean("attention_bias", False)
    shared = text.boolean("attention_k_eq_v", False)
    text.need("head_dim")
    size, wide = decoder.head_dim(text), text.integer("global_head_dim")
    groups = decoder.kv_heads(text)
    near = Grouped(
        heads=heads,
        kv_heads=groups,
        head_dim=size,
        window=window,
        bias=bias,
        output_bias=bias,
        norms=(size, size),
    )
    far = Grouped(
        heads=heads,
        kv_heads=text.integer("num_global_key_value_heads") if shared else groups,
        head_dim=wide,
        bias=bias,
        output_bias=bias,
        norms=(wide, wide),
        values=not shared,
    )
    return near, far


def _mixture(text: Fields) -> MixtureShape:
    return MixtureShape(
        experts=text.integer("num_experts"),
        per_token=chosen(text, "num_experts", "top_k_experts"),
        width=text.integer("moe_intermediate_size"),
        module="router",
        router="proj.weight",
        corrections=("per_expert_scale",),
    )


def _experts(layer: Layer, mixture: MixtureShape) -> Iterator[Operation]:
    """Experts run beside the MLP, between norms of their own."""
    yield layer.norm("mlp.after_1", "post_feedforward_layernorm_1")
    yield layer.norm("experts.norm", "pre_feedforward_layernorm_2")
    yield layer.control("router.scale", vectors={"router.scale": (layer.hidden,)})
    tensors = (
        ("experts.gate_up_proj", (2 * mixture.width, layer.hidden)),
        ("experts.down_proj", (layer.hidden, mixture.width)),
    )
    yield from mix_stacked(layer, mixture, tensors)
    yield layer.norm("experts.after", "post_feedforward_layernorm_2")
