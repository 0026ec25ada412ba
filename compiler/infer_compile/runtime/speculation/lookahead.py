"""Drafts from what the model itself guesses of the text further on: lookahead decoding (Fu et al., arXiv
2402.02057).

Beside its last token a sequence has a window computed: guesses of the next tokens at ``level - 1`` levels,
each a Jacobi iteration younger than the one before. The oldest stand one behind the other; each of a younger
level stands behind the one of the level before in the same column. What is sampled behind the youngest ends a
column, an n-gram of ``level`` tokens that begins with the text's last token or with a guess of the oldest
level. It goes into the sequence's pool, and becomes the youngest level of the next window; the oldest is
dropped. Verified is what the pool has behind the last token, as a chain and where other n-grams part from it.

Rows of a window are drawn with the seed and the position, as all are, so at any temperature the guesses are
those of the text that will be drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..step import Engine, Int32
from .draft import Draft, Window
from .proposer import Ask, Seen

REMEMBERED = 8
"""Latest n-grams that are kept of those that begin with the same token."""
BEGINNINGS = 4096
"""Tokens that n-grams of one sequence begin with, at most; those that came first are forgotten first."""


@dataclass(slots=True)
class _Trail:
    """A sequence: its last token when its window was made, the window's guesses, oldest level first, and the
    n-grams found so far, by their first token."""

    head: int
    levels: list[list[int]]
    pool: dict[int, deque[tuple[int, ...]]] = field(default_factory=dict)

    def remember(self, gram: tuple[int, ...]) -> None:
        tails = self.pool.setdefault(gram[0], deque(maxlen=REMEMBERED))
        if gram[1:] in tails:
            tails.remove(gram[1:])
        tails.appendleft(gram[1:])
        if len(self.pool) > BEGINNINGS:
            del self.pool[next(iter(self.pool))]


class Lookahead:
    """N-grams of ``level`` tokens, three at least, from a window of ``columns`` columns, two at least."""

    reads = False

    def __init__(self, level: int, columns: int) -> None:
        self._columns = columns
        # The text's last token heads the first column.
        self._widths = [columns - 1, *[columns] * (level - 2)]
        self._parents = self._parents_of()
        self._trails: dict[Hashable, _Trail] = {}

    def _parents_of(self) -> Int32:
        parents = np.arange(-1, self._columns - 2).tolist()
        above = np.arange(-1, self._columns - 1)
        for _ in self._widths[1:]:
            first = len(parents)
            parents += above.tolist()
            above = first + np.arange(self._columns)
        return np.array(parents, np.int32)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return ()

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return len(self._parents)

    def read(self, seen: Sequence[Seen]) -> None:
        """Its guesses come with the rows of its window."""

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """A window begins with any guesses."""

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask) for ask in asks]

    def _draft(self, ask: Ask) -> Draft:
        trail = self._trails.get(ask.key)
        if trail is None:
            trail = self._trails[ask.key] = _Trail(0, self._any_guesses(ask.tokens))
        elif len(ask.looked):
            self._learn(trail, ask)
        trail.head = int(ask.tokens[-1])
        # Without an n-gram the first column goes on by its own guesses.
        known = trail.pool.get(int(ask.tokens[-1])) or [tuple(level[0] for level in trail.levels[1:])]
        chain, *others = (np.array(tail[: ask.most], np.int32) for tail in known)
        guesses = np.array([token for level in trail.levels for token in level], np.int32)
        return Draft.among(chain, others, ask.width, Window(guesses, self._parents))

    def _any_guesses(self, text: Int32) -> list[list[int]]:
        """Tokens of the text: what a window begins with."""
        random = np.random.default_rng(len(text))
        return [random.choice(text, width).tolist() for width in self._widths]

    def _learn(self, trail: _Trail, ask: Ask) -> None:
        """By what was sampled behind the window every level is one older; and one place further on, though
        the text may be more: what stands behind what matters, not where."""
        youngest = ask.looked[-self._columns :].tolist()
        heads = [trail.head, *trail.levels[0]]
        for gram in zip(heads, *trail.levels[1:], youngest, strict=True):
            trail.remember(gram)
        trail.levels = [*trail.levels[1:], youngest]
        trail.levels[0] = trail.levels[0][1:]

    def keep(self, keys: Collection[Hashable]) -> None:
        for key in self._trails.keys() - set(keys):
            del self._trails[key]

    def check(self) -> None:
        """Nothing is held but guesses."""
