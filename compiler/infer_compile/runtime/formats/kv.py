"""Cache levels: what a cached token looks like, how many bytes it takes, and who sees which form of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

LevelName = Literal["bf16", "tq3"]
HEAD_DIMS = (64, 128, 256)


class KvLevel(BaseModel):
    """One vector (a key or a value of one head) at this level: ``bits`` per element and ``scale_bytes``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LevelName
    bits: int
    scale_bytes: int

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of one key or value vector of ``head_dim`` elements."""
        return head_dim * self.bits // 8 + self.scale_bytes

    def token_bytes(self, head_dim: int, kv_heads: int) -> int:
        """Bytes of one token in one layer: a key and a value per head."""
        return 2 * kv_heads * self.vector_bytes(head_dim)

    def bits_per_element(self, head_dim: int) -> float:
        """Marginal bits per cached number, scales included."""
        return 8 * self.vector_bytes(head_dim) / head_dim


LEVELS: dict[str, KvLevel] = {
    "bf16": KvLevel(name="bf16", bits=16, scale_bytes=0),
    "tq3": KvLevel(name="tq3", bits=3, scale_bytes=2),
}


class CacheLayout(BaseModel):
    """The cache of one model: pages of ``page_tokens`` tokens, each kept exact (bf16), compressed, or both.

    Visibility: a query in page P sees key page p exact if ``exact(P, p)``, else compressed. It depends on the
    two page indices alone, so chunking, batching, preemption and speculation never change a result. With
    level ``bf16`` every page is exact and there is no compressed pool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: LevelName
    page_tokens: int
    sink_pages: int
    recent_pages: int
    kv_heads: int
    head_dim: int
    layers: int
    signs: str = ""
    """Signs of the rotation, one bit per dimension, hexadecimal, least significant bit first in each byte."""

    @property
    def compressed(self) -> bool:
        return self.level != "bf16"

    def exact(self, query_page: int, key_page: int) -> bool:
        """Whether a query in ``query_page`` reads ``key_page`` in bf16."""
        return not self.compressed or key_page < self.sink_pages or key_page >= query_page - self.recent_pages

    def packs(self, page: int) -> bool:
        """Whether ``page`` gets a compressed form when it seals."""
        return self.compressed and page >= self.sink_pages

    @property
    def token_bytes(self) -> int:
        """Marginal bytes of one more token over all layers."""
        return self.layers * LEVELS[self.level].token_bytes(self.head_dim, self.kv_heads)

    @property
    def exact_token_bytes(self) -> int:
        """Bytes of one exact (bf16) token over all layers."""
        return self.layers * LEVELS["bf16"].token_bytes(self.head_dim, self.kv_heads)

    @property
    def exact_page_bytes(self) -> int:
        return self.page_tokens * self.exact_token_bytes

    @property
    def packed_page_bytes(self) -> int:
        return self.page_tokens * self.token_bytes if self.compressed else 0

    def pages(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens take."""
        return -(-tokens // self.page_tokens)

    def exact_pages(self, tokens: int, chunk: int = 1) -> int:
        """Most exact pages one sequence of ``tokens`` tokens holds during a step of ``chunk`` new tokens."""
        pages = self.pages(tokens)
        if not self.compressed:
            return pages
        # The step's own tokens may straddle one page more than they fill; recent pages precede the first.
        window = self.sink_pages + self.recent_pages + self.pages(chunk) + 1
        return min(pages, window)

    def packed_pages(self, tokens: int) -> int:
        """Compressed pages of a sequence of ``tokens`` tokens."""
        return max(0, tokens // self.page_tokens - self.sink_pages) if self.compressed else 0
