"""Attention over keys and values that all heads share."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost
from .rotary import Rotation
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfolding:
    """How a layer attends, beyond what is counted: ``query`` holds heads of ``nope_dim`` elements and
    ``rope_dim`` that ``rotation`` turns, in pairs that are ``neighbours`` or halves; ``latent`` a latent
    vector and a rotary key; the product ``weight`` makes of a latent vector each head's key, without the
    rotary part, and value. Scores are times ``scale``."""

    query: str
    latent: str
    weight: str
    nope_dim: int
    rope_dim: int
    rotation: Rotation
    neighbours: bool
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttend:
    """Causal attention of ``heads`` heads over one cached vector of ``key_dim`` elements per entry, of which
    the first ``value_dim`` are the value too (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    An entry stands for ``ratio`` tokens, which divides both. A query sees those of a ``window`` or, of all,
    the best ``selected`` tokens' worth. ``unfolded_dim``: elements of a head's key and value together once
    they are computed from the latent vector, as is cheaper over a prompt. ``unfolding`` is known where a
    Program can be made of it.
    """

    name: str
    layer: int
    output: str
    heads: int
    key_dim: int
    value_dim: int
    head_value_dim: int
    ratio: int = 1
    window: int | None = None
    selected: int | None = None
    unfolded_dim: int | None = None
    sinks: Source | None = None
    unfolding: Unfolding | None = None

    @property
    def width(self) -> int:
        return self.heads * self.head_value_dim

    @property
    def rotary_dim(self) -> int:
        """Elements of what is cached that are key alone."""
        return self.key_dim - self.value_dim

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.sinks,) if self.sinks else ()

    @property
    def cost(self) -> Cost:
        unfolded = self.unfolded_dim
        return Cost(
            vector_elements=sum(source.elements for source in self.sources),
            attention_flops_per_token_context=2 * self.heads * (self.key_dim + self.value_dim) // self.ratio,
            prompt_flops_per_token_context=None if unfolded is None else 2 * self.heads * unfolded,
            cache_elements_per_token=self.key_dim // self.ratio,
            latent_elements_per_token=self.key_dim // self.ratio,
            window=self.window,
            selected=self.selected,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Scores of ``heads`` small heads against one cached key per entry, to select what attention reads
    (DeepSeek-V3.2's lightning indexer). An entry stands for ``ratio`` tokens."""

    name: str
    layer: int
    heads: int
    head_dim: int
    ratio: int = 1

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost(
            index_elements_per_token=self.head_dim // self.ratio,
            index_flops_per_token_context=2 * self.heads * self.head_dim // self.ratio,
        )
