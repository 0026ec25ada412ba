"""The small parameters that steer: they are never rounded, so the engine keeps them in bf16."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Products with small ``weights`` (a router, a gate, mixing coefficients) and elementwise ``vectors``.

    Rounding a router would change which experts run; all of them together are a thousandth of a model.
    """

    name: str
    layer: int | None = None
    weights: tuple[Source, ...] = ()
    vectors: tuple[Source, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.weights + self.vectors

    @property
    def cost(self) -> Cost:
        return Cost(
            vector_elements=sum(source.elements for source in self.sources),
            flops_per_token=2 * sum(weight.elements for weight in self.weights),
        )
