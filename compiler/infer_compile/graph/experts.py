"""The experts of a layer: MLPs of which each token passes through a few."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.formats.program import Routing
from .cost import Cost
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A product with a small matrix that steers. It is never rounded: see ``control.py``."""

    name: str
    layer: int
    weight: Source
    input: str = "normed"
    output: str

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.weight,)

    @property
    def cost(self) -> Cost:
        return Cost(vector_elements=self.weight.elements, flops_per_token=2 * self.weight.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The router: ``experts_per_token`` of the experts, as ``routing`` says. Its matrix is never rounded, its
    ``bias`` is float32: it tells experts apart whose scores are close."""

    name: str
    layer: int
    weight: Source
    bias: Source | None = None
    experts_per_token: int
    routing: Routing
    input: str = "normed"
    output: str = "routes"

    @property
    def width(self) -> int:
        """An expert's number, and what it counts, for each choice."""
        return 2 * self.experts_per_token

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.weight, self.bias) if self.bias else (self.weight,)

    @property
    def cost(self) -> Cost:
        return Cost(
            vector_elements=self.weight.elements,
            single_elements=self.bias.elements if self.bias else 0,
            flops_per_token=2 * self.weight.elements,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """``experts`` MLPs of ``inputs`` values and an inner ``width``, ``experts_per_token`` of them per token.

    ``weights`` and ``biases`` have the experts as their first dimension. Where the checkpoint has a tensor
    per expert, their names hold ``{}`` for its number. What the experts of a token give, times their
    probabilities in ``routes``, is added to ``sum``; ``gated`` holds their inner values.
    """

    name: str
    layer: int
    experts: int
    experts_per_token: int
    inputs: int
    inner: int
    weights: tuple[Source, ...]
    biases: tuple[Source, ...] = ()
    input: str = "normed"
    routes: str = "routes"
    output: str
    gated: str = "expert_gated"
    sum: str = "x"

    @property
    def width(self) -> int:
        """Values per token, over all its experts: gate and up side by side, or what they give back."""
        return self.experts_per_token * max(2 * self.inner, self.inputs)

    @property
    def gated_width(self) -> int:
        return self.experts_per_token * self.inner

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(part for source in self.weights + self.biases for part in self.parts(source))

    def parts(self, source: Source) -> tuple[Source, ...]:
        """The tensors of the checkpoint that ``source`` names."""
        if "{}" not in source.name:
            return (source,)
        return tuple(Source(source.name.format(i), source.shape[1:]) for i in range(self.experts))

    @property
    def into(self) -> tuple[Source, ...]:
        """Gates and what they are for, of one expert after the other."""
        parts = [self.parts(weight) for weight in self.weights[:-1]]
        return tuple(source for expert in zip(*parts, strict=True) for source in expert)

    @property
    def back(self) -> tuple[Source, ...]:
        return self.parts(self.weights[-1])

    @property
    def _rows(self) -> int:
        """Outputs of one expert's matrices, whichever way round they are stored."""
        into = sum(weight.elements for weight in self.weights[:-1]) // (self.experts * self.inputs)
        return into + self.weights[-1].elements // (self.experts * self.inner)

    @property
    def cost(self) -> Cost:
        elements = sum(weight.elements for weight in self.weights) // self.experts
        return Cost(
            flops_per_token=2 * self.experts_per_token * elements,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_elements=elements,
            expert_vector_elements=sum(bias.elements for bias in self.biases) // self.experts,
            expert_rows=self._rows,
        )
