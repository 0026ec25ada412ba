"""Attention by the tokens of a tile: which launches a step takes, and how many shares its rows can have."""

from __future__ import annotations

from collections.abc import Callable

from ..runtime.formats.launches import Case, Cases, Launch
from ..runtime.formats.program import Program
from .cuda_constants import Tiling, splits


class TileCases:
    """The last of ``tilings`` serves sequences with any number of new tokens, the others a few."""

    def __init__(self, program: Program, tilings: tuple[Tiling, ...]) -> None:
        self._program = program
        self._tilings = tilings

    def few(self, tiling: Tiling) -> bool:
        return tiling is not self._tilings[-1]

    def cases(self, launches: Callable[[Tiling], tuple[Launch, ...]]) -> Cases:
        """``launches`` of each kind of tile."""
        found = [
            Case(most=tiling.tokens if self.few(tiling) else None, launches=launches(tiling))
            for tiling in self._tilings
        ]
        return Cases(of="tile", cases=tuple(found))

    @property
    def shares(self) -> int:
        """The most shares that all rows of a step have."""
        limits, layout = self._program.limits, self._program.cache
        most = 0
        for tiling in self._tilings:
            rows = limits.max_batch_tokens
            if self.few(tiling):
                rows = min(rows, tiling.tokens * limits.max_sequences)
            most = max(most, splits(layout, tiling) * rows)
        return most
