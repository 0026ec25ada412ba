"""Log-probabilities of drawn tokens, from the logits before any adjustment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .step import Float32


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A drawn token, and the most likely ones in falling order, each as (id, natural logarithm)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Float32, token: int, top: int) -> TokenLogprobs:
    """``logits`` is one row ``[vocabulary]``; equal logits come in order of their ids."""
    row = logits.astype(np.float64)
    peak = row.max()
    row -= peak + np.log(np.sum(np.exp(row - peak)))
    best = np.argsort(-row, kind="stable")[:top] if top else np.zeros(0, np.int64)
    return TokenLogprobs(token, float(row[token]), tuple((int(id), float(row[id])) for id in best))
