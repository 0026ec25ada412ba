"""The cache of latent attention: what a cached token looks like, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from .kv import Plane
from .paging import Paging

LatentLevel = Literal["bf16", "fp8"]
LATENT_LEVELS: Mapping[str, LatentLevel] = MappingProxyType({name: name for name in get_args(LatentLevel)})
"""Every level under its name."""


def latent_plane(level: LatentLevel) -> Plane:
    """How compressed pages at ``level`` store latent vectors."""
    return Plane(kind=level)


ROTARY = Plane(kind="bf16")
"""How all pages store rotary keys."""


def latent_token_bytes(level: LatentLevel, rank: int, rope: int) -> int:
    """Bytes of one token in one layer."""
    return latent_plane(level).vector_bytes(rank) + ROTARY.vector_bytes(rope)


class LatentLayout(Paging):
    """Of every token each of ``layers`` layers keeps one latent vector of ``rank`` elements, behind its norm,
    and one rotary key of ``rope`` elements, which all heads share (DeepSeek-V2, arXiv 2405.04434, section
    2.1).

    Compressed pages keep latent vectors in float8 e4m3 without a scale, as the level ``fp8`` of other caches
    does: behind a norm they are of one size. The rotary key, which no norm bounds, stays in bf16.
    """

    level: LatentLevel
    rank: int
    rope: int
    layers: int

    @property
    def latents(self) -> Plane:
        """How compressed pages store latent vectors."""
        return latent_plane(self.level)

    @property
    def keys(self) -> Plane:
        """How all pages store rotary keys."""
        return ROTARY

    @property
    def token_bytes(self) -> int:
        """Marginal bytes of one more token over all layers."""
        return self.layers * latent_token_bytes(self.level, self.rank, self.rope)

    @property
    def cached_layers(self) -> int:
        return self.layers

    @property
    def exact_token_bytes(self) -> int:
        """Bytes of one exact (bf16) token over all layers."""
        return self.layers * latent_token_bytes("bf16", self.rank, self.rope)
