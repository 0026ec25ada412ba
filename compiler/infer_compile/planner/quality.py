"""Expected loss of quality, as ranges of evidence. A gate on the built bundle has the last word."""

from __future__ import annotations

from dataclasses import dataclass

from ..catalog.coefficients import Basis, Quality, weakest
from ..runtime.formats.weights import WeightFormat


@dataclass(frozen=True, slots=True)
class Expected:
    """Percent of perplexity over that of the same model in bf16 with a bf16 cache."""

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0
    basis: Basis = "arithmetic"
    source: str = "bf16 is what the loss is measured against"

    def __add__(self, other: Expected) -> Expected:
        """Losses of weights and of the cache, taken to add up."""
        sources = dict.fromkeys(part.source for part in (self, other) if part.high)
        return Expected(
            round(self.low + other.low, 3),
            round(self.expected + other.expected, 3),
            round(self.high + other.high, 3),
            weakest((self.basis, other.basis)),
            "; ".join(sources) or self.source,
        )


def weights_loss(parameters: int, weights: WeightFormat, quality: Quality) -> Expected:
    """What storing the weights in this format costs a model of this size."""
    if not weights.group:
        return Expected()
    loss = quality.of_weights(weights.name, parameters)
    return Expected(loss.low, loss.expected, loss.high, loss.basis, loss.source)


def cache_loss(parameters: int, level: str, quality: Quality) -> Expected:
    """What keeping the cache at this level costs a model of this size."""
    if level == "bf16":
        return Expected()
    loss = quality.of_kv(level, parameters)
    return Expected(loss.low, loss.expected, loss.high, loss.basis, loss.source)
