"""Llama 4: three layers see the chunk of the context that a token lies in, the fourth sees everything.
Source: transformers 5.23, ``models/llama4``. What sees is not counted. A query sees at most a chunk of keys,
on the average half of one; the whole is counted, as for a window."""

from __future__ import annotations

from collections.abc import Iterator

from .. import decoder
from ..counted import Counted, counted, language
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix_stacked
from ..operations import Operation

NAMES = ("Llama4ForConditionalGeneration", "Llama4ForCausalLM")
INTERVAL = 4
"""``no_rope_layer_interval`` where a config names neither it nor ``no_rope_layers``."""
KINDS = {"0": "full", "1": "chunked"}


def read(fields: Fields) -> Counted:
    text = language(fields)
    layers = text.integer("num_hidden_layers")
    kinds = text.kinds("no_rope_layers", layers, KINDS) if text.config.get("no_rope_layers") else None
    every = text.integer("no_rope_layer_interval", INTERVAL)
    chunk = text.integer("attention_chunk_size")
    chunked = [kinds[i] == "chunked" if kinds else bool((i + 1) % every) for i in range(layers)]
    step = text.integer("interleave_moe_layer_step", 1)
    mixed = text.integers("moe_layers")
    heads, kv_heads = text.integer("num_attention_heads"), decoder.kv_heads(text)
    size, bias = decoder.head_dim(text), text.boolean("attention_bias", False)
    hidden, width = text.integer("hidden_size"), text.integer("intermediate_size")
    dense = text.integer("intermediate_size_mlp")
    activation = text.text("hidden_act", "silu")
    module = "feed_forward"
    mixture = MixtureShape(
        experts=text.integer("num_local_experts"),
        per_token=chosen(text, "num_local_experts"),
        width=width,
        module=module,
        router="router.weight",
        shared=f"{module}.shared_expert",
        shared_width=width,
        activation=activation,
    )
    tensors = (
        (f"{module}.experts.gate_up_proj", (hidden, 2 * width)),
        (f"{module}.experts.down_proj", (width, hidden)),
    )

    def write(layer: Layer) -> Iterator[Operation]:
        attention = Grouped(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            window=chunk if chunked[layer.index] else None,
            bias=bias,
            output_bias=bias,
        )
        yield layer.norm("attention.norm", "input_layernorm")
        yield from attend(layer, attention)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if (layer.index in mixed) if mixed is not None else (layer.index + 1) % step == 0:
            yield from mix_stacked(layer, mixture, tensors)
        else:
            yield from layer.gated("mlp", module, dense, activation)

    nested = text is not fields
    return counted(
        text,
        write,
        "chunked attention, layers without rotary embedding; mixture of experts",
        tied=fields.boolean("tie_word_embeddings", False),
        prefix="language_model.model." if nested else "model.",
        head="language_model.lm_head" if nested else "lm_head",
    )
