"""A number with where it stems from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

Basis = Literal["arithmetic", "measurement", "datasheet", "published", "assumption"]
"""Strongest first; ``arithmetic`` is exact."""
STRENGTH: tuple[Basis, ...] = ("arithmetic", "measurement", "datasheet", "published", "assumption")


def weakest(bases: Iterable[Basis]) -> Basis:
    """What a number computed from numbers of these bases is worth."""
    return max(bases, key=STRENGTH.index, default="arithmetic")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Frozen):
    value: float
    basis: Basis
    source: str
