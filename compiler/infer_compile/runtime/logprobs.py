"""Logarithms of probabilities, from logits before any adjustment, and how far two models' are apart.

Everything is in float64 and natural units: divergences are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .step import Float32

Float64 = NDArray[np.float64]


def log_softmax(logits: Float32) -> Float64:
    """Logarithms of the probabilities of ``logits`` [..., vocabulary]."""
    logarithms = logits.astype(np.float64)
    logarithms -= logarithms.max(axis=-1, keepdims=True)
    logarithms -= np.log(np.exp(logarithms).sum(axis=-1, keepdims=True))
    return logarithms


def divergence(reference: Float64, model: Float64) -> Float64:
    """KL(reference || model) of each row [..., vocabulary] of logarithms of probabilities."""
    # Rounding never makes it negative.
    found: Float64 = np.maximum((np.exp(reference) * (reference - model)).sum(axis=-1), 0.0)
    return found


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A drawn token, and the most likely ones in falling order, each as (id, natural logarithm)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Float32, token: int, top: int) -> TokenLogprobs:
    """``logits`` is one row ``[vocabulary]``; equal logits come in order of their ids."""
    row = log_softmax(logits)
    best = np.argsort(-row, kind="stable")[:top] if top else np.zeros(0, np.int64)
    return TokenLogprobs(token, float(row[token]), tuple((int(id), float(row[id])) for id in best))
