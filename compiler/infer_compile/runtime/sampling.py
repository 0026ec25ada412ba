"""How a request wants its tokens drawn, and what that means at each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .rule import Guide
from .step import Float32, Int32, Sampling

FIRST_ROOM = 1024
"""Different generated tokens that adjustments have room for at first."""
BANNED = -1e30
"""Added to the logit of a token that may not be drawn, unless a grammar allows no other."""


@dataclass(frozen=True, slots=True)
class Controls:
    """A request's sampling parameters, by OpenAI's and vLLM's names.

    The presence and frequency penalties count generated tokens, the repetition penalty the prompt's as well.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    """Tokens before the text may end of itself."""

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the draw."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias) or self.min_tokens > 0


class Sampler:
    """The sampling of one sequence: its controls, the tokens it has drawn, the rule it follows and the tokens
    that would end it. Its first ``forced`` tokens count as the prompt's, and follow no rule."""

    def __init__(
        self,
        controls: Controls,
        prompt: Int32,
        guide: Guide | None = None,
        ends: frozenset[int] = frozenset(),
        forced: int = 0,
    ) -> None:
        self._controls = controls
        self._guide = guide
        self._forced = forced
        self._ends = ends
        self._left = controls.min_tokens
        self._plain: Sampling | None = None
        if not controls.adjusts:
            self._plain = self._sampling(None, None, None)
            return
        repeated = np.unique(prompt).tolist() if controls.repetition_penalty != 1 else []
        room = len(repeated) + len(controls.logit_bias) + len(ends) + FIRST_ROOM
        self._ids: Int32 = np.zeros(room, np.int32)
        self._bias: Float32 = np.zeros(room, np.float32)
        self._penalty: Float32 = np.ones(room, np.float32)
        self._rows: dict[int, int] = {}
        self._drawn: set[int] = set()
        for token in repeated:
            self._penalty[self._row(token)] = controls.repetition_penalty
        for token, bias in controls.logit_bias.items():
            self._bias[self._row(token)] += bias
        if self._left:
            for token in ends:
                self._bias[self._row(token)] = BANNED

    @property
    def plain(self) -> bool:
        """Whether the next draw is independent of the tokens drawn so far."""
        return self._plain is not None and self._guide is None

    @property
    def mask(self) -> NDArray[np.uint32] | None:
        """Tokens that may be drawn next, one bit per id; None allows all."""
        return None if self._guide is None else self._guide.mask

    def _row(self, token: int) -> int:
        row = self._rows.setdefault(token, len(self._rows))
        if row == len(self._ids):
            self._ids, self._bias = (
                np.concatenate([old, np.zeros_like(old)]) for old in (self._ids, self._bias)
            )
            self._penalty = np.concatenate([self._penalty, np.ones_like(self._penalty)])
        self._ids[row] = token
        return row

    def _sampling(self, ids: Int32 | None, bias: Float32 | None, penalty: Float32 | None) -> Sampling:
        controls = self._controls
        return Sampling(
            temperature=controls.temperature,
            top_k=controls.top_k,
            top_p=controls.top_p,
            min_p=controls.min_p,
            seed=controls.seed,
            ids=ids,
            bias=bias,
            penalty=penalty,
        )

    def push(self, token: int) -> None:
        """``token`` was drawn. Raises IC533 if the rule cannot be followed any further."""
        if self._forced:
            self._forced -= 1
            return
        if self._guide is not None:
            self._guide.push(token)
        if self._plain is not None:
            return
        row = self._row(token)
        self._penalty[row] = self._controls.repetition_penalty
        self._bias[row] -= self._controls.frequency_penalty
        if token not in self._drawn:
            self._drawn.add(token)
            self._bias[row] -= self._controls.presence_penalty
        self._left -= 1
        if self._left == 0:
            for token in self._ends:
                self._bias[self._row(token)] = self._controls.logit_bias.get(token, 0)

    def sampling(self) -> Sampling:
        """What the next step is told."""
        if self._plain is not None:
            return self._plain
        used = len(self._rows)
        return self._sampling(self._ids[:used], self._bias[:used], self._penalty[:used])
