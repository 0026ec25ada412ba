"""MistralForCausalLM: one sliding window over all layers, or none. Source: transformers 5.23,
``models/mistral/configuration_mistral.py`` and ``modeling_mistral.py``."""

from __future__ import annotations

from .. import decoder, windows
from ..fields import Fields

NAME = "MistralForCausalLM"

DEFAULT_WINDOW = 4096
"""Where a config does not mention ``sliding_window``; null means none."""


def read(fields: Fields) -> decoder.Decoder:
    size = windows.window(fields, DEFAULT_WINDOW)
    implied = (size,) * fields.integer("num_hidden_layers")
    given = windows.by_layer(fields, implied, size)
    if given != implied:
        fields.contradiction(
            "layer_types mixes kinds of attention",
            "MistralForCausalLM has one window for all layers",
            "remove layer_types, or name the architecture that the model really has",
        )
    return decoder.decoder(
        fields, kv_heads=decoder.kv_heads(fields), head_dim=decoder.head_dim(fields), windows=implied
    )
