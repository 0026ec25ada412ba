"""Qwen2ForCausalLM: Qwen2 and Qwen2.5, with a bias on query, key and value. Source: transformers 5.23,
``models/qwen2/configuration_qwen2.py`` and ``modeling_qwen2.py``."""

from __future__ import annotations

from .. import decoder, windows
from ..fields import Fields

NAME = "Qwen2ForCausalLM"

DEFAULT_WINDOW = 4096
DEFAULT_FULL_LAYERS = 28
"""``sliding_window`` and ``max_window_layers`` where a config uses a window without naming them."""


def layer_windows(fields: Fields) -> tuple[int | None, ...]:
    """With ``use_sliding_window`` the layers from ``max_window_layers`` on have the window, or those that
    ``layer_types`` names."""
    size = windows.window(fields, DEFAULT_WINDOW) if fields.boolean("use_sliding_window", False) else None
    full = fields.integer("max_window_layers", DEFAULT_FULL_LAYERS, minimum=0)
    implied = tuple(size if layer >= full else None for layer in range(fields.integer("num_hidden_layers")))
    return windows.by_layer(fields, implied, size)


def read(fields: Fields) -> decoder.Decoder:
    return decoder.decoder(
        fields,
        kv_heads=decoder.kv_heads(fields),
        head_dim=decoder.head_dim(fields),
        windows=layer_windows(fields),
        qkv_bias=True,
    )
