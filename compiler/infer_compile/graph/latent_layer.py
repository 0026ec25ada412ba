"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1); the index of DeepSeek-V3.2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from . import rope
from .fields import Fields
from .latent import Index, LatentAttend, Unfolding
from .layer import Layer
from .operations import HeadNorm, Operation
from .rope import Rope
from .rotary import YarnScaling, rotation, sharpened

MODULE = "self_attn"
APART = 8
"""Numbers between what the kernels of latent attention take for aligned."""
EPSILON = 1e-6
"""Of the norms of latent vectors, whatever the config says of the others: transformers 5.23,
``models/deepseek_v3``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Keys are ``nope_dim`` elements unfolded from ``rank`` cached ones, and ``rope_dim`` cached as they are.
    Queries come through ``query_rank`` elements, or at once. ``index_top``: the keys that an index of
    ``index_heads`` heads selects; which layers have an index of their own is told for each."""

    heads: int
    rank: int
    query_rank: int | None
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool
    index_heads: int = 0
    index_dim: int = 0
    index_top: int | None = None
    rope: Rope | None = None
    """Where a Program can be made of it."""
    neighbours: bool = True


def read(fields: Fields, *, indexed: bool = False) -> Latent:
    """The fields of DeepSeek's configs."""
    rank = fields.nullable("q_lora_rank")
    if indexed and rank is None and fields.sound("q_lora_rank"):
        fields.wrong("q_lora_rank", "a whole number: the index reads the queries' latent vector")
    return Latent(
        heads=fields.integer("num_attention_heads"),
        rank=fields.integer("kv_lora_rank"),
        query_rank=rank,
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        bias=fields.boolean("attention_bias", False),
        index_heads=fields.integer("index_n_heads") if indexed else 0,
        index_dim=fields.integer("index_head_dim") if indexed else 0,
        index_top=fields.integer("index_topk") if indexed else None,
        rope=None if indexed else rope.read(fields),
        neighbours=fields.boolean("rope_interleave", True),
    )


def not_native(shape: Latent) -> str:
    """Why our own engine does not run attention of this shape; empty where it does."""
    if shape.rope is None:
        return "keys that an index selects"
    parts = {
        "qk_nope_head_dim": shape.nope_dim,
        "qk_rope_head_dim": shape.rope_dim,
        "kv_lora_rank": shape.rank,
    }
    odd = ", ".join(f"{name} {size}" for name, size in parts.items() if size % APART)
    return f"{odd}; the kernels of latent attention take multiples of {APART}" if odd else ""


def attend(layer: Layer, shape: Latent, own_index: bool) -> Iterator[Operation]:
    """The operations from ``normed`` to the sum with ``x``."""
    key_dim = shape.nope_dim + shape.rope_dim
    inner = replace(layer, epsilon=EPSILON)
    queries = {f"{MODULE}.{'q_b_proj' if shape.query_rank else 'q_proj'}": shape.heads * key_dim}
    if shape.query_rank:
        down = {f"{MODULE}.q_a_proj": shape.query_rank}
        yield layer.linear("attention.query_down", down, layer.hidden, bias=shape.bias, output="query_latent")
        yield inner.norm(
            "attention.query_norm",
            f"{MODULE}.q_a_layernorm",
            shape.query_rank,
            input="query_latent",
            output="query_latent",
        )
        yield layer.linear("attention.query", queries, shape.query_rank, input="query_latent", output="query")
    else:
        yield layer.linear("attention.query", queries, layer.hidden, output="query")
    down = {f"{MODULE}.kv_a_proj_with_mqa": shape.rank + shape.rope_dim}
    yield layer.linear("attention.latent", down, layer.hidden, bias=shape.bias, output="latent")
    yield HeadNorm(
        name=layer.name("attention.latent_norm"),
        layer=layer.index,
        weight=layer.source(f"{MODULE}.kv_a_layernorm.weight", shape.rank),
        epsilon=EPSILON,
        buffer="latent",
        first_head=0,
        heads=1,
    )
    unfolded = {f"{MODULE}.kv_b_proj": shape.heads * (shape.nope_dim + shape.value_dim)}
    yield layer.linear(
        "attention.unfold", unfolded, shape.rank, input="latent", output="unfolded", role="unfolding"
    )
    if own_index:
        yield from _index(layer, shape)
    yield LatentAttend(
        name=layer.name("attention"),
        layer=layer.index,
        output="attended",
        heads=shape.heads,
        key_dim=shape.rank + shape.rope_dim,
        value_dim=shape.rank,
        head_value_dim=shape.value_dim,
        selected=shape.index_top,
        unfolded_dim=key_dim + shape.value_dim,
        unfolding=_unfolding(layer, shape),
    )
    yield layer.linear(
        "attention.output",
        {f"{MODULE}.o_proj": layer.hidden},
        shape.heads * shape.value_dim,
        bias=shape.bias,
        input="attended",
        add=True,
    )


def _unfolding(layer: Layer, shape: Latent) -> Unfolding | None:
    if shape.rope is None:
        return None
    theta, scaling = shape.rope.theta, shape.rope.scaling
    sharper = sharpened(scaling.factor, scaling.mscale_all) if isinstance(scaling, YarnScaling) else 1.0
    return Unfolding(
        query="query",
        latent="latent",
        weight=layer.name("attention.unfold"),
        nope_dim=shape.nope_dim,
        rope_dim=shape.rope_dim,
        rotation=rotation(shape.rope_dim, theta, scaling),
        neighbours=shape.neighbours,
        # A config without a factor for all has 0 there, which sharpens nothing.
        scale=float((shape.nope_dim + shape.rope_dim) ** -0.5 * sharper**2),
    )


def _index(layer: Layer, shape: Latent) -> Iterator[Operation]:
    module = f"{MODULE}.indexer"
    heads, size = shape.index_heads, shape.index_dim
    yield layer.linear(
        "attention.index.query",
        {f"{module}.wq_b": heads * size},
        shape.query_rank or layer.hidden,
        input="query_latent",
        output="index_query",
    )
    yield layer.linear("attention.index.key", {f"{module}.wk": size}, layer.hidden, output="index_key")
    yield layer.control(
        "attention.index.weights",
        {f"{module}.weights_proj.weight": (heads, layer.hidden)},
        {f"{module}.k_norm.weight": (size,), f"{module}.k_norm.bias": (size,)},
    )
    yield Index(name=layer.name("attention.index"), layer=layer.index, heads=heads, head_dim=size)
