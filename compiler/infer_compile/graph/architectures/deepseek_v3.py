"""DeepseekV3ForCausalLM: DeepSeek-V3, R1 and V3.1, Kimi K2. Source: arXiv 2412.19437; transformers 5.23,
``models/deepseek_v3``."""

from __future__ import annotations

from ..counted import Counted
from ..fields import Fields
from .deepseek_v2 import latent

NAMES = ("DeepseekV3ForCausalLM",)


def read(fields: Fields) -> Counted:
    return latent(fields, corrected=True)
