"""Pages of a cache: who sees which form of them, and how many a sequence holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

CHECK_STEP = 16
"""Tokens of a step that checks an answer against an exact cache."""


class Table(BaseModel):
    """Calibrated numbers of one layer, float32: see ``CacheLayout.tables``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        size = 4
        for length in self.shape:
            size *= length
        return size


class Paging(BaseModel):
    """Pages of ``page_tokens`` tokens, each kept exact (bf16), compressed, or both.

    Visibility: a query in page P sees key page p exact if ``exact(P, p)``, else compressed. It depends on the
    two page indices alone, so chunking, batching, preemption and speculation never change a result. With
    level ``bf16`` every page is exact and there is no compressed pool.

    ``window`` is what all layers share (``kv.shared_window``): pages hold every layer, so one that lies
    before it is of no use to any, and is given back in both forms, sinks too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str
    page_tokens: int
    sink_pages: int
    recent_pages: int
    window: int | None = None

    @property
    def compressed(self) -> bool:
        return self.level != "bf16"

    @property
    @abstractmethod
    def cached_layers(self) -> int:
        """Layers that keep something of a token."""

    @property
    @abstractmethod
    def token_bytes(self) -> int:
        """Marginal bytes of one more token over all layers."""

    @property
    @abstractmethod
    def exact_token_bytes(self) -> int:
        """Bytes of one exact (bf16) token over all layers."""

    def tables(self) -> Iterator[Table]:
        """What a calibrated cache reads; nothing else has any."""
        return iter(())

    @property
    def exact_page_bytes(self) -> int:
        return self.page_tokens * self.exact_token_bytes

    @property
    def packed_page_bytes(self) -> int:
        return self.page_tokens * self.token_bytes if self.compressed else 0

    def exact(self, query_page: int, key_page: int) -> bool:
        """Whether a query in ``query_page`` reads ``key_page`` in bf16."""
        return not self.compressed or key_page < self.sink_pages or key_page >= query_page - self.recent_pages

    def packs(self, page: int) -> bool:
        """Whether ``page`` gets a compressed form when it seals."""
        return self.compressed and page >= self.sink_pages

    def pages(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens take."""
        return -(-tokens // self.page_tokens)

    def touched(self, tokens: int) -> int:
        """Most pages that ``tokens`` neighbouring tokens lie in, wherever the first is."""
        return 1 + self.pages(tokens - 1)

    def first_page(self, position: int, window: int | None) -> int:
        """The first page that a query at ``position``, or at any later one, sees within ``window``."""
        return 0 if window is None else max(0, position - window + 1) // self.page_tokens

    def seen(self, position: int, last_page: int, evicted: int, window: int | None) -> list[int]:
        """Pages up to ``last_page`` of which a query at ``position`` may see a token within ``window``."""
        sinks, rest = self.spans(position, last_page, evicted, window)
        return [*sinks, *rest]

    def spans(self, position: int, last_page: int, evicted: int, window: int | None) -> tuple[range, range]:
        """What ``seen`` lists, as the sinks before a gap and the pages behind it.

        Of a sequence that dropped ``evicted`` tokens the sinks are seen as if the gap were closed, and what
        lies in the gap not at all.
        """
        first = self.first_page(position, window)
        if not evicted:
            return range(0), range(first, last_page + 1)
        sinks = range(self.first_page(position - evicted, window), self.sink_pages)
        kept = self.sink_pages + evicted // self.page_tokens
        return sinks, range(max(kept, first), last_page + 1)

    def exact_pages(self, tokens: int, chunk: int = 1) -> int:
        """Most exact pages one sequence of ``tokens`` tokens holds during a step of ``chunk`` new tokens."""
        held = self.pages(tokens)
        if self.compressed:
            # Recent pages precede the first of the step's own.
            held = min(held, self.sink_pages + self.recent_pages + self.touched(chunk))
        if self.window is not None:
            # The first new token sees the window that ends with it.
            held = min(held, self.touched(self.window + chunk - 1))
        return held

    def packed_pages(self, tokens: int, chunk: int = 1) -> int:
        """Most compressed pages it holds then."""
        if not self.compressed:
            return 0
        held = max(0, tokens // self.page_tokens - self.sink_pages)
        # Those that end between the window's first token and the last new one.
        return held if self.window is None else min(held, self.pages(self.window + chunk - 1))

    @property
    def unpacked(self) -> Paging:
        """What a sequence without compressed pages sees: the same, and every page exact."""
        return self.model_copy(update={"level": "bf16"})

    def check_pages(self, tokens: int) -> tuple[int, int]:
        """Exact and compressed pages that it takes to check an answer of ``tokens`` tokens, its prompt among
        them: once in this cache, and once in an exact one."""
        if not tokens:
            return 0, 0
        exact = sum(layout.exact_pages(tokens, CHECK_STEP) for layout in (self, self.unpacked))
        return exact, self.packed_pages(tokens, CHECK_STEP)
