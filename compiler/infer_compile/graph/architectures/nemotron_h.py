"""NemotronHForCausalLM: each layer is one of Mamba-2, attention, experts or an MLP. Source: transformers
5.23, ``models/nemotron_h``; Mamba-2: arXiv 2405.21060. Layers that predict further tokens are not counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import decoder
from ..counted import Counted, counted
from ..fields import Fields
from ..grouped import Grouped, attend
from ..layer import Layer
from ..mixture import MixtureShape, chosen, mix
from ..operations import Operation
from ..state import StateMix, element_bytes

NAMES = ("NemotronHForCausalLM",)
KINDS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
MLP = ("up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Mamba:
    heads: int
    head_dim: int
    groups: int
    state: int
    kernel: int
    element_bytes: int
    bias: bool
    convolution_bias: bool


def read(fields: Fields) -> Counted:
    layers = fields.integer("num_hidden_layers")
    fields.need("hybrid_override_pattern")
    kinds = fields.kinds("hybrid_override_pattern", layers, KINDS) or ()
    bias = fields.boolean("attention_bias", False)
    attention = Grouped(
        heads=fields.integer("num_attention_heads"),
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        bias=bias,
        output_bias=bias,
        module="mixer",
    )
    mamba = Mamba(
        fields.integer("mamba_num_heads"),
        fields.integer("mamba_head_dim"),
        fields.integer("n_groups"),
        fields.integer("ssm_state_size"),
        fields.integer("conv_kernel"),
        element_bytes(fields, "mamba_ssm_cache_dtype"),
        fields.boolean("mamba_proj_bias", False),
        fields.boolean("use_conv_bias", True),
    )
    mixture = _mixture(fields) if "moe" in kinds else None
    width = fields.integer("intermediate_size")
    mlp_bias = fields.boolean("mlp_bias", False)

    def write(layer: Layer) -> Iterator[Operation]:
        kind = kinds[layer.index]
        yield layer.norm("norm", "norm")
        if kind == "mamba":
            yield from _mamba(layer, mamba)
        elif kind == "attention":
            yield from attend(layer, attention)
        elif kind == "moe" and mixture is not None:
            yield from _experts(layer, mixture)
        else:
            yield from layer.plain("mlp", "mixer", width, MLP, mlp_bias)

    return counted(
        fields,
        write,
        "Mamba-2 layers, which keep a state in place of a cache; mixture of experts",
        epsilon="layer_norm_epsilon",
        prefix="backbone.",
        table="embeddings",
        final="norm_f",
    )


def _mixture(fields: Fields) -> MixtureShape:
    shared = fields.integer("n_shared_experts", minimum=0)
    return MixtureShape(
        experts=fields.integer("n_routed_experts"),
        per_token=chosen(fields, "n_routed_experts"),
        width=fields.integer("moe_intermediate_size"),
        module="mixer",
        corrections=("gate.e_score_correction_bias",),
        names=MLP,
        inputs=fields.integer("moe_latent_size") if fields.has("moe_latent_size") else None,
        shared="mixer.shared_experts" if shared else "",
        shared_width=fields.integer("moe_shared_expert_intermediate_size") if shared else 0,
        shared_bias=fields.boolean("mlp_bias", False),
    )


def _experts(layer: Layer, mixture: MixtureShape) -> Iterator[Operation]:
    if mixture.inputs is not None:
        latent = {"mixer.fc1_latent_proj": mixture.inputs}
        yield layer.linear("mlp.fold", latent, layer.hidden, output="folded")
    yield from mix(layer, mixture)
    if mixture.inputs is not None:
        back = {"mixer.fc2_latent_proj": layer.hidden}
        yield layer.linear("mlp.unfold", back, mixture.inputs, input="expert", add=True)


def _mamba(layer: Layer, shape: Mamba) -> Iterator[Operation]:
    inner = shape.heads * shape.head_dim
    channels = inner + 2 * shape.groups * shape.state
    rows = {"mixer.in_proj": inner + channels + shape.heads}
    yield layer.linear("mamba.input", rows, layer.hidden, bias=shape.bias, output="mamba")
    vectors = {
        "dt_bias": (shape.heads,),
        "A_log": (shape.heads,),
        "D": (shape.heads,),
        "conv1d.weight": (channels, 1, shape.kernel),
        "norm.weight": (inner,),
    }
    if shape.convolution_bias:
        vectors["conv1d.bias"] = (channels,)
    yield StateMix(
        name=layer.name("mamba"),
        layer=layer.index,
        output="mixed",
        vectors=tuple(layer.source(f"mixer.{name}", *size) for name, size in vectors.items()),
        heads=shape.heads,
        rows=shape.head_dim,
        cols=shape.state,
        products=2,
        element_bytes=shape.element_bytes,
        channels=channels,
        kernel=shape.kernel,
    )
    rows = {"mixer.out_proj": layer.hidden}
    yield layer.linear("mamba.output", rows, inner, bias=shape.bias, input="mixed", add=True)
