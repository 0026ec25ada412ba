"""KimiK25ForConditionalGeneration: the layers of DeepSeek-V3. Source: transformers 5.23,
``models/kimi_k25``. What sees is not counted."""

from __future__ import annotations

from ..counted import Counted, language
from ..fields import Fields
from .deepseek_v2 import latent

NAMES = ("KimiK25ForConditionalGeneration",)


def read(fields: Fields) -> Counted:
    return latent(
        language(fields, required=True),
        corrected=True,
        tied=fields.boolean("tie_word_embeddings", False),
        prefix="language_model.model.",
        head="language_model.lm_head",
        lacks="a model that sees",
    )
