"""How a token is drawn from logits, in plain numpy: the reference of every engine's own sampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..step import Float32, Sampling
from .rows import need

_WORD = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A multiple of 2**-24 in [0, 1): output ``position`` of the generator splitmix64 started at ``seed``.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    z ^= z >> 31
    return (z >> 40) / (1 << 24)


def adjust(logits: Float32, sampling: Sampling) -> Float32:
    """``logits`` with the penalties and biases of ``sampling``, a new array."""
    logits = logits.astype(np.float32)
    if sampling.ids is None:
        return logits
    chosen = logits[sampling.ids]
    if sampling.penalty is not None:
        chosen = np.where(chosen > 0, chosen / sampling.penalty, chosen * sampling.penalty)
    if sampling.bias is not None:
        chosen = chosen + sampling.bias
    logits[sampling.ids] = chosen
    return logits


def allowed(mask: NDArray[np.uint32] | None, vocabulary: int) -> NDArray[np.int64]:
    """The ids whose bit is set, ascending. Raises InferCompileError IC521 if there is none."""
    if mask is None:
        return np.arange(vocabulary)
    bits = np.unpackbits(np.ascontiguousarray(mask, "<u4").view(np.uint8), bitorder="little")
    ids = np.flatnonzero(bits[:vocabulary])
    need(ids.size > 0, "the mask allows no token")
    return ids


def draw(logits: Float32, sampling: Sampling, mask: NDArray[np.uint32] | None, position: int) -> int:
    """The token for ``logits`` [vocabulary]; ``position`` is the place that the token will take.

    Candidates stand by falling logit, lower ids first among equals, and the first whose cumulative
    probability exceeds the uniform number is taken. Probabilities are float64.
    """
    logits = adjust(logits, sampling)
    ids = allowed(mask, logits.size)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    if sampling.temperature == 0:
        return int(ids[0])
    scaled = logits[ids].astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled[0])
    if sampling.top_k:
        weights = weights[: sampling.top_k]
    if sampling.top_p < 1:
        cumulative = np.cumsum(weights)
        weights = weights[: int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1]
    if sampling.min_p > 0:
        weights = weights[weights >= sampling.min_p * weights[0]]
    cumulative = np.cumsum(weights)
    target = uniform(sampling.seed, position) * cumulative[-1]
    return int(ids[np.searchsorted(cumulative, target, side="right")])
