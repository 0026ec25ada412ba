"""Models of other shapes than the Llama family's: their layers between embedding and head. Most are counted
and not run by the native engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .control import Control
from .fields import Fields
from .graph import Graph
from .layer import Layer
from .operations import Embed, LayerNorm, Linear, Norm, Operation, Select
from .source import Source

Write = Callable[[Layer], Iterable[Operation]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """``write`` gives the operations of a layer; ``reason`` is what the native engine lacks for them, empty
    where it runs them.

    ``prefix`` begins the names of the checkpoint's tensors; ``table``, ``final`` (under the prefix) and
    ``head`` are those outside of the layers. ``layer_norm``: the final norm has a bias, and so has the head.
    """

    vocabulary: int
    hidden: int
    layers: int
    epsilon: float
    max_context: int
    tied: bool
    write: Write
    reason: str
    prefix: str = "model."
    table: str = "embed_tokens"
    final: str = "norm"
    head: str = "lm_head"
    layer_norm: bool = False
    last: tuple[Control, ...] = ()


def language(fields: Fields, required: bool = False) -> Fields:
    """The fields of the language model: ``text_config`` where the model also sees or hears."""
    section = fields.section("text_config")
    if section is None and required:
        fields.need("text_config")
    return section or fields


def counted(
    fields: Fields,
    write: Write,
    reason: str,
    *,
    epsilon: str = "rms_norm_eps",
    tied: bool = False,
    prefix: str = "model.",
    table: str = "embed_tokens",
    final: str = "norm",
    head: str = "lm_head",
    layer_norm: bool = False,
    last: tuple[Control, ...] = (),
) -> Counted:
    """What all configs name alike, joined with what an architecture reads itself.

    ``epsilon`` is the name of the norms' smallest divisor, which bears on no count; ``tied`` holds where the
    config does not say.
    """
    return Counted(
        vocabulary=fields.integer("vocab_size"),
        hidden=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        epsilon=fields.number(epsilon, 1e-6),
        max_context=_reach(fields),
        tied=fields.boolean("tie_word_embeddings", tied),
        write=write,
        reason=reason,
        prefix=prefix,
        table=table,
        final=final,
        head=head,
        layer_norm=layer_norm,
        last=last,
    )


def _reach(fields: Fields) -> int:
    """Positions that the model was made for; YaRN stretches those that it was trained on."""
    stated = fields.integer("max_position_embeddings")
    settings = fields.section("rope_parameters") or fields.section("rope_scaling")
    if settings is None or settings.text("rope_type", settings.text("type", "default")) != "yarn":
        return stated
    trained = settings.integer("original_max_position_embeddings", stated)
    return max(stated, int(settings.number("factor") * trained))


def graph(shape: Counted, architecture: str, name: str) -> Graph:
    """The operations of ``shape``."""
    table = Source(f"{shape.prefix}{shape.table}.weight", (shape.vocabulary, shape.hidden))
    operations: list[Operation] = [Embed(name="embed", table=table, output="x")]
    for index in range(shape.layers):
        layer = Layer(index, f"{shape.prefix}layers.{index}.", shape.hidden, shape.epsilon)
        operations += shape.write(layer)
    operations += _epilogue(shape, table)
    return Graph(
        name=name,
        architecture=architecture,
        vocabulary=shape.vocabulary,
        hidden=shape.hidden,
        layers=shape.layers,
        max_context=shape.max_context,
        tied=shape.tied,
        operations=tuple(operations),
        native_reason=shape.reason,
    )


def _epilogue(shape: Counted, table: Source) -> Iterator[Operation]:
    final = f"{shape.prefix}{shape.final}"
    weight = Source(f"{final}.weight", (shape.hidden,))
    yield Select(name="select", input="x", output="selected", width=shape.hidden)
    yield from shape.last
    if shape.layer_norm:
        bias = Source(f"{final}.bias", (shape.hidden,))
        yield LayerNorm(
            name="norm", weight=weight, bias=bias, epsilon=shape.epsilon, input="selected", output="final"
        )
    else:
        yield Norm(name="norm", weight=weight, epsilon=shape.epsilon, input="selected", output="final")
    head = table if shape.tied else Source(f"{shape.head}.weight", (shape.vocabulary, shape.hidden))
    biases = (Source(f"{shape.head}.bias", (shape.vocabulary,)),) if shape.layer_norm else ()
    yield Linear(
        name="head",
        role="head",
        tied=shape.tied,
        weights=(head,),
        biases=biases,
        input="final",
        output="logits",
    )
