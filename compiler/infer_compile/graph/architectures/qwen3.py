"""Qwen3ForCausalLM: query and key heads are normalised before they turn. Source: transformers 5.23,
``models/qwen3/configuration_qwen3.py`` and ``modeling_qwen3.py``."""

from __future__ import annotations

from .. import decoder
from ..fields import Fields
from .qwen2 import layer_windows

NAME = "Qwen3ForCausalLM"

DEFAULT_HEAD_DIM = 128
"""Where a config names none; unlike in the others it does not follow from the hidden size."""


def read(fields: Fields) -> decoder.Decoder:
    bias = fields.boolean("attention_bias", False)
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields, default=DEFAULT_HEAD_DIM),
        windows=layer_windows(fields),
        qkv_bias=bias,
        output_bias=bias,
        head_norms=True,
    )
