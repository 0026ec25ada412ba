"""The Program: what runs, in concrete operations. Its readers are the weight writer, the reference engine
and code generation; what they read is what the planner counted.

Every token of a step owns one row of each buffer. ``x`` is the residual stream. Matrices are ``rows x cols``
= outputs x inputs; ``sources`` names the checkpoint tensors that are stacked along rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .kv import CacheLayout
from .latent import LatentLayout
from .weights import Rounded, WeightFormat


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(_Frozen):
    """A matrix (or, with ``rows == 1``, a vector) of the engine."""

    name: str
    rows: int
    cols: int
    format: WeightFormat
    sources: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return self.format.bytes(self.rows, self.cols)


class Embed(_Frozen):
    """``output = table[token]``."""

    kind: Literal["embed"] = "embed"
    table: str
    output: str


class Feed(_Frozen):
    """``output`` = the numbers that the caller gives with each token, from number ``first`` on."""

    kind: Literal["feed"] = "feed"
    output: str
    first: int


class Place(_Frozen):
    """``output[first:]`` = ``input``, as wide as that is: buffers side by side."""

    kind: Literal["place"] = "place"
    input: str
    output: str
    first: int


class Norm(_Frozen):
    """``output = input / rms(input) * weight``, rms in float32."""

    kind: Literal["norm"] = "norm"
    weight: str
    epsilon: float
    input: str
    output: str


class HeadNorm(_Frozen):
    """The same over each of ``heads`` consecutive heads of ``head_dim``, from ``first_head`` on, in place."""

    kind: Literal["head_norm"] = "head_norm"
    weight: str
    epsilon: float
    buffer: str
    first_head: int
    heads: int
    head_dim: int


class Quantize(_Frozen):
    """Round ``input`` to multiples of one float32 scale per row and ``group``, in place of the float values:
    whoever reads ``output`` sees the rounded numbers.

    To ``int8``: integers, scale max|x| / 127. To ``fp8``: e4m3 numbers, scale max|x| / 448. To the nearest,
    ties to even.
    """

    kind: Literal["quantize"] = "quantize"
    input: str
    output: str
    group: int
    to: Rounded = "int8"


class Linear(_Frozen):
    """``output = input @ weight.T + bias``, or added to what ``output`` holds if ``add``; from column
    ``first`` of ``output`` on."""

    kind: Literal["linear"] = "linear"
    weight: str
    bias: str | None = None
    input: str
    output: str
    add: bool = False
    first: int = 0


class Rotary(_Frozen):
    """Rotary embedding (half-split pairs) of ``heads`` consecutive heads of ``head_dim``, in place.

    Pair j turns by ``position * frequencies[j]``; sine and cosine are scaled by ``scale``.
    """

    kind: Literal["rotary"] = "rotary"
    buffer: str
    first_head: int
    heads: int
    head_dim: int
    frequencies: tuple[float, ...]
    scale: float = 1.0


class Attend(_Frozen):
    """Append the step's keys and values of ``layer`` to the cache, seal what is accepted, and attend.

    ``input`` holds ``heads`` query heads, then ``kv_heads`` key heads, then ``kv_heads`` value heads. With a
    ``window`` a query at position t sees positions in ``(t - window, t]``.
    """

    kind: Literal["attend"] = "attend"
    layer: int
    input: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None


class AttendLatent(_Frozen):
    """The same for latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): append the step's latent
    vectors and rotary keys, seal, and attend.

    ``query`` holds ``heads`` heads of ``nope + rope`` elements, ``latent`` a latent vector of ``rank``,
    behind its norm, and a rotary key of ``rope``; the parts of ``rope`` are turned here, pair j by ``position
    * frequencies[j]``, sine and cosine times ``rotary_scale``. Pairs are ``neighbours``, or halves.

    The matrix ``unfold`` ``[heads * (nope + value), rank]`` makes of a latent vector each head's key without
    a rotary part, and its value. What comes out is as if it did so for every cached token; what is computed
    are queries multiplied by the parts for keys, and mean latent vectors by those for values. ``output``
    holds ``heads`` heads of ``value`` elements.
    """

    kind: Literal["attend_latent"] = "attend_latent"
    layer: int
    query: str
    latent: str
    output: str
    unfold: str
    heads: int
    rank: int
    nope: int
    rope: int
    value: int
    scale: float
    frequencies: tuple[float, ...]
    rotary_scale: float = 1.0
    neighbours: bool = True

    @property
    def turn(self) -> Rotary:
        """The rotation of queries; their parts without it stand between the heads."""
        return Rotary(
            buffer=self.query,
            first_head=0,
            heads=self.heads,
            head_dim=self.rope,
            frequencies=self.frequencies,
            scale=self.rotary_scale,
        )


class Score(_Frozen):
    """``output = input @ weight.T``, of a small matrix that is never rounded and numbers that nobody
    rounded."""

    kind: Literal["score"] = "score"
    weight: str
    input: str
    output: str


class Routing(_Frozen):
    """How a router chooses by its scores, and what the choices count.

    A likelihood is a ``softmax`` over all experts or a ``sigmoid`` of each. Experts are ranked by it, and by
    a bias of their own where there is one. Of ``groups`` of neighbouring experts only the ``kept_groups`` of
    the highest ranks take part, a group's rank being the sum of its ``group_best`` best ones' (DeepSeek-V2,
    arXiv 2405.04434, section 2.2.2; DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Of equal ones the first.

    A choice counts its likelihood, divided by the sum over the token's choices if ``normalized``, times
    ``scale``.
    """

    normalized: bool
    likelihood: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    scale: float = 1.0


LEAST_SUM = 1e-20
"""Is added to a sum of likelihoods before it divides (transformers 5.23, ``models/deepseek_v3``)."""


class Route(_Frozen):
    """Choose ``per_token`` experts for each token by the scores ``input @ weight.T``, as ``routing`` says.
    ``output`` holds their numbers, the best first, then what each counts. ``bias`` is for ranks alone."""

    kind: Literal["route"] = "route"
    weight: str
    bias: str | None = None
    input: str
    output: str
    per_token: int
    routing: Routing


class ExpertLinear(_Frozen):
    """Products with the experts that ``routes`` names; ``weight`` holds a matrix of ``rows`` outputs for one
    expert after the other.

    What a token's choices give lies side by side in ``output``, and all of them read ``input``. If
    ``combine``, each choice reads its own part of ``input`` instead, and the sum over a token's choices of
    what each counts times its product is added to ``output``.
    """

    kind: Literal["expert_linear"] = "expert_linear"
    weight: str
    routes: str
    input: str
    output: str
    rows: int
    per_token: int
    combine: bool


class Gate(_Frozen):
    """``output = silu(first) * second``, of the halves of every ``2 * width`` numbers of ``input``; times the
    sigmoid of the one number in ``portion``, where that is named."""

    kind: Literal["gate"] = "gate"
    input: str
    output: str
    width: int
    portion: str | None = None


class Activate(_Frozen):
    """``output = output + silu(input)``."""

    kind: Literal["activate"] = "activate"
    input: str
    output: str


class Select(_Frozen):
    """Keep only the rows whose logits are asked for; later operations run on those."""

    kind: Literal["select"] = "select"
    input: str
    output: str


Operation = Annotated[
    Embed
    | Feed
    | Place
    | Norm
    | HeadNorm
    | Quantize
    | Linear
    | Rotary
    | Attend
    | AttendLatent
    | Score
    | Route
    | ExpertLinear
    | Gate
    | Activate
    | Select,
    Field(discriminator="kind"),
]


Overflow = Literal["stop", "evict"]


class Limits(_Frozen):
    """Static sizes of the engine: tokens and sequences of one step, pool sizes in pages.

    A sequence that reaches ``max_context`` tokens ends there, or, if ``overflow`` is ``evict``, goes on
    without its oldest pages but the sinks. Behind the pages of the sequences the pools have those of one
    answer of at most ``checked_tokens`` tokens that is checked against an exact cache; 0 checks none.
    """

    max_context: int
    max_sequences: int
    max_batch_tokens: int
    exact_pages: int
    packed_pages: int
    overflow: Overflow = "stop"
    checked_tokens: int = 0

    @property
    def max_outputs(self) -> int:
        """Most rows of logits in one step: a speculated chain of eight tokens for every sequence."""
        return min(self.max_batch_tokens, 8 * self.max_sequences)


class Program(_Frozen):
    """``vocabulary`` is of the tokens that go in; how many logits come out is the width of their buffer.
    ``states`` is the buffer that steps tell as hidden states; empty, it is the one that the head reads,
    before any rounding.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: str
    architecture: str
    vocabulary: int
    buffers: dict[str, int]
    """Name to width in elements; the last operation writes ``logits``."""
    tensors: tuple[Tensor, ...]
    prologue: tuple[Operation, ...]
    layers: tuple[tuple[Operation, ...], ...]
    epilogue: tuple[Operation, ...]
    cache: CacheLayout | LatentLayout
    limits: Limits
    states: str = ""

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All, in the order they run."""
        return (*self.prologue, *(operation for layer in self.layers for operation in layer), *self.epilogue)

    @property
    def logits(self) -> int:
        """Numbers of a row of logits."""
        return self.buffers["logits"]

    @property
    def features(self) -> int:
        """Numbers that the caller gives with each token; 0 where tokens are all it reads."""
        return max(
            (op.first + self.buffers[op.output] for op in self.operations if isinstance(op, Feed)), default=0
        )

    @property
    def selected(self) -> frozenset[str]:
        """Buffers with a row for each output, and none for other tokens."""
        late = itertools.dropwhile(lambda operation: not isinstance(operation, Select), self.epilogue)
        return frozenset(op.output for op in late if not isinstance(op, HeadNorm | Rotary))

    @property
    def tells_tokens(self) -> bool:
        """Whether steps tell a hidden state for each new token, and not only for those with logits."""
        return self.hidden not in self.selected

    @property
    def hidden(self) -> str:
        """The buffer that steps tell as hidden states."""
        if self.states:
            return self.states
        rounded = {op.output: op.input for op in self.epilogue if isinstance(op, Quantize)}
        *_, head = (op for op in self.epilogue if isinstance(op, Linear))
        return rounded.get(head.input, head.input)

    @property
    def turns(self) -> dict[int, Rotary]:
        """For each layer the rotary embedding of its queries; a layer without one is not in it."""
        return {
            attend.layer: operation
            for layer in self.layers
            for attend in layer
            if isinstance(attend, Attend)
            for operation in layer
            if isinstance(operation, Rotary) and (operation.buffer, operation.first_head) == (attend.input, 0)
        }

    @property
    def pool_pages(self) -> tuple[int, int]:
        """All pages of the engine's exact and packed pools."""
        exact, packed = self.cache.check_pages(self.limits.checked_tokens)
        return self.limits.exact_pages + exact, self.limits.packed_pages + packed

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        fields = self.model_dump(mode="json", by_alias=True)
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Program:
        return cls.model_validate_json(text)
