"""What an answer has to follow, token by token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .step import Int32


class Guide(Protocol):
    """A rule and how far one answer has come."""

    @property
    def mask(self) -> NDArray[np.uint32] | None:
        """Tokens that may come next, one bit per id; None allows all."""
        ...

    def push(self, token: int) -> None:
        """``token`` was drawn. Raises IC533 if the rule cannot be followed any further."""
        ...


class Rule(Protocol):
    def matcher(self) -> Guide:
        """At the beginning of an answer."""
        ...


class Forced:
    """An answer that begins with these tokens, whatever is likelier, and then follows ``then``, if anything.

    So each of them is computed in a step of its own and gets a log-probability.
    """

    def __init__(self, tokens: Int32, vocabulary: int, then: Rule | None) -> None:
        self._tokens = tokens
        self._words = (vocabulary + 31) // 32
        self._then = then

    def matcher(self) -> Guide:
        then = self._then.matcher() if self._then is not None else None
        return _Forcing(self._tokens, self._words, then)


class _Forcing:
    def __init__(self, tokens: Int32, words: int, then: Guide | None) -> None:
        self._tokens = tokens
        self._words = words
        self._then = then
        self._done = 0

    @property
    def mask(self) -> NDArray[np.uint32] | None:
        if self._done == len(self._tokens):
            return self._then.mask if self._then is not None else None
        token = int(self._tokens[self._done])
        mask = np.zeros(self._words, np.uint32)
        mask[token // 32] = 1 << token % 32
        return mask

    def push(self, token: int) -> None:
        if self._done < len(self._tokens):
            self._done += 1
        elif self._then is not None:
            self._then.push(token)
