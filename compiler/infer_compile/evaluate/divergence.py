"""How far two engines' next-token distributions are apart, token by token and over a text.

Everything is in float64 and natural units: logarithms are natural, divergences in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..runtime.logprobs import Float64, log_softmax
from ..runtime.logprobs import divergence as row_divergence
from .forcing import Forced

PERCENTILE = 99


@dataclass(frozen=True, slots=True)
class Rows:
    """Of consecutive tokens: ``context`` and ``position`` of each, what the reference and the model lose on
    it (negative logarithm of its probability), KL(reference || model), whether the reference and the model
    hold it for the likeliest, and whether both hold the same for likeliest. Each array is ``[tokens]``."""

    context: NDArray[np.int64]
    position: NDArray[np.int64]
    reference: Float64
    model: Float64
    divergence: Float64
    reference_hit: NDArray[np.bool_]
    model_hit: NDArray[np.bool_]
    agrees: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Divergence:
    """A model held against its reference on ``tokens`` predicted tokens of ``contexts`` contexts.

    ``loss_percent`` is the model's perplexity over the reference's, minus one, in percent. Its standard error
    counts contexts as independent of one another and pairs both models on each.
    """

    tokens: int
    contexts: int
    perplexity: float
    reference_perplexity: float
    loss_percent: float
    standard_error_percent: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float


def rows(part: Forced) -> Rows:
    """Of what two engines, the reference first, say of the same tokens."""
    reference, model = map(log_softmax, part.logits)
    count = len(part.tokens)
    each = np.arange(count)
    likeliest, likely = reference.argmax(axis=-1), model.argmax(axis=-1)
    return Rows(
        context=np.full(count, part.context),
        position=part.first + each,
        reference=-reference[each, part.tokens],
        model=-model[each, part.tokens],
        divergence=row_divergence(reference, model),
        reference_hit=likeliest == part.tokens,
        model_hit=likely == part.tokens,
        agrees=likeliest == likely,
    )


def gathered(parts: Iterable[Rows]) -> Rows:
    """All rows, in order of context and position, however they were batched."""
    found = list(parts)
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in found]) for field in fields(Rows)
    }
    order = np.lexsort((joined["position"], joined["context"]))
    return Rows(**{name: values[order] for name, values in joined.items()})


def divergence(found: Rows) -> Divergence:
    """Means over all tokens."""
    lost = found.model - found.reference
    mean = float(lost.mean())
    ratio = math.exp(mean)
    return Divergence(
        tokens=len(lost),
        contexts=len(np.unique(found.context)),
        perplexity=math.exp(float(found.model.mean())),
        reference_perplexity=math.exp(float(found.reference.mean())),
        loss_percent=100 * (ratio - 1),
        standard_error_percent=100 * ratio * _standard_error(lost, found.context),
        kl_mean=float(found.divergence.mean()),
        kl_p99=float(np.percentile(found.divergence, PERCENTILE)),
        top1_agreement=float(found.agrees.mean()),
    )


def _standard_error(values: Float64, context: NDArray[np.int64]) -> float:
    """Of the mean of ``values``, of which those of one context hang together: the linearised variance of a
    ratio of sums over contexts."""
    groups = np.unique(context, return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < 2:
        return math.nan
    deviations = np.bincount(groups, values - values.mean())
    return math.sqrt(count / (count - 1) * float(np.square(deviations).sum())) / len(values)
