"""The operations of a model: shapes, the checkpoint tensors that feed them, where values flow, their costs.

Values are named rows of numbers, one row per token: ``x`` is the residual stream. An operation says what is
computed and not how it is stored; formats come with lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .control import Control
from .cost import Cost
from .experts import Experts, Route, Score
from .features import Activate, Feed, Place
from .latent import Index, LatentAttend
from .rotary import Rotation
from .source import Source as Source
from .state import StateMix


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """A row of ``table`` for each token."""

    name: str
    layer: int | None = None
    table: Source
    output: str

    @property
    def width(self) -> int:
        return self.table.shape[1]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.table,)

    @property
    def cost(self) -> Cost:
        return Cost(table_elements=self.table.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Division by the root mean square, then a weight per element."""

    name: str
    layer: int | None = None
    weight: Source
    epsilon: float
    input: str
    output: str

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.weight,)

    @property
    def cost(self) -> Cost:
        return Cost(vector_elements=self.weight.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """The mean taken away, division by the standard deviation, then a weight and a bias per element."""

    name: str
    layer: int | None = None
    weight: Source
    bias: Source
    epsilon: float
    input: str
    output: str

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.weight, self.bias)

    @property
    def cost(self) -> Cost:
        return Cost(vector_elements=self.weight.elements + self.bias.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorm:
    """The same over each of ``heads`` heads of ``buffer`` from ``first_head`` on, in place."""

    name: str
    layer: int | None = None
    weight: Source
    epsilon: float
    buffer: str
    first_head: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.weight.shape[0]

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.weight,)

    @property
    def cost(self) -> Cost:
        return Cost(vector_elements=self.weight.elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A product with ``weights``, stacked along outputs, plus ``biases``; added to ``output`` if ``add``.

    It begins at column ``first`` of ``output``.

    ``role`` is ``head`` for the matrix that makes logits: it runs for the asked tokens only and has its own
    storage rule. It is ``unfolding`` for one that latent attention applies itself. ``tied``: its source is
    the embedding's table.
    """

    name: str
    layer: int | None = None
    role: Literal["matrix", "unfolding", "head"] = "matrix"
    tied: bool = False
    weights: tuple[Source, ...]
    biases: tuple[Source, ...] = ()
    input: str
    output: str
    add: bool = False
    first: int = 0

    @property
    def rows(self) -> int:
        return sum(weight.shape[0] for weight in self.weights)

    @property
    def cols(self) -> int:
        return self.weights[0].shape[1]

    @property
    def width(self) -> int:
        return self.first + self.rows

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.weights + self.biases

    @property
    def cost(self) -> Cost:
        elements = self.rows * self.cols
        vectors = sum(bias.elements for bias in self.biases)
        if self.role == "head":
            return Cost(head_elements=elements, flops_per_output=2 * elements, vector_elements=vectors)
        apart = self.role == "unfolding"
        return Cost(
            weight_elements=elements,
            weight_rows=self.rows,
            unfolding_elements=elements if apart else 0,
            unfolding_rows=self.rows if apart else 0,
            flops_per_token=2 * elements,
            vector_elements=vectors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary embedding (half-split pairs) of ``heads`` heads of ``buffer`` from ``first_head``, in place."""

    name: str
    layer: int | None = None
    buffer: str
    first_head: int
    heads: int
    head_dim: int
    rotation: Rotation

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """Causal attention over the cache; ``input`` holds query, key and value heads in this order.

    With a ``window`` a query at position t sees positions in ``(t - window, t]``, with ``selected`` the best
    of so many. Values of ``value_dim`` elements (default: as the keys). ``sinks``: a logit per head that
    takes part in the softmax and has no value.
    """

    name: str
    layer: int
    input: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    selected: int | None = None
    value_dim: int | None = None
    sinks: Source | None = None

    @property
    def width(self) -> int:
        return self.heads * (self.value_dim or self.head_dim)

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.sinks,) if self.sinks else ()

    @property
    def cost(self) -> Cost:
        both = self.head_dim + (self.value_dim or self.head_dim)
        return Cost(
            vector_elements=sum(source.elements for source in self.sources),
            # A product of the query with the key, and one of the weight with the value.
            attention_flops_per_token_context=2 * self.heads * both,
            cache_elements_per_token=self.kv_heads * both,
            window=self.window,
            selected=self.selected,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """``activation(first half) * second half`` of ``input``, each ``width`` wide; times the sigmoid of the
    number in ``portion``, where that is named."""

    name: str
    layer: int | None = None
    activation: str
    input: str
    output: str
    width: int
    portion: str | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """The tokens whose logits are asked for; what follows runs on those alone."""

    name: str
    layer: int | None = None
    input: str
    output: str
    width: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    @property
    def cost(self) -> Cost:
        return Cost()


Operation = (
    Embed
    | Norm
    | LayerNorm
    | HeadNorm
    | Linear
    | Rotary
    | Attend
    | LatentAttend
    | Index
    | StateMix
    | Control
    | Score
    | Route
    | Experts
    | Gate
    | Activate
    | Feed
    | Place
    | Select
)
