"""Drafts from the text of the sequence itself: what followed when its last tokens were there before.

Prompt lookup (apoorvumang/prompt-lookup-decoding): answers repeat names, code and phrases of their prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from itertools import pairwise

import numpy as np

from ..step import Engine, Int32
from .draft import NOTHING, Draft
from .proposer import Ask, Seen

LONGEST = 8
"""Tokens of an occurrence that are compared; two must agree."""
CANDIDATES = 8
"""Earlier occurrences that are compared, the latest first."""
STRIDE = 4096
"""Tokens that are read into the index at a time: a long prompt takes several steps."""
_NOWHERE = -1


class Index:
    """Where each pair of neighbouring tokens of one text occurred: the latest place by pair, and for each
    place the one before. A place is the index of the token that follows. Each token is read once."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [_NOWHERE, _NOWHERE]
        """By place; no pair ends before the first two tokens."""

    def find(self, tokens: Int32) -> list[int]:
        """The places behind earlier occurrences of the last tokens, first those that agree with them furthest
        back, of equals the latest; none if even the last two did not occur, or if too much is still to be
        read."""
        self._read(tokens)
        count = len(tokens)
        if len(self._before) <= count:
            return []
        tail = tokens[-LONGEST:].tolist()
        found: list[tuple[int, int]] = []
        place = self._before[count]
        while place != _NOWHERE and len(found) < CANDIDATES:
            found.append((-_agreed(tokens[max(0, place - LONGEST) : place].tolist(), tail), -place))
            place = self._before[place]
        return [-place for _, place in sorted(found)]

    def _read(self, tokens: Int32) -> None:
        known = len(self._before) - 1
        fresh: list[int] = tokens[known - 1 : known + STRIDE].tolist()
        for place, pair in enumerate(pairwise(fresh), known + 1):
            self._before.append(self._latest.get(pair, _NOWHERE))
            self._latest[pair] = place


def _agreed(one: list[int], other: list[int]) -> int:
    """How many tokens two texts share at their ends."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


class Ngram:
    """Copies on from the first place that ``Index.find`` gives, and from the copy once the text ends;
    siblings are where the text went on otherwise from the others."""

    reads = False

    def __init__(self) -> None:
        self._indices: dict[Hashable, Index] = {}

    @property
    def engines(self) -> tuple[Engine, ...]:
        return ()

    def read(self, seen: Sequence[Seen]) -> None:
        """Tokens are all that it reads."""

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """The index reads what it needs."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask) for ask in asks]

    def _draft(self, ask: Ask) -> Draft:
        places = self._indices.setdefault(ask.key, Index()).find(ask.tokens)
        if not places:
            return NOTHING
        # Behind its end the text goes on as it is copied.
        chain, *others = (np.resize(ask.tokens[place : place + ask.most], ask.most) for place in places)
        return Draft.among(chain, others, ask.width)

    def keep(self, keys: Collection[Hashable]) -> None:
        for key in self._indices.keys() - set(keys):
            del self._indices[key]

    def check(self) -> None:
        """Nothing is held but indices."""
