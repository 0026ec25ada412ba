"""GlmMoeDsaForCausalLM: GLM-5, whose layers select keys, some of them with the index of an earlier layer.
Source: transformers 5.23, ``models/glm_moe_dsa``."""

from __future__ import annotations

from ..counted import Counted
from ..fields import Fields
from .deepseek_v2 import latent

NAMES = ("GlmMoeDsaForCausalLM",)
KINDS = {"full": "own", "shared": "shared"}


def read(fields: Fields) -> Counted:
    """``indexer_types`` tells which layers have an index; without it, all."""
    if fields.integer("index_topk_freq", 1) > 1:
        fields.need("indexer_types")
    kinds = fields.kinds("indexer_types", fields.integer("num_hidden_layers"), KINDS)
    return latent(fields, corrected=True, indexes=lambda layer: kinds is None or kinds[layer] == "own")
