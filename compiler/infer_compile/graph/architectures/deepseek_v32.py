"""DeepseekV32ForCausalLM: DeepSeek-V3.2, whose every layer selects keys. Source: transformers 5.23,
``models/deepseek_v32``."""

from __future__ import annotations

from ..counted import Counted
from ..fields import Fields
from .deepseek_v2 import latent

NAMES = ("DeepseekV32ForCausalLM",)


def read(fields: Fields) -> Counted:
    return latent(fields, corrected=True, indexes=lambda _: True)
