"""The experts of a layer: MLPs of which each token passes through a few."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """``experts`` MLPs of ``inputs`` values and an inner ``width``, ``experts_per_token`` of them per token.

    ``weights`` and ``biases`` have the experts as their first dimension. Where the checkpoint has a tensor
    per expert, their names hold ``{}`` for its number.
    """

    name: str
    layer: int
    experts: int
    experts_per_token: int
    inputs: int
    inner: int
    weights: tuple[Source, ...]
    biases: tuple[Source, ...] = ()
    output: str

    @property
    def width(self) -> int:
        """Values per token, over all its experts: gate and up side by side, or what they give back."""
        return self.experts_per_token * max(2 * self.inner, self.inputs)

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(part for source in self.weights + self.biases for part in self._parts(source))

    def _parts(self, source: Source) -> tuple[Source, ...]:
        if "{}" not in source.name:
            return (source,)
        return tuple(Source(source.name.format(i), source.shape[1:]) for i in range(self.experts))

    @property
    def cost(self) -> Cost:
        elements = sum(weight.elements for weight in self.weights) // self.experts
        return Cost(
            flops_per_token=2 * self.experts_per_token * elements,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_elements=elements,
            expert_vector_elements=sum(bias.elements for bias in self.biases) // self.experts,
        )
