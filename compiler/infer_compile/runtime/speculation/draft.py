"""A draft: how a text may go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ..step import MOST_TREE, Float32, Int32

ABSENT = -1
"""Stands where there is no sibling."""
NO_TOKENS: Int32 = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a draft. The sampled ``rows`` are those whose tokens the sequence gets, in order. The
    first ``accepted`` tokens of the chain were drawn; then, if ``choice`` is not 0, that sibling of the next
    one, counted from 1."""

    rows: tuple[int, ...]
    accepted: int
    choice: int


NONE_DRAWN, ONE_DRAWN = Verdict((), 0, 0), Verdict((0,), 0, 0)
"""Of steps without a draft."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Tokens that are computed along for what is sampled behind them, which the drafter alone reads:
    ``parents[i]`` is the one of them that token i stands behind, or -1 for the last certain token."""

    tokens: Int32
    parents: Int32

    def __len__(self) -> int:
        return len(self.tokens)


NO_WINDOW = Window(NO_TOKENS, NO_TOKENS)


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """``chain`` [depth] is the likeliest text; ``siblings`` [depth, width - 1] are what may stand at each
    depth in place of the chain's token, the likelier first, ``ABSENT`` where there are no more. Nothing is
    guessed behind a sibling. A ``window`` verifies nothing.

    In a step the chain stands behind what is certain, where it will stay if it is right, and the siblings
    behind the chain: their slots are not their places, so a sibling that is right is computed once more. The
    window is last.
    """

    chain: Int32
    siblings: Int32
    window: Window = NO_WINDOW
    verified: int = field(init=False)
    """Tokens of the chain, and siblings."""
    rows: int = field(init=False)
    """Tokens in all."""

    def __post_init__(self) -> None:
        verified = len(self.chain) + int(np.count_nonzero(self.siblings != ABSENT))
        object.__setattr__(self, "verified", verified)
        object.__setattr__(self, "rows", verified + len(self.window))

    @classmethod
    def line(cls, chain: Int32) -> Draft:
        """Without siblings."""
        return cls(chain, np.empty((len(chain), 0), np.int32))

    @classmethod
    def among(cls, chain: Int32, others: Sequence[Int32], width: int, window: Window = NO_WINDOW) -> Draft:
        """``chain``, and as siblings the tokens with which ``others``, which are as long, part from it: the
        first ones, up to ``width`` choices for each place."""
        siblings: Int32 = np.full((len(chain), width - 1), ABSENT, np.int32)
        for other in others if width > 1 else ():
            depth = int(np.argmax(other != chain))
            beside = siblings[depth]
            free = np.flatnonzero(beside == ABSENT)
            if other[depth] != chain[depth] and other[depth] not in beside and len(free):
                beside[free[0]] = other[depth]
        return cls(chain, siblings, window)

    @property
    def widths(self) -> Int32:
        """Choices at each depth, the chain's token among them."""
        return np.asarray(1 + (self.siblings != ABSENT).sum(axis=1), np.int32)

    @property
    def tokens(self) -> Int32:
        """Row by row: the chain, then the siblings by depth, then the window."""
        return np.concatenate([self.chain, self.siblings[self.siblings != ABSENT], self.window.tokens])

    def parents(self, certain: int) -> Int32 | None:
        """Of all tokens of a step that begins with so many ``certain`` ones; None where it is a chain."""
        depths = np.nonzero(self.siblings != ABSENT)[0]
        if self.rows == len(self.chain):
            return None
        line = np.arange(-1, certain + len(self.chain) - 1)
        above, first = self.window.parents, certain + self.verified
        window = np.where(above < 0, certain - 1, first + above)
        return np.concatenate([line, certain - 1 + depths, window]).astype(np.int32)

    def shaped(self, widths: ArrayLike) -> Draft:
        """At most so many choices at each depth."""
        wanted = np.asarray(widths)[: len(self.chain)]
        depth = int(np.count_nonzero(wanted))
        among = np.arange(self.siblings.shape[1]) < wanted[:depth, None] - 1
        return Draft(self.chain[:depth], np.where(among, self.siblings[:depth], ABSENT), self.window)

    def cut(self, rows: int, certain: int) -> Draft:
        """At most ``rows`` tokens of it, beside so many ``certain`` ones: the chain, then siblings, as they
        come first, and the window if there is room for all of it."""
        chain = self.chain[:rows]
        left = max(0, min(rows, MOST_TREE - certain) - len(chain))
        siblings = self.siblings[: len(chain)]
        among = siblings != ABSENT
        siblings = np.where(among & (np.cumsum(among).reshape(among.shape) <= left), siblings, ABSENT)
        whole = self.rows <= min(rows, MOST_TREE - certain)
        return Draft(chain, siblings, self.window if whole else NO_WINDOW)

    def looked(self, sampled: Sequence[int]) -> Int32:
        """What was ``sampled`` behind the tokens of the window."""
        return np.array(sampled[len(sampled) - len(self.window) :], np.int32)

    def verdict(self, sampled: Sequence[int]) -> Verdict:
        """By the tokens ``sampled`` behind the last certain one and behind each of its own; none if the step
        drew nothing."""
        if not self.rows:
            return ONE_DRAWN if sampled else NONE_DRAWN
        depth = len(self.chain)
        accepted = 0
        for guess in self.chain.tolist():
            if guess != sampled[accepted]:
                break
            accepted += 1
        rows = tuple(range(accepted + 1))
        if accepted == depth:
            return Verdict(rows, accepted, 0)
        beside = self.siblings[accepted].tolist()
        if sampled[accepted] not in beside:
            return Verdict(rows, accepted, 0)
        place = beside.index(sampled[accepted])
        before = int(np.count_nonzero(self.siblings[:accepted] != ABSENT))
        return Verdict((*rows, depth + 1 + before + place), accepted, 1 + place)


NOTHING = Draft.line(NO_TOKENS)


def likeliest(logits: Float32, but: int, count: int) -> Int32:
    """The ``count`` likeliest tokens without ``but``, in order."""
    among = np.argpartition(-logits, count)[: count + 1]
    among = among[among != but]
    return np.asarray(among[np.argsort(-logits[among], kind="stable")][:count], np.int32)
