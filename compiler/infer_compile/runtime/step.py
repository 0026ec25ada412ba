"""The step contract: what an engine takes and returns.

A step runs a mixed batch: prefill chunks, single decode tokens and speculated chains or trees side by
side. Engines keep no state about sequences; everything they need travels in ``SequenceStep``, and the cache
lives in pages that the caller hands out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .formats.program import Program

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

MOST_TREE = 64
"""New tokens of a sequence whose step has parents, at most: ancestors are a word of bits."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. ``temperature == 0`` takes the largest logit (lowest id on a tie).

    Otherwise the order is: adjustments, mask, temperature, then top_k, top_p and min_p on the probabilities,
    then inverse transform with a uniform number that is a function of ``seed`` and the position of the drawn
    token alone, so a result does not depend on what else is in the batch.

    ``ids``, ``bias`` and ``penalty`` (one entry per token id) adjust logits: a positive logit is divided by
    the penalty and a negative one multiplied, then the bias is added.
    """

    temperature: float = 0.0
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    ids: Int32 | None = None
    bias: Float32 | None = None
    penalty: Float32 | None = None


@dataclass(slots=True)
class SequenceStep:
    """One sequence's share of a step.

    ``tokens`` are new, at slots ``start, start+1, ...``; a slot is a place in the sequence's pages.
    ``parents[i]`` is the index of token i's predecessor among ``tokens``, or -1 for the last token before
    them; None means a chain. A token's position is ``start`` plus its depth; it sees the tokens before
    ``start`` and its ancestors, and all that is computed for it has the same bits as if these stood in their
    places. A step with parents has at most ``MOST_TREE`` tokens.

    ``accepted`` of the new tokens are certain (all of a prompt chunk, the first of a speculated chain):
    pages ``[sealed, (start + accepted) // page_tokens)`` are compressed in this step if the layout packs
    them. ``exact[p]`` and ``packed[p]`` are the pool pages of the sequence's page p, or -1 where that form
    is not held. The caller provides an exact page for every page that a new token lies in or sees exactly,
    and a packed page for every page that becomes compressed or is seen so. Pages that no new token sees, for
    they lie before the window that all layers share or in the gap, may be -1 in both. Where ``packed`` is
    None nothing of the sequence is compressed, and it sees every page exactly.

    ``evicted`` tokens, whole pages right behind the sinks, were dropped from a sequence that outgrew
    ``max_context``: nobody sees that gap. Slots and positions go on counting, and what is left of the cache
    holds at most ``max_context`` tokens. Tokens behind the gap keep their distance; the sinks are seen as if
    the gap were closed: by queries turned back by ``evicted`` positions (arXiv 2309.17453).

    Logits and a sampled token are produced for the last ``outputs`` tokens.

    ``features`` [tokens, width] are the numbers that a Program which is fed some gets with each token.
    """

    tokens: Int32
    start: int
    accepted: int
    sealed: int
    exact: Int32
    packed: Int32 | None
    outputs: int = 1
    parents: Int32 | None = None
    evicted: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    mask: NDArray[np.uint32] | None = None
    """Allowed tokens, one bit per id, least significant first; None allows all."""
    features: Float32 | None = None


def blank(program: Program, tokens: int) -> Float32 | None:
    """Features that say nothing, for a Program that is fed some."""
    return np.zeros((tokens, program.features), np.float32) if program.features else None


@dataclass(slots=True)
class StepResult:
    """``tokens[i]`` are the sampled tokens of sequence i, one per output row. ``logits`` [rows, logits] and
    ``hidden`` [rows, width] hold the rows of all sequences in order, or None where not asked for; hidden
    states are of outputs too, or of all new tokens (``Program.tells_tokens``)."""

    tokens: list[Int32]
    logits: Float32 | None = None
    hidden: Float32 | None = None


class Engine(Protocol):
    """Runs a Program."""

    program: Program

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult: ...

    def pool(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the ``exact`` or ``packed`` pool, as a writable view."""
        ...

    def close(self) -> None: ...
