"""EAGLE-3: one decoder layer over a token and the model's features at the place before it (arXiv 2503.01840).

A matrix fuses the hidden states at three layers of the model; the layer attends over the norms of embedding
and fused state side by side; a head of a vocabulary of its own guesses the next token, and the layer's result
stands for the features of the place that the model has not computed. Sources: SGLang's
``models/llama_eagle3.py``, whose checkpoints name the layer ``midlayer``, and vLLM's, where it is
``layers.0``.

One program does both: the state is what is fed as such plus what is fused, and either is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..runtime.errors import Problem
from . import decoder
from .architectures import llama
from .decoder import Decoder
from .features import Feed, Place
from .fields import Fields
from .graph import Graph
from .heads import Heads, same
from .operations import Embed, Linear, Norm, Operation, Select
from .rotary import rotation
from .source import Source

LAYER = "model.layers.0."
REFUSED = ("norm_before_fc", "fc_norm", "norm_output", "parallel_drafting", "bias", "tie_word_embeddings")
"""Settings of later variants."""


def read(fields: Fields, model: Graph, name: str) -> Heads:
    """Of SGLang's and vLLM's config, or that of speculators, which has the layer's in a section."""
    fields = _flat(fields)
    deep = fields.integer("num_hidden_layers", 1)
    if deep != 1:
        fields.contradiction(f"num_hidden_layers is {deep}", "drafters of one layer are served")
    shape = replace(llama.read(fields), tied=False)
    same(fields, "vocab_size", shape.vocabulary, model.vocabulary, "vocabulary")
    key = "target_hidden_size" if fields.has("target_hidden_size") else "hidden_size"
    same(fields, key, fields.integer(key), model.hidden, "hidden size")
    for setting in REFUSED:
        if fields.boolean(setting, False):
            fields.contradiction(f"{setting} is true", "heads of this kind are not served")
    vocabulary = fields.integer("draft_vocab_size", shape.vocabulary)
    before = fields.boolean("norm_before_residual", False)
    layers = _layers(fields, model)
    built = Graph(
        name=name,
        architecture="LlamaForCausalLMEagle3",
        vocabulary=shape.vocabulary,
        hidden=shape.hidden,
        layers=1,
        max_context=shape.rope.max_context,
        tied=False,
        operations=tuple(_operations(shape, vocabulary, len(layers) * model.hidden, before)),
        native_reason=decoder.not_native(shape),
        states="selected",
    )
    return Heads("eagle3", lambda tokens: built, None, layers, passes=True, names=_names)


def _flat(fields: Fields) -> Fields:
    section = fields.config.get("transformer_layer_config")
    if not isinstance(section, Mapping):
        return fields
    flat = Fields({**section, **fields.config}, fields.where)
    flat.problems = fields.problems
    return flat


def _layers(fields: Fields, model: Graph) -> tuple[int, ...]:
    """The model's layers whose inputs are the features, ascending: as told (vLLM counts inputs, SGLang's
    section results), else those that both take where nothing is."""
    section = fields.section("eagle_config")
    given = fields.integers("eagle_aux_hidden_state_layer_ids")
    if given is None and section is not None:
        results = section.integers("eagle_aux_hidden_state_layer_ids")
        given = None if results is None else [layer + 1 for layer in results]
    if given is None:
        given = (2, model.layers // 2, model.layers - 3)
    found = tuple(sorted(set(given)))
    if len(found) != len(given) or not found or found[0] < 0 or found[-1] > model.layers:
        fields.refuse(
            Problem(
                "IC138",
                "the heads were made for another model",
                fields.where,
                f"they read it before the layers {', '.join(map(str, given))}, and it has {model.layers}",
                "give eagle_aux_hidden_state_layer_ids, layers of the model that differ",
            )
        )
        return (0,)
    return found


def _operations(shape: Decoder, vocabulary: int, fused: int, before: bool) -> Iterator[Operation]:
    hidden = shape.hidden
    yield Embed(name="embed", table=Source("embed_tokens.weight", (shape.vocabulary, hidden)), output="token")
    yield Feed(name="features", output="features", width=fused)
    yield Feed(name="state", output="x", first=fused, width=hidden)
    weight = Source("fc.weight", (hidden, fused))
    yield Linear(name="fuse", weights=(weight,), input="features", output="x", add=True)
    yield from _joined(shape, before)
    turn = rotation(shape.head_dim, shape.rope.theta, shape.rope.scaling)
    first, qkv, *attention = decoder.attention(shape, turn, 0)
    if not isinstance(qkv, Linear):
        raise TypeError(f"a norm and a product come first in a layer, not {first} and {qkv}")
    wide = tuple(replace(source, shape=(source.shape[0], 2 * hidden)) for source in qkv.weights)
    yield replace(qkv, weights=wide, input="joined")
    yield from attention
    yield from decoder.mlp(shape, 0)
    yield Select(name="select", input="x", output="selected", width=hidden)
    yield _norm(shape, "norm", "norm.weight", "selected", "final", layer=None)
    head = Source("lm_head.weight", (vocabulary, hidden))
    yield Linear(name="head", role="head", weights=(head,), input="final", output="logits")


def _joined(shape: Decoder, before: bool) -> Iterator[Operation]:
    """The norms of token and state side by side; ``before``: the norm of the state is what goes on."""
    hidden, state = shape.hidden, "x" if before else "normed"
    yield _norm(shape, "layers.0.token.norm", f"{LAYER}input_layernorm.weight", "token", "token")
    yield _norm(shape, "layers.0.state.norm", f"{LAYER}hidden_norm.weight", "x", state)
    for part, buffer, first in (("token", "token", 0), ("state", state, hidden)):
        yield Place(
            name=f"layers.0.{part}.place",
            layer=0,
            input=buffer,
            output="joined",
            first=first,
            width=first + hidden,
        )


def _norm(shape: Decoder, name: str, source: str, input: str, output: str, layer: int | None = 0) -> Norm:
    weight = Source(source, (shape.hidden,))
    return Norm(name=name, layer=layer, weight=weight, epsilon=shape.epsilon, input=input, output=output)


def _names(tensor: str) -> tuple[str, ...]:
    if not tensor.startswith(LAYER):
        return tensor, f"model.{tensor}"
    rest = tensor.removeprefix(LAYER)
    return tensor, f"midlayer.{rest}", f"layers.0.{rest}"
