"""Operations of drafters that read a model's hidden states: what is fed in, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """``width`` of the numbers that the caller gives with each token, from number ``first`` on."""

    name: str
    layer: int | None = None
    output: str
    first: int = 0
    width: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``input`` in ``output`` from column ``first`` on, which makes that ``width`` wide or more."""

    name: str
    layer: int | None = None
    input: str
    output: str
    first: int = 0
    width: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """``output = output + silu(input)``, both ``width`` wide."""

    name: str
    layer: int | None = None
    input: str
    output: str
    width: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()
