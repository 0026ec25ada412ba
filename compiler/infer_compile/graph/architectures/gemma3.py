"""Gemma 3: five layers see a window, the sixth everything. Source: transformers 5.23, ``models/gemma3``. What
sees is not counted."""

from __future__ import annotations

from ..counted import Counted, language
from ..fields import Fields
from .gemma2 import family

NAMES = ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM")
PATTERN = 6
"""``sliding_window_pattern`` where a config names neither it nor ``layer_types``."""


def read(fields: Fields) -> Counted:
    text = language(fields)
    return family(
        text,
        every=text.integer("sliding_window_pattern", PATTERN),
        normed=True,
        reason="two rotary embeddings",
        tied=fields.boolean("tie_word_embeddings", True),
        prefix="model." if text is fields else "language_model.model.",
    )
