"""Names of pages: each a hash of all that the page's content depends on."""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b

from .step import Int32

NAME_BYTES = 16
"""Nobody finds two beginnings with the same name of 128 bits."""


class PageNames(list[bytes]):
    """The names of a sequence's whole pages, in order.

    A page's keys and values depend on every token up to its end, so its name is a hash of its tokens and of
    the name before; the first follows from the request's ``salt``. Sequences of another salt share nothing.
    """

    def __init__(self, page_tokens: int, salt: str = "") -> None:
        super().__init__()
        self._page_tokens = page_tokens
        self._before = blake2b(salt.encode(), digest_size=NAME_BYTES).digest()

    def reach(self, tokens: Int32) -> None:
        """Adds those of the whole pages of ``tokens``, which begin with what is named already."""
        size = self._page_tokens
        for page in range(len(self), len(tokens) // size):
            content = tokens[page * size : (page + 1) * size].tobytes()
            self._before = blake2b(self._before + content, digest_size=NAME_BYTES).digest()
            self.append(self._before)

    def common(self, other: PageNames) -> int:
        """How many pages both begin with: where a page has the same name, so has every page before."""
        shared = range(min(len(self), len(other)))
        return bisect_left(shared, True, key=lambda page: self[page] != other[page])
