"""Grouped-query attention in the variants that are counted and not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .layer import Layer
from .operations import Attend, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """``norms``: elements of the weights that normalise queries and keys. ``gated``: the query projection
    has a second half that gates the output. ``values``: whether values have a projection of their own (they
    are made from the keys' otherwise, and differ from them, so both are cached). ``fused``: one tensor for
    query, key and value. ``sinks``: the tensor with a logit per head."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    window: int | None = None
    selected: int | None = None
    bias: bool = False
    output_bias: bool = False
    norms: tuple[int, int] | None = None
    gated: bool = False
    values: bool = True
    fused: bool = False
    sinks: str = ""
    module: str = "self_attn"
    output: str = "o_proj"


def attend(layer: Layer, shape: Grouped) -> Iterator[Operation]:
    """The operations from ``normed`` to the sum with ``x``."""
    value_dim = shape.value_dim or shape.head_dim
    module = shape.module
    rows = {
        "q_proj": shape.heads * shape.head_dim * (2 if shape.gated else 1),
        "k_proj": shape.kv_heads * shape.head_dim,
    }
    if shape.values:
        rows["v_proj"] = shape.kv_heads * value_dim
    if shape.fused:
        rows = {"qkv_proj": sum(rows.values())}
    modules = {f"{module}.{name}": size for name, size in rows.items()}
    yield layer.linear("attention.qkv", modules, layer.hidden, bias=shape.bias, output="qkv")
    if shape.norms is not None:
        queries, keys = shape.norms
        vectors = {f"{module}.q_norm.weight": (queries,), f"{module}.k_norm.weight": (keys,)}
        yield layer.control("attention.norms", vectors=vectors)
    yield Attend(
        name=layer.name("attention"),
        layer=layer.index,
        input="qkv",
        output="attended",
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        window=shape.window,
        selected=shape.selected,
        value_dim=shape.value_dim,
        sinks=layer.source(f"{module}.{shape.sinks}", shape.heads) if shape.sinks else None,
    )
    yield layer.linear(
        "attention.output",
        {f"{module}.{shape.output}": layer.hidden},
        shape.heads * value_dim,
        bias=shape.output_bias,
        input="attended",
        add=True,
    )
