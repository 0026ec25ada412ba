"""Model cards: the geometry of known models, so that a plan needs no download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

_FOLDER = Path(__file__).parent / "models"
_IDS = re.compile(r"^(?:hf_id: |  - )(\S+/\S+)$", re.MULTILINE)


class ModelCard(BaseModel):
    """One geometry and the repositories of the hub that have it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    hf_id: str
    also: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Other repositories of the same geometry, such as the instruction-tuned one."""
    name: str
    parameters_b: float
    """1e9 parameters; ``basis`` tells whether they are counted from the config or as published."""
    active_parameters_b: float
    """Those that one token passes through."""
    basis: str
    config: Mapping[str, Any]
    """As in the repository's config.json: what bears on geometry, under the same names."""
    note: str = ""
    source: str

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that describes the language model."""
        nested: Mapping[str, Any] = self.config.get("text_config", self.config)
        return nested


def card_names() -> tuple[str, ...]:
    """Every model of the catalog, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_card(name: str) -> ModelCard | None:
    """The card of that id or repository of the hub, in any case; None if the catalog has none."""
    wanted = name.lower()
    for path in sorted(_FOLDER.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        # Reading the identifiers alone is a hundred times faster than parsing seventy files.
        if wanted == path.stem or wanted in map(str.lower, _IDS.findall(text)):
            return ModelCard.model_validate(yaml.safe_load(text))
    return None
