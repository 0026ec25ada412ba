"""Medusa: heads on the last hidden state, each of which guesses one position (arXiv 2401.10774).

A head is ``x + silu(linear(x))``, once or more, then a matrix to the vocabulary. Sources: FasterDecoding's
``medusa_model.py``, whose checkpoints name tensors ``0.0.linear.weight`` and ``0.1.weight``, and vLLM's
``model_executor/models/medusa.py``, whose names are ``blocks.0.layers.0.weight`` and ``lm_heads.0.weight``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .features import Activate, Feed, Place
from .fields import Fields
from .graph import Graph
from .heads import Heads, same
from .operations import Linear, Operation, Select
from .source import Source

ALIGNED = 16
"""Logits of each head begin at a multiple of this: products write whole blocks of so many."""
PREFIXES = ("", "medusa_heads.", "medusa_head.")


@dataclass(frozen=True, slots=True)
class _Shape:
    vocabulary: int
    hidden: int
    blocks: int
    bias: bool


def read(fields: Fields, model: Graph, name: str) -> Heads:
    """Of FasterDecoding's config or vLLM's; a head of the first has biases, unless it says otherwise."""
    original = fields.has("medusa_num_heads")
    heads = fields.integer("medusa_num_heads" if original else "num_heads")
    shape = _Shape(
        vocabulary=fields.integer("vocab_size", model.vocabulary),
        hidden=fields.integer("hidden_size", model.hidden),
        blocks=fields.integer("medusa_num_layers" if original else "num_hidden_layers", 1),
        bias=fields.boolean("medusa_fc_bias", original),
    )
    same(fields, "hidden_size", shape.hidden, model.hidden, "hidden size")
    same(fields, "vocab_size", shape.vocabulary, model.vocabulary, "vocabulary")
    if fields.integer("truncated_vocab_size", shape.vocabulary) != shape.vocabulary:
        fields.contradiction("truncated_vocab_size is not vocab_size", "heads of a part of it are not served")
    if fields.boolean("original_lm_head", False):
        fields.contradiction("original_lm_head is true", "heads without a matrix of their own are not served")

    def graph(tokens: int) -> Graph:
        return Graph(
            name=name,
            architecture="MedusaModel",
            vocabulary=model.vocabulary,
            hidden=shape.hidden,
            layers=0,
            max_context=model.max_context,
            tied=False,
            operations=tuple(_operations(shape, min(tokens, heads))),
        )

    def names(tensor: str) -> tuple[str, ...]:
        return tuple(f"{prefix}{known}" for prefix in PREFIXES for known in (tensor, _first(tensor, shape)))

    return Heads("medusa", graph, heads, (), passes=False, names=names)


def _operations(shape: _Shape, heads: int) -> Iterator[Operation]:
    width, square = shape.hidden, (shape.hidden, shape.hidden)
    yield Feed(name="feed", output="x", width=width)
    yield Select(name="select", input="x", output="selected", width=width)
    stride = -(-shape.vocabulary // ALIGNED) * ALIGNED
    for head in range(heads):
        yield Place(name=f"heads.{head}", input="selected", output="state", width=width)
        for block in range(shape.blocks):
            source = f"blocks.{head}.layers.{block}"
            yield Linear(
                name=f"heads.{head}.{block}",
                weights=(Source(f"{source}.weight", square),),
                biases=(Source(f"{source}.bias", (width,)),) if shape.bias else (),
                input="state",
                output="inner",
            )
            yield Activate(name=f"heads.{head}.{block}.gate", input="inner", output="state", width=width)
        yield Linear(
            name=f"heads.{head}.head",
            role="head",
            weights=(Source(f"lm_heads.{head}.weight", (shape.vocabulary, width)),),
            input="state",
            output="logits",
            first=head * stride,
        )


def _first(tensor: str, shape: _Shape) -> str:
    """FasterDecoding's name: head and place in it."""
    kind, head, *rest = tensor.split(".")
    if kind == "lm_heads":
        return f"{head}.{shape.blocks}.{rest[-1]}"
    return f"{head}.{rest[1]}.linear.{rest[-1]}"
