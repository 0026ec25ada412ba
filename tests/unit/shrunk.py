"""Cards of the catalog with few layers and few experts: every kind of layer, quickly built."""

from __future__ import annotations

from functools import cache
from typing import Any

from infer_compile.catalog.model import ModelCard, card_names, load_card
from infer_compile.graph.build import COUNTED

LAYERS = 6
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
CHOSEN = ("num_experts_per_tok", "top_k_experts")
VOCABULARY = 1000


@cache
def card_of(name: str) -> ModelCard:
    card = load_card(name)
    assert card is not None
    return card


@cache
def first_cards() -> dict[str, str]:
    """The first card of each architecture that is counted: architecture to name."""
    found: dict[str, str] = {}
    for name in card_names():
        architecture = card_of(name).config["architectures"][0]
        if architecture in COUNTED:
            found.setdefault(architecture, name)
    return found


def shrunk(name: str, **changes: Any) -> dict[str, Any]:
    """The config of card ``name`` with ``LAYERS`` layers, and ``changes`` in the language model's part."""
    card = card_of(name)
    text = dict(card.text_config)
    layers = text["num_hidden_layers"]
    text |= {key: _cut(value, layers) for key, value in text.items()}
    text |= {key: 8 for key in EXPERTS if text.get(key)}
    text |= {key: 2 for key in CHOSEN if (text.get(key) or 0) > 2}
    text |= {key: 1 for key in ("n_group", "topk_group") if key in text}
    text |= {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY} | changes
    text = {key: value for key, value in text.items() if value != "absent"}
    if card.text_config is card.config:
        return text
    return {**card.config, "text_config": text}


def _cut(value: Any, layers: int) -> Any:
    """What is told for each layer, for the first layers."""
    if isinstance(value, dict):
        return {key: _cut(inner, layers) for key, inner in value.items()}
    if isinstance(value, list | tuple | str) and len(value) in (layers, layers + 1):
        return value[:LAYERS]
    return value
