"""Layers that keep a state of fixed size for each sequence in place of a cache."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import Cost
from .fields import Fields
from .source import Source

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMix:
    """A short convolution over ``channels``, then a recurrence with ``heads`` states of ``rows x cols``.

    ``products``: passes over the state that a token costs, each a multiplication and an addition per element
    (writing, reading; with a delta rule also reading what is overwritten). ``element_bytes`` are those of a
    state's element; the last ``kernel - 1`` inputs of the convolution are kept in bf16.
    """

    name: str
    layer: int
    output: str
    vectors: tuple[Source, ...]
    heads: int
    rows: int
    cols: int
    products: int
    element_bytes: int
    channels: int
    kernel: int

    @property
    def width(self) -> int:
        return self.heads * self.rows

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.vectors

    @property
    def cost(self) -> Cost:
        state = self.heads * self.rows * self.cols
        return Cost(
            vector_elements=sum(source.elements for source in self.vectors),
            flops_per_token=2 * self.products * state + 2 * self.kernel * self.channels,
            state_bytes=state * self.element_bytes
            + (self.kernel - 1) * self.channels * ELEMENT_BYTES["bfloat16"],
        )


def element_bytes(fields: Fields, key: str) -> int:
    """Bytes of a state's element, from the name of its type under ``key``."""
    fields.need(key)
    name = fields.text(key, "float32")
    if name not in ELEMENT_BYTES:
        fields.wrong(key, f"one of: {', '.join(ELEMENT_BYTES)}")
    return ELEMENT_BYTES.get(name, 4)
