"""The Llama family's shape: pre-norm decoder layers of grouped-query attention and a gated MLP.

An architecture reads its config into a ``Decoder``; this file turns that into operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..runtime.formats.kv import HEAD_DIMS
from .fields import Fields
from .graph import Graph
from .layer import Layer
from .mixture import MixtureShape, mix
from .operations import Attend, Embed, Gate, HeadNorm, Linear, Norm, Operation, Rotary, Select
from .rope import Rope
from .rope import read as read_rope
from .rotary import Rotation, rotation
from .source import Source

EPSILON = 1e-6
"""``rms_norm_eps`` where a config names none: the default of these four in transformers 5.23."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Everything that the layers of the family differ in. ``windows`` has one entry per layer, and so has
    ``mixtures`` where some of the layers have experts in place of the MLP."""

    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    rope: Rope
    tied: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    mixtures: tuple[MixtureShape | None, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.windows)


def kv_heads(fields: Fields, default: int | None = None) -> int:
    """``num_key_value_heads``, a divisor of the query heads."""
    heads = fields.integer("num_attention_heads")
    groups = fields.integer("num_key_value_heads", default)
    if fields.sound("num_attention_heads", "num_key_value_heads") and heads % groups:
        fields.contradiction(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}",
            "every key head serves the same number of query heads",
        )
    return groups


def head_dim(fields: Fields, default: int | None = None) -> int:
    """``head_dim``, else ``default``, else the hidden size over the heads; even, for the rotary pairs."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if default is None and not fields.has("head_dim"):
        if fields.sound("hidden_size", "num_attention_heads") and hidden % heads:
            fields.contradiction(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}",
                "head_dim is not given, so it would be their quotient",
                "give head_dim",
            )
        default = max(1, hidden // heads)
    size = fields.integer("head_dim", default)
    if fields.sound("head_dim", "hidden_size", "num_attention_heads") and size % 2:
        fields.contradiction(f"head_dim {size} is odd", "rotary embedding turns pairs of elements")
    return size


def decoder(
    fields: Fields,
    *,
    kv_heads: int,
    head_dim: int,
    windows: tuple[int | None, ...],
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    head_norms: bool = False,
    mixtures: tuple[MixtureShape | None, ...] = (),
) -> Decoder:
    """The fields that all architectures of the family share, joined with those that they read differently."""
    return Decoder(
        vocabulary=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        intermediate=fields.integer("intermediate_size"),
        heads=fields.integer("num_attention_heads"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=fields.number("rms_norm_eps", EPSILON),
        activation=fields.text("hidden_act", "silu"),
        rope=read_rope(fields),
        tied=fields.boolean("tie_word_embeddings", False),
        windows=windows,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        head_norms=head_norms,
        mixtures=mixtures,
    )


def graph(shape: Decoder, architecture: str, name: str) -> Graph:
    """The operations of ``shape``."""
    turn = rotation(shape.head_dim, shape.rope.theta, shape.rope.scaling)
    operations: list[Operation] = [Embed(name="embed", table=_table(shape), output="x")]
    for layer in range(shape.layers):
        operations += attention(shape, turn, layer)
        mixture = shape.mixtures[layer] if shape.mixtures else None
        operations += mlp(shape, layer) if mixture is None else experts(shape, layer, mixture)
    operations += _epilogue(shape)
    return Graph(
        name=name,
        architecture=architecture,
        vocabulary=shape.vocabulary,
        hidden=shape.hidden,
        layers=shape.layers,
        max_context=shape.rope.max_context,
        tied=shape.tied,
        operations=tuple(operations),
        native_reason=not_native(shape),
    )


def not_native(shape: Decoder) -> str:
    """Why our own engine does not run layers of this shape; empty where it does."""
    reasons = []
    if shape.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        reasons.append(f"head_dim {shape.head_dim}; the attention kernels know {known}")
    if shape.activation != "silu":
        reasons.append(f"hidden_act {shape.activation!r}; the gate is silu")
    return "; ".join(reasons)


def _table(shape: Decoder) -> Source:
    return Source("model.embed_tokens.weight", (shape.vocabulary, shape.hidden))


def _norm(shape: Decoder, layer: int, part: str, source: str) -> Norm:
    return Norm(
        name=f"layers.{layer}.{part}.norm",
        layer=layer,
        weight=Source(f"model.layers.{layer}.{source}.weight", (shape.hidden,)),
        epsilon=shape.epsilon,
        input="x",
        output="normed",
    )


def _linear(
    name: str,
    layer: int,
    parts: dict[str, int],
    cols: int,
    bias: bool,
    *,
    input: str,
    output: str,
    add: bool = False,
) -> Linear:
    """A product with ``parts``: checkpoint module to outputs, stacked in this order."""
    prefix = f"model.layers.{layer}."
    return Linear(
        name=f"layers.{layer}.{name}",
        layer=layer,
        weights=tuple(Source(f"{prefix}{part}.weight", (rows, cols)) for part, rows in parts.items()),
        biases=tuple(Source(f"{prefix}{part}.bias", (rows,)) for part, rows in parts.items()) if bias else (),
        input=input,
        output=output,
        add=add,
    )


def attention(shape: Decoder, turn: Rotation, layer: int) -> Iterator[Operation]:
    """A layer's attention, its norm and its product for queries, keys and values first; adds to ``x``."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    module = "self_attn"
    yield _norm(shape, layer, "attention", "input_layernorm")
    yield _linear(
        "attention.qkv",
        layer,
        {f"{module}.q_proj": queries, f"{module}.k_proj": keys, f"{module}.v_proj": keys},
        shape.hidden,
        shape.qkv_bias,
        input="normed",
        output="qkv",
    )
    if shape.head_norms:
        parts = (("query", "q_norm", 0, shape.heads), ("key", "k_norm", shape.heads, shape.kv_heads))
        for part, source, first, heads in parts:
            yield HeadNorm(
                name=f"layers.{layer}.attention.{part}_norm",
                layer=layer,
                weight=Source(f"model.layers.{layer}.{module}.{source}.weight", (shape.head_dim,)),
                epsilon=shape.epsilon,
                buffer="qkv",
                first_head=first,
                heads=heads,
            )
    yield Rotary(
        name=f"layers.{layer}.attention.rotary",
        layer=layer,
        buffer="qkv",
        first_head=0,
        heads=shape.heads + shape.kv_heads,
        head_dim=shape.head_dim,
        rotation=turn,
    )
    yield Attend(
        name=f"layers.{layer}.attention",
        layer=layer,
        input="qkv",
        output="attended",
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        window=shape.windows[layer],
    )
    yield _linear(
        "attention.output",
        layer,
        {f"{module}.o_proj": shape.hidden},
        queries,
        shape.output_bias,
        input="attended",
        output="x",
        add=True,
    )


def mlp(shape: Decoder, layer: int) -> Iterator[Operation]:
    """The gated MLP of a layer, its norm first; adds to ``x``."""
    width = shape.intermediate
    yield _norm(shape, layer, "mlp", "post_attention_layernorm")
    yield _linear(
        "mlp.gate_up",
        layer,
        {"mlp.gate_proj": width, "mlp.up_proj": width},
        shape.hidden,
        shape.mlp_bias,
        input="normed",
        output="gate_up",
    )
    yield Gate(
        name=f"layers.{layer}.mlp.gate",
        layer=layer,
        activation=shape.activation,
        input="gate_up",
        output="gated",
        width=width,
    )
    yield _linear(
        "mlp.down",
        layer,
        {"mlp.down_proj": shape.hidden},
        width,
        shape.mlp_bias,
        input="gated",
        output="x",
        add=True,
    )


def experts(shape: Decoder, layer: int, mixture: MixtureShape) -> Iterator[Operation]:
    """The mixture of experts of a layer, its norm first; adds to ``x``."""
    yield _norm(shape, layer, "mlp", "post_attention_layernorm")
    yield from mix(Layer(layer, f"model.layers.{layer}.", shape.hidden, shape.epsilon), mixture)


def _epilogue(shape: Decoder) -> Iterator[Operation]:
    head = _table(shape) if shape.tied else Source("lm_head.weight", (shape.vocabulary, shape.hidden))
    yield Select(name="select", input="x", output="selected", width=shape.hidden)
    yield Norm(
        name="norm",
        weight=Source("model.norm.weight", (shape.hidden,)),
        epsilon=shape.epsilon,
        input="selected",
        output="final",
    )
    yield Linear(name="head", role="head", tied=shape.tied, weights=(head,), input="final", output="logits")
