"""Sequences that are fed by hand on one engine, their pages given out and taken back by the real accounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infer_compile.runtime.pages import Pages, PageTable
from infer_compile.runtime.prefix import PageNames
from infer_compile.runtime.step import Engine, SequenceStep


@dataclass
class Branch:
    """A sequence and its tokens so far."""

    table: PageTable
    tokens: list[int] = field(default_factory=list)


class Tree:
    """Sequences that may have beginnings in common."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pages = Pages(engine.program.cache, engine.program.limits)

    def open(self, tokens: Sequence[int] = ()) -> Branch:
        """A sequence that is to begin with ``tokens``: behind as many as others left."""
        names = PageNames(self.engine.program.cache.page_tokens)
        names.reach(np.array(tokens, np.int32))
        table = self.pages.open(names, len(tokens))
        self.pages.check()
        return Branch(table, list(tokens[: table.tokens]))

    def feed(self, branch: Branch, tokens: Sequence[int], chunk: int = 16, rows: bool = False) -> np.ndarray:
        """Logits behind each of ``tokens``, or, unless ``rows``, behind the last of every chunk."""
        pages, table, found = self.pages, branch.table, []
        left = list(tokens)
        while left:
            start = len(branch.tokens)
            pages.evict(table, start)
            count = pages.room(table, start, min(len(left), chunk))
            assert count >= 1
            pages.prepare(table, start, count, count)
            step = SequenceStep(
                tokens=np.array(left[:count], np.int32),
                start=start,
                accepted=count,
                sealed=table.sealed,
                exact=table.exact.places,
                packed=table.packed.places,
                outputs=count if rows else 1,
                evicted=table.evicted,
            )
            found.append(self.engine.step([step], logits=True).logits)
            branch.tokens, left = branch.tokens + left[:count], left[count:]
            table.names.reach(np.array(branch.tokens, np.int32))
            pages.commit(table, len(branch.tokens))
            pages.check()
        return np.concatenate(found)
