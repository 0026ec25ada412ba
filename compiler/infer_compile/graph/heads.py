"""Heads: a checkpoint that drafts for one model from its hidden states, as a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..runtime.errors import Problem
from .fields import Fields
from .graph import Graph

Method = Literal["medusa", "eagle3"]
EAGLE3 = frozenset({"LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator"})
"""Classes by which SGLang, vLLM and speculators name such a checkpoint."""


@dataclass(frozen=True, slots=True)
class Heads:
    """``graph`` makes the program that drafts ``tokens`` tokens, ``most`` at most, where it is native.

    ``layers``: the model's layers whose inputs are fed in, side by side; none, it is what the model's head
    reads. ``passes``: whether each token takes a pass of its own. ``names`` are all the names under which a
    checkpoint may have a tensor that ``graph`` names.
    """

    method: Method
    graph: Callable[[int], Graph]
    most: int | None
    layers: tuple[int, ...]
    passes: bool
    names: Callable[[str], tuple[str, ...]]


def method_of(config: Mapping[str, object]) -> Method | None:
    """What kind of heads a ``config.json`` describes; None for a model of its own."""
    named = config.get("architectures")
    classes = {str(name) for name in named} if isinstance(named, list | tuple) else set()
    if config.get("medusa_num_heads") is not None or config.get("model_type") == "medusa":
        return "medusa"
    if "MedusaModel" in classes:
        return "medusa"
    if config.get("draft_vocab_size") is not None or classes & EAGLE3:
        return "eagle3"
    return None


def same(fields: Fields, key: str, found: int, wanted: int, what: str) -> None:
    """Record in ``fields`` that the heads were made for a model of another shape, if they were."""
    if found != wanted and fields.sound(key):
        fields.refuse(
            Problem(
                "IC138",
                "the heads were made for another model",
                fields.where,
                f"{key} is {found}, and the model's {what} is {wanted}",
                "name heads that were trained with this model, or model: {draft: none}",
            )
        )
