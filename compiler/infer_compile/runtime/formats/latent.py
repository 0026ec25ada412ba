"""The cache of latent attention: what a cached token looks like, and how many bytes it takes."""

from __future__ import annotations

from typing import Literal

from .kv import Plane
from .paging import Paging

LatentLevel = Literal["bf16", "fp8"]


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
        return Plane(kind=self.level)

    @property
    def keys(self) -> Plane:
        """How all pages store rotary keys."""
        return Plane(kind="bf16")

    @property
    def token_bytes(self) -> int:
        """Marginal bytes of one more token over all layers."""
        return self.layers * (self.latents.vector_bytes(self.rank) + self.keys.vector_bytes(self.rope))

    @property
    def exact_token_bytes(self) -> int:
        """Bytes of one exact (bf16) token over all layers."""
        return self.layers * self.keys.vector_bytes(self.rank + self.rope)
