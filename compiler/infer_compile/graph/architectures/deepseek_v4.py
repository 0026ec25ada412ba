"""DeepseekV4ForCausalLM: every layer sees a window of exact keys; most also see compressed ones, all of them
or those that an index selects. The residual stream is ``hc_mult`` streams wide. Source: transformers 5.23,
``models/deepseek_v4``; tensors are named as in the published checkpoints.

Not counted: layers that predict further tokens, and the tables of the first layers that send a token to
experts by its number (integers, one row per token of the vocabulary).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..control import Control
from ..counted import Counted, counted
from ..fields import Fields
from ..latent import Index, LatentAttend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from ..source import Source
from .mixtral import EXPERT

NAMES = ("DeepseekV4ForCausalLM",)

INDEXED = 4
"""The ratio whose compressed keys overlap by half and are selected by an index; with the others all are
seen. Source: as above, ``DeepseekV4CSACompressor`` and ``DeepseekV4HCACompressor``."""
RATIOS = {"0": "0", str(INDEXED): str(INDEXED), "128": "128"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    heads: int
    head_dim: int
    query_rank: int
    groups: int
    output_rank: int
    window: int
    index_heads: int
    index_dim: int
    index_top: int


def read(fields: Fields) -> Counted:
    fields.need("compress_ratios")
    ratios = fields.kinds("compress_ratios", fields.integer("num_hidden_layers"), RATIOS) or ()
    shape = Attention(
        heads=fields.integer("num_attention_heads"),
        head_dim=fields.integer("head_dim"),
        query_rank=fields.integer("q_lora_rank"),
        groups=fields.integer("o_groups"),
        output_rank=fields.integer("o_lora_rank"),
        window=fields.integer("sliding_window"),
        index_heads=fields.integer("index_n_heads"),
        index_dim=fields.integer("index_head_dim"),
        index_top=fields.integer("index_topk"),
    )
    for key, size, ratio in (("head_dim", shape.head_dim, 128), ("index_head_dim", shape.index_dim, INDEXED)):
        if fields.sound(key) and size % ratio:
            fields.wrong(key, f"a multiple of {ratio}, the tokens that a compressed key stands for")
    expert, shared = fields.integer("moe_intermediate_size"), fields.integer("n_shared_experts")
    hashed = fields.integer("num_hash_layers", minimum=0)
    streams, hidden = fields.integer("hc_mult"), fields.integer("hidden_size")
    experts = fields.integer("n_routed_experts")
    per_token = chosen(fields, "n_routed_experts")

    def write(layer: Layer) -> Iterator[Operation]:
        mixture = MixtureShape(
            experts=experts,
            per_token=per_token,
            width=expert,
            module="ffn",
            corrections=("gate.bias",) if layer.index >= hashed else (),
            names=EXPERT,
            shared="ffn.shared_experts",
            shared_width=shared * expert,
        )
        yield _streams(layer, "attn", streams)
        yield layer.norm("attention.norm", "attn_norm")
        yield from _attend(layer, shape, int(ratios[layer.index]))
        yield _streams(layer, "ffn", streams)
        yield layer.norm("mlp.norm", "ffn_norm")
        yield from mix(layer, mixture)

    last = Control(
        name="streams",
        weights=(Source("hc_head_fn", (streams, streams * hidden)),),
        vectors=(Source("hc_head_base", (streams,)), Source("hc_head_scale", (1,))),
    )
    return counted(
        fields,
        write,
        "compressed attention with one key for all heads; mixture of experts; several residual streams",
        prefix="",
        table="embed",
        head="head",
        last=(last,),
    )


def _streams(layer: Layer, part: str, streams: int) -> Operation:
    """What joins the residual streams before a part of the layer and spreads its result after it."""
    rows = (2 + streams) * streams
    return layer.control(
        f"{part}.streams",
        {f"hc_{part}_fn": (rows, streams * layer.hidden)},
        {f"hc_{part}_base": (rows,), f"hc_{part}_scale": (3,)},
    )


def _attend(layer: Layer, shape: Attention, ratio: int) -> Iterator[Operation]:
    inner = shape.heads * shape.head_dim
    rank = shape.query_rank
    down = {"attn.wq_a": rank}
    yield layer.linear("attention.query_down", down, layer.hidden, output="query_latent")
    yield layer.norm("attention.query_norm", "attn.q_norm", rank, input="query_latent", output="query_latent")
    yield layer.linear("attention.query", {"attn.wq_b": inner}, rank, input="query_latent", output="query")
    yield layer.linear("attention.key", {"attn.wkv": shape.head_dim}, layer.hidden, output="latent")
    yield layer.norm("attention.key_norm", "attn.norm", shape.head_dim, input="latent", output="latent")
    sinks = layer.source("attn.attn_sink", shape.heads)
    yield _latent(layer, shape, "attention", window=shape.window, sinks=sinks)
    if ratio:
        yield from _compress(layer, "attn.compressor", shape.head_dim, ratio)
        indexed = ratio == INDEXED
        if indexed:
            yield from _index(layer, shape)
        selected = shape.index_top * ratio if indexed else None
        yield _latent(layer, shape, "attention.compressed", ratio=ratio, selected=selected)
    rows = {"attn.wo_a": shape.groups * shape.output_rank}
    yield layer.linear(
        "attention.output_down", rows, inner // shape.groups, input="attended", output="output_latent"
    )
    yield layer.linear(
        "attention.output",
        {"attn.wo_b": layer.hidden},
        shape.groups * shape.output_rank,
        input="output_latent",
        add=True,
    )


def _latent(
    layer: Layer,
    shape: Attention,
    part: str,
    *,
    ratio: int = 1,
    window: int | None = None,
    selected: int | None = None,
    sinks: Source | None = None,
) -> Operation:
    return LatentAttend(
        name=layer.name(part),
        layer=layer.index,
        output="attended",
        heads=shape.heads,
        key_dim=shape.head_dim,
        value_dim=shape.head_dim,
        head_value_dim=shape.head_dim,
        ratio=ratio,
        window=window,
        selected=selected,
        sinks=sinks,
    )


def _compress(layer: Layer, module: str, size: int, ratio: int) -> Iterator[Operation]:
    """``ratio`` keys become one, as the mean weighted by a gate; with an index each takes part in two."""
    rows = size * (2 if ratio == INDEXED else 1)
    yield layer.linear(
        f"{module}.input", {f"{module}.wkv": rows, f"{module}.wgate": rows}, layer.hidden, output="compressed"
    )
    yield layer.control(module, vectors={f"{module}.ape": (ratio, rows), f"{module}.norm.weight": (size,)})


def _index(layer: Layer, shape: Attention) -> Iterator[Operation]:
    module = "attn.indexer"
    heads, size = shape.index_heads, shape.index_dim
    yield from _compress(layer, f"{module}.compressor", size, INDEXED)
    yield layer.linear(
        f"{module}.query",
        {f"{module}.wq_b": heads * size},
        shape.query_rank,
        input="query_latent",
        output="index_query",
    )
    yield layer.control(f"{module}.weights", {f"{module}.weights_proj.weight": (heads, layer.hidden)})
    yield Index(name=layer.name(module), layer=layer.index, heads=heads, head_dim=size, ratio=INDEXED)
