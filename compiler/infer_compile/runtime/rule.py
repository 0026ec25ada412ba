"""What an answer has to follow, token by token."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
