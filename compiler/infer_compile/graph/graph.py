"""A model as operations in the order they run: before the layers, layer by layer, after them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..runtime.errors import InferCompileError, Problem
from .cost import Totals, total
from .experts import Experts
from .latent import LatentAttend
from .operations import Attend, Linear, Operation, Select
from .source import Source


@dataclass(frozen=True)
class Graph:
    """What is counted and, if ``native``, lowered.

    ``architecture`` is the Hugging Face class name, ``max_context`` the positions that the model was made
    for. ``native_reason`` says why our own engine does not run it, and is empty where it does. ``stored_as``
    is the weight format of a checkpoint that is quantized already. ``states`` are the values that it tells as
    hidden states, where those are not what its head reads.
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
    stored_as: str = ""
    states: str = ""

    @property
    def native(self) -> bool:
        return not self.native_reason

    @cached_property
    def totals(self) -> Totals:
        """Coefficients of the whole model."""
        return total(operation.cost for operation in self.operations)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The checkpoint tensors that the model reads, each once."""
        found = {source.name: source for operation in self.operations for source in operation.sources}
        return tuple(found.values())

    @cached_property
    def parameters(self) -> int:
        """Numbers in the checkpoint; a tied head is not counted twice."""
        totals = self.totals
        return self._always + totals.expert_elements + totals.expert_vector_elements

    @property
    def active_parameters(self) -> int:
        """Those that one token passes through, the whole embedding among them."""
        return self._always + sum(
            group.layers * group.experts_per_token * (group.expert_elements + group.expert_vector_elements)
            for group in self.totals.mixtures
        )

    @property
    def _always(self) -> int:
        totals = self.totals
        head = 0 if self.tied else totals.head_elements
        matrices = totals.table_elements + totals.weight_elements + head
        return matrices + totals.vector_elements + totals.single_elements

    @cached_property
    def attention(self) -> tuple[Attend | LatentAttend, ...]:
        return tuple(
            operation for operation in self.operations if isinstance(operation, Attend | LatentAttend)
        )

    @property
    def matrices(self) -> tuple[Linear, ...]:
        return tuple(operation for operation in self.operations if isinstance(operation, Linear))

    @property
    def experts(self) -> tuple[Experts, ...]:
        return tuple(operation for operation in self.operations if isinstance(operation, Experts))

    @property
    def cache_layers(self) -> int:
        """Layers that keep keys and values."""
        return len({operation.layer for operation in self.attention})

    @property
    def latent(self) -> LatentAttend | None:
        """The latent attention of the first layer, as of all in a model that our own engine runs; None where
        keys have heads."""
        return next((one for one in self.attention if isinstance(one, LatentAttend)), None)

    @property
    def heads(self) -> int:
        return self._uniform().heads

    @property
    def kv_heads(self) -> int:
        return self._uniform().kv_heads

    @property
    def head_dim(self) -> int:
        return self._uniform().head_dim

    def _uniform(self) -> Attend:
        """The attention that all layers share.

        Raises InferCompileError: IC115 where a layer has none, where keys have no heads or where layers
        differ, so that no one figure tells the shape of the cache.
        """
        attends = [operation for operation in self.attention if isinstance(operation, Attend)]
        shapes = {(one.heads, one.kv_heads, one.head_dim, one.value_dim, one.selected) for one in attends}
        if len(attends) != self.layers or len(shapes) != 1 or attends[0].value_dim or attends[0].selected:
            raise InferCompileError(
                Problem(
                    "IC115",
                    "the cache is not one shape of key and value heads for all layers",
                    self.name,
                    self.native_reason,
                    "choose a model whose layers all have the same attention",
                )
            )
        return attends[0]

    @property
    def prologue(self) -> tuple[Operation, ...]:
        """What runs before the first layer or, without layers, for every token."""
        return tuple(
            itertools.takewhile(
                lambda operation: operation.layer is None and not isinstance(operation, Select),
                self.operations,
            )
        )

    @property
    def epilogue(self) -> tuple[Operation, ...]:
        """What runs after the last layer."""
        rest = self.operations[len(self.prologue) :]
        late = itertools.takewhile(lambda operation: operation.layer is None, reversed(rest))
        return tuple(reversed(tuple(late)))

    def by_layer(self) -> Iterator[tuple[Operation, ...]]:
        """The operations of each layer in turn."""
        for layer in range(self.layers):
            yield tuple(operation for operation in self.operations if operation.layer == layer)
