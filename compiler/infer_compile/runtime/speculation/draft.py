"""A draft: how a text may go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..step import MOST_TREE, Float32, Int32

ABSENT = -1
"""Stands where there is no sibling."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a draft. The sampled ``rows`` are those whose tokens the sequence gets, in order. The
    first ``accepted`` tokens of the chain were drawn; then, if ``choice`` is not 0, that sibling of the next
    one, counted from 1."""

    rows: list[int]
    accepted: int
    choice: int


NONE_DRAWN = Verdict([], 0, 0)
"""Of a step that drew nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """``chain`` [depth] is the likeliest text; ``siblings`` [depth, width - 1] are what may stand at each
    depth in place of the chain's token, the likelier first, ``ABSENT`` where there are no more. Nothing is
    guessed behind a sibling.

    In a step the chain stands behind what is certain, where it will stay if it is right, and the siblings
    behind the chain: their slots are not their places, so a sibling that is right is computed once more.
    """

    chain: Int32
    siblings: Int32

    @classmethod
    def line(cls, chain: Int32) -> Draft:
        """Without siblings."""
        return cls(chain, np.empty((len(chain), 0), np.int32))

    @property
    def widths(self) -> Int32:
        """Choices at each depth, the chain's token among them."""
        return np.asarray(1 + (self.siblings != ABSENT).sum(axis=1), np.int32)

    @property
    def rows(self) -> int:
        """Tokens in all."""
        return len(self.chain) + int(np.count_nonzero(self.siblings != ABSENT))

    @property
    def tokens(self) -> Int32:
        """Row by row: the chain, then the siblings by depth."""
        return np.concatenate([self.chain, self.siblings[self.siblings != ABSENT]])

    def parents(self, certain: int) -> Int32 | None:
        """Of all tokens of a step that begins with so many ``certain`` ones; None where it is a chain."""
        depths = np.nonzero(self.siblings != ABSENT)[0]
        if not len(depths):
            return None
        line = np.arange(-1, certain + len(self.chain) - 1)
        return np.concatenate([line, certain - 1 + depths]).astype(np.int32)

    def shaped(self, widths: ArrayLike) -> Draft:
        """At most so many choices at each depth."""
        wanted = np.asarray(widths)[: len(self.chain)]
        depth = int(np.count_nonzero(wanted))
        among = np.arange(self.siblings.shape[1]) < wanted[:depth, None] - 1
        return Draft(self.chain[:depth], np.where(among, self.siblings[:depth], ABSENT))

    def cut(self, rows: int, certain: int) -> Draft:
        """At most ``rows`` tokens of it, beside so many ``certain`` ones: the chain, then siblings, as they
        come first."""
        chain = self.chain[:rows]
        left = max(0, min(rows, MOST_TREE - certain) - len(chain))
        siblings = self.siblings[: len(chain)]
        among = siblings != ABSENT
        return Draft(
            chain, np.where(among & (np.cumsum(among).reshape(among.shape) <= left), siblings, ABSENT)
        )

    def verdict(self, sampled: Sequence[int]) -> Verdict:
        """By the tokens ``sampled`` behind the last certain one and behind each of its own."""
        depth = len(self.chain)
        accepted = 0
        for guess in self.chain.tolist():
            if guess != sampled[accepted]:
                break
            accepted += 1
        rows = list(range(accepted + 1))
        if accepted == depth:
            return Verdict(rows, accepted, 0)
        beside = self.siblings[accepted].tolist()
        if sampled[accepted] not in beside:
            return Verdict(rows, accepted, 0)
        place = beside.index(sampled[accepted])
        before = int(np.count_nonzero(self.siblings[:accepted] != ABSENT))
        return Verdict([*rows, depth + 1 + before + place], accepted, 1 + place)


NOTHING = Draft.line(np.empty(0, np.int32))


def likeliest(logits: Float32, but: int, count: int) -> Int32:
    """The ``count`` likeliest tokens without ``but``, in order."""
    among = np.argpartition(-logits, count)[: count + 1]
    among = among[among != but]
    return np.asarray(among[np.argsort(-logits[among], kind="stable")][:count], np.int32)
