"""LlamaForCausalLM: Llama 2, 3 and 3.x, and the many models that follow them. Source: transformers 5.23,
``models/llama/configuration_llama.py`` and ``modeling_llama.py``."""

from __future__ import annotations

from .. import decoder
from ..fields import Fields

NAME = "LlamaForCausalLM"


def read(fields: Fields) -> decoder.Decoder:
    """With ``attention_bias`` or ``mlp_bias`` every projection of that part has a bias; without
    ``num_key_value_heads`` each query head has its own key head."""
    bias = fields.boolean("attention_bias", False)
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields, default=fields.integer("num_attention_heads")),
        head_dim=decoder.head_dim(fields),
        windows=(None,) * fields.integer("num_hidden_layers"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.boolean("mlp_bias", False),
    )
