"""Who drafts tokens, as those see it who verify them.

A draft is a guess. The engine draws the token of every row with a number that the seed and the position alone
decide, and a draft is kept as long as it is what was drawn: whatever is guessed, a sequence gets the tokens
that it would have had without. For a proposal that puts all its weight on one token this is rejection
sampling (Leviathan et al., arXiv 2211.17192): it is accepted with the model's own probability of it. Several
choices for a place are accepted with the sum of their probabilities (Miao et al., arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..step import Engine, Float32, Int32
from .draft import NO_TOKENS, Draft


@dataclass(frozen=True, slots=True)
class Ask:
    """``most`` tokens, one at least, are wanted behind ``tokens``: the prompt and all that was drawn so far;
    at each depth up to ``width`` choices. ``key`` names the sequence from one step to the next. ``looked`` is
    what the last step sampled behind the window of the last draft, empty if it computed none."""

    key: Hashable
    tokens: Int32
    most: int
    width: int = 1
    looked: Int32 = field(default_factory=lambda: NO_TOKENS)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step told of a sequence: the hidden states of its tokens before place ``end``, the last of which
    drew the newest of ``tokens`` if that was drawn."""

    key: Hashable
    tokens: Int32
    end: int
    hidden: Float32


class Proposer(Protocol):
    """Drafts for many sequences at a time, and remembers each from step to step."""

    @property
    def reads(self) -> bool:
        """Whether it drafts from the model's hidden states."""
        ...

    def read(self, seen: Sequence[Seen]) -> None:
        """Takes what the model's step told, if it reads that."""
        ...

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Engines of its own; who opened them closes them."""
        ...

    def catch_up(self, asks: Sequence[Ask]) -> None:
        """Reads what it is far behind, such as a prompt, as far as one step goes; ``propose`` drafts nothing
        for who is still behind. Beside an answer that takes little, so that drafts are timed without."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """For each of ``asks`` how it may go on: as many tokens as it wants, fewer, or none."""
        ...

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forgets every sequence but these, and gives back what it held for them."""
        ...

    def check(self) -> None:
        """Raises IC505 if anything is held for a sequence that was forgotten."""
        ...
