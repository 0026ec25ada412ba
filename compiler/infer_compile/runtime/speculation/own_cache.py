"""The paged cache of a drafter that has one, and the steps that write it."""

from __future__ import annotations

from ..pages import Pages, PageTable
from ..pool import broken
from ..step import Engine, Float32, Int32, SequenceStep


class OwnCache:
    """Of ``engine``; a table for each sequence, which shares nothing with another."""

    def __init__(self, engine: Engine) -> None:
        self.limits = engine.program.limits
        self.pages = Pages(engine.program.cache, self.limits)

    def room(self, table: PageTable, slot: int, count: int) -> int:
        """How many of ``count`` tokens from ``slot`` on the cache takes now."""
        count = min(count, self.limits.max_context + table.evicted - slot)
        return max(0, self.pages.room(table, slot, count)) if count > 0 else 0

    def step(
        self,
        table: PageTable,
        slot: int,
        tokens: Int32,
        certain: int,
        outputs: int,
        features: Float32 | None = None,
    ) -> SequenceStep:
        """Hands out the pages of ``tokens`` from ``slot`` on, for which there is room."""
        self.pages.prepare(table, slot, len(tokens), certain)
        return SequenceStep(
            tokens=tokens,
            start=slot,
            accepted=certain,
            sealed=table.sealed,
            exact=table.exact.places,
            packed=table.packed.places,
            outputs=outputs,
            evicted=table.evicted,
            features=features,
        )

    def check(self) -> None:
        """Raises IC505 if a page is lost, or a table is still open."""
        self.pages.check()
        if self.pages.tables:
            raise broken(f"{len(self.pages.tables)} page tables of the draft are open, but no sequence is")
