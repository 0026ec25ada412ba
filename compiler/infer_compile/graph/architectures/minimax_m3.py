"""MiniMax-M3: after some dense layers, experts and attention to blocks of keys that an index selects. Source:
transformers 5.23, ``models/minimax_m3_vl``. What sees, and layers that predict further tokens, is not
counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .. import decoder
from ..counted import Counted, counted, language
from ..fields import Fields
from ..grouped import Grouped, attend
from ..latent import Index
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from .mixtral import EXPERT

NAMES = ("MiniMaxM3ForCausalLM", "MiniMaxM3SparseForConditionalGeneration")
FLAGS = {"0": "no", "1": "yes"}
SPARSE = "sparse_attention_config"


def read(fields: Fields) -> Counted:
    text = language(fields)
    layers = text.integer("num_hidden_layers")
    text.need("moe_layer_freq")
    text.need(SPARSE)
    mixed = text.kinds("moe_layer_freq", layers, FLAGS) or ()
    section = text.section(SPARSE)
    if section is None and text.has(SPARSE):
        text.wrong(SPARSE, "an object that tells which layers select keys, and how")
    sparse = section or Fields({}, text.where)
    sparse.need("sparse_attention_freq")
    indexed = sparse.kinds("sparse_attention_freq", layers, FLAGS) or ()
    size = decoder.head_dim(text)
    full = Grouped(
        heads=text.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(text),
        head_dim=size,
        norms=(size, size) if text.boolean("use_qk_norm", True) else None,
    )
    blocks = sparse.integer("sparse_topk_blocks") * sparse.integer("sparse_block_size")
    heads, index_dim = sparse.integer("sparse_num_index_heads"), sparse.integer("sparse_index_dim")
    dense, activation = text.integer("dense_intermediate_size"), text.text("hidden_act", "silu")
    shared = text.integer("n_shared_experts", minimum=0)
    mixture = MixtureShape(
        experts=text.integer("num_local_experts"),
        per_token=chosen(text, "num_local_experts"),
        width=text.integer("intermediate_size"),
        module="block_sparse_moe",
        corrections=("e_score_correction_bias",) if text.boolean("use_routing_bias", True) else (),
        names=EXPERT,
        shared="block_sparse_moe.shared_experts" if shared else "",
        shared_width=shared * text.integer("shared_intermediate_size"),
        shared_names=("gate_proj", "up_proj", "down_proj"),
        activation=activation,
    )

    def write(layer: Layer) -> Iterator[Operation]:
        yield layer.norm("attention.norm", "input_layernorm")
        if indexed[layer.index] == "yes":
            yield from _index(layer, heads, index_dim)
            yield from attend(layer, replace(full, selected=blocks))
        else:
            yield from attend(layer, full)
        yield layer.norm("mlp.norm", "post_attention_layernorm")
        if mixed[layer.index] == "yes":
            yield from mix(layer, mixture)
        else:
            yield from layer.gated("mlp", "mlp", dense, activation)

    nested = text is not fields
    return counted(
        text,
        write,
        "attention to selected blocks; mixture of experts",
        tied=fields.boolean("tie_word_embeddings", False),
        prefix="language_model.model." if nested else "model.",
        head="language_model.lm_head" if nested else "lm_head",
    )


def _index(layer: Layer, heads: int, size: int) -> Iterator[Operation]:
    module = "self_attn.index"
    rows = {f"{module}_q_proj": heads * size, f"{module}_k_proj": size}
    yield layer.linear("attention.index.qk", rows, layer.hidden, output="index_qk")
    norms = {f"{module}_q_norm.weight": (size,), f"{module}_k_norm.weight": (size,)}
    yield layer.control("attention.index.norms", vectors=norms)
    yield Index(name=layer.name("attention.index"), layer=layer.index, heads=heads, head_dim=size)
