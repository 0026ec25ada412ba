"""A model as operations in the order they run: before the layers, layer by layer, after them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cost import Totals, total
from .operations import Attend, Linear, Operation, Source


@dataclass(frozen=True, slots=True)
class Graph:
    """What is counted and, if ``native``, lowered.

    ``architecture`` is the Hugging Face class name, ``max_context`` the positions that the model was made
    for. ``native_reason`` says why our own engine does not run it, and is empty where it does.
    """

    name: str
    architecture: str
    vocabulary: int
    hidden: int
    layers: int
    max_context: int
    tied: bool
    operations: tuple[Operation, ...]
    native_reason: str = ""

    @property
    def native(self) -> bool:
        return not self.native_reason

    @property
    def totals(self) -> Totals:
        """Coefficients of the whole model."""
        return total(operation.cost for operation in self.operations)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The checkpoint tensors that the model reads, each once."""
        found = {source.name: source for operation in self.operations for source in operation.sources}
        return tuple(found.values())

    @property
    def parameters(self) -> int:
        """Numbers in the checkpoint; a tied head is not counted twice."""
        return sum(source.elements for source in self.sources)

    @property
    def attention(self) -> tuple[Attend, ...]:
        return tuple(operation for operation in self.operations if isinstance(operation, Attend))

    @property
    def matrices(self) -> tuple[Linear, ...]:
        return tuple(operation for operation in self.operations if isinstance(operation, Linear))

    @property
    def cache_layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self.attention)

    @property
    def heads(self) -> int:
        return self.attention[0].heads

    @property
    def kv_heads(self) -> int:
        return self.attention[0].kv_heads

    @property
    def head_dim(self) -> int:
        return self.attention[0].head_dim

    @property
    def prologue(self) -> tuple[Operation, ...]:
        """What runs before the first layer."""
        first = next(i for i, operation in enumerate(self.operations) if operation.layer is not None)
        return self.operations[:first]

    @property
    def epilogue(self) -> tuple[Operation, ...]:
        """What runs after the last layer."""
        last = max(i for i, operation in enumerate(self.operations) if operation.layer is not None)
        return self.operations[last + 1 :]

    def by_layer(self) -> Iterator[tuple[Operation, ...]]:
        """The operations of each layer in turn."""
        for layer in range(self.layers):
            yield tuple(operation for operation in self.operations if operation.layer == layer)
