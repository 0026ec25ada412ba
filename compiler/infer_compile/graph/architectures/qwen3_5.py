"""Qwen3.5, dense and with experts: three layers of gated delta rule (a state in place of a cache), then one
of gated attention. Source: transformers 5.23, ``models/qwen3_5`` and ``models/qwen3_5_moe``. What sees, and
the layer that predicts further tokens, is not counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .. import decoder
from ..counted import Counted, counted, language
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from ..state import StateMix, element_bytes

DENSE = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
MIXED = ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM")
NAMES = DENSE + MIXED
KINDS = {"linear_attention": "linear_attention", "full_attention": "full_attention"}


@dataclass(frozen=True, slots=True)
class Delta:
    """The gated delta rule: ``heads`` states of ``value_dim x key_dim``, kept for ``element_bytes`` each."""

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    element_bytes: int


def read(fields: Fields) -> Counted:
    """With ``num_experts`` each layer has experts, else an MLP."""
    text = language(fields)
    layers = text.integer("num_hidden_layers")
    kinds = text.kinds("layer_types", layers, KINDS)
    if kinds is None:
        every = text.integer("full_attention_interval")
        kinds = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    size, bias = decoder.head_dim(text), text.boolean("attention_bias", False)
    attention = Grouped(
        heads=text.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(text),
        head_dim=size,
        bias=bias,
        output_bias=bias,
        norms=(size, size),
        gated=text.boolean("attn_output_gate", True),
    )
    delta = Delta(
        text.integer("linear_num_value_heads"),
        text.integer("linear_num_key_heads"),
        text.integer("linear_key_head_dim"),
        text.integer("linear_value_head_dim"),
        text.integer("linear_conv_kernel_dim"),
        element_bytes(text, "mamba_ssm_dtype"),
    )
    mlp = _mixture(text) if text.has("num_experts") else _mlp(text)

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        if kinds[layer.index] == "full_attention":
            yield from attend(layer, attention)
        else:
            yield from _linear_attention(layer, delta)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        yield from mlp(layer)

    reason = "linear attention, which keeps a state in place of a cache"
    return counted(
        text,
        write,
        f"{reason}; mixture of experts" if text.has("num_experts") else reason,
        tied=fields.boolean("tie_word_embeddings", False),
        prefix="model." if text is fields else "model.language_model.",
    )


Write = Callable[[Layer], Iterable[Operation]]


def _mlp(text: Fields) -> Write:
    width, activation = text.integer("intermediate_size"), text.text("hidden_act", "silu")
    return lambda layer: layer.gated("mlp", "mlp", width, activation)


def _mixture(text: Fields) -> Write:
    mixture = MixtureShape(
        experts=text.integer("num_experts"),
        per_token=chosen(text, "num_experts"),
        width=text.integer("moe_intermediate_size"),
        shared="mlp.shared_expert",
        shared_width=text.integer("shared_expert_intermediate_size"),
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield from mix(layer, mixture)
        yield layer.control("mlp.shared.scale", {"mlp.shared_expert_gate.weight": (1, layer.hidden)})

    return write


def _linear_attention(layer: Layer, shape: Delta) -> Iterator[Operation]:
    module = "linear_attn"
    keys, values = shape.key_heads * shape.key_dim, shape.heads * shape.value_dim
    channels = 2 * keys + values
    modules = {f"{module}.in_proj_qkv": channels, f"{module}.in_proj_z": values}
    yield layer.linear("attention.qkvz", modules, layer.hidden, output="qkv")
    yield layer.control(
        "attention.decay",
        {f"{module}.in_proj_{part}.weight": (shape.heads, layer.hidden) for part in "ba"},
    )
    vectors = {
        "dt_bias": (shape.heads,),
        "A_log": (shape.heads,),
        "conv1d.weight": (channels, 1, shape.kernel),
        "norm.weight": (shape.value_dim,),
    }
    yield StateMix(
        name=layer.name("attention"),
        layer=layer.index,
        output="attended",
        vectors=tuple(layer.source(f"{module}.{name}", *size) for name, size in vectors.items()),
        heads=shape.heads,
        rows=shape.value_dim,
        cols=shape.key_dim,
        products=3,
        element_bytes=shape.element_bytes,
        channels=channels,
        kernel=shape.kernel,
    )
    yield layer.linear(
        "attention.output", {f"{module}.out_proj": layer.hidden}, values, input="attended", add=True
    )
