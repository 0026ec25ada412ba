"""What one pass of a drafter reads, computes and keeps, counted from the shapes that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..catalog.figure import Basis
from ..catalog.formats import WeightScheme
from ..catalog.speculation import Checkpoint, DecoderLayer, Eagle3, Mtp
from ..graph.cost import Mixture, Totals, total
from ..graph.experts import Experts
from ..graph.graph import Graph
from ..graph.heads import Heads
from ..graph.latent import LatentAttend
from ..graph.operations import Attend, Operation
from ..graph.storage import (
    native_scheme,
    one_expert_bytes,
    output_buffers,
    shared_bytes,
    token_buffers,
    weight_bytes,
)
from ..runtime.formats.weights import BF16

DRAFTER_SCHEME = native_scheme(BF16)
"""Drafters are published in bf16 and engines load them so, whatever the model's own format."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """``step_bytes`` and ``step_flops`` come once a step, the others with each pass; ``pass_bytes`` are
    without experts, of which ``mixtures`` tells the shapes and ``expert_bytes`` the size of one of each."""

    pass_bytes: float
    pass_flops: float
    layers: int
    resident_bytes: float
    cache_elements_per_token: int
    step_bytes: float = 0.0
    step_flops: float = 0.0
    mixtures: tuple[Mixture, ...] = ()
    expert_bytes: tuple[float, ...] = ()
    token_values: int = 0
    """Float values that our own engine keeps for each token of a pass."""
    output_values: int = 0
    """The same for each token whose logits it computes."""
    native: bool = False
    """Our own engine runs it."""
    basis: Basis = "arithmetic"


def smaller_model(graph: Graph, scheme: WeightScheme = DRAFTER_SCHEME) -> Drafter:
    """A model of its own: every pass is one of its decode steps."""
    totals = graph.totals
    return Drafter(
        pass_bytes=shared_bytes(totals, scheme),
        pass_flops=totals.flops_per_token + totals.flops_per_output,
        layers=graph.layers,
        resident_bytes=weight_bytes(graph, scheme),
        cache_elements_per_token=totals.cache_elements_per_token,
        mixtures=totals.mixtures,
        expert_bytes=tuple(one_expert_bytes(group, scheme) for group in totals.mixtures),
        token_values=sum(token_buffers(graph, BF16).values()),
        output_values=sum(output_buffers(graph).values()),
        # Bundles that draft are those of processors.
        native=graph.native and not (graph.experts or graph.latent),
    )


def heads(found: Heads, tokens: int, model: Graph) -> Drafter:
    """Heads of a checkpoint that is here, as our own engine runs them for ``tokens`` tokens: every pass is
    one of all, and the model tells what they read."""
    one = smaller_model(found.graph(tokens))
    told = len(found.layers) * model.hidden
    return replace(one, layers=max(1, one.layers), token_values=one.token_values + told)


def eagle3(facts: Eagle3, checkpoint: Checkpoint, graph: Graph, config: Mapping[str, Any]) -> Drafter | None:
    """One decoder layer over two vectors side by side, a head of a reduced vocabulary, and once a step the
    matrix that fuses the model's hidden states. The embedding is the model's own. None where the layer's
    shape is neither stated nor that of a dense model's layers."""
    layer = checkpoint.layer or _layer_of(graph, config)
    if layer is None:
        return None
    hidden, queries, keys = graph.hidden, layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    elements = (
        facts.inputs.value * hidden * (queries + 2 * keys)
        + queries * hidden
        + 3 * hidden * layer.intermediate
        + facts.vocabulary.value * hidden
    )
    fusing = facts.fused.value * hidden * hidden
    return Drafter(
        pass_bytes=_bytes(elements),
        pass_flops=2 * elements,
        layers=1,
        resident_bytes=_bytes(elements + fusing),
        cache_elements_per_token=2 * keys,
        step_bytes=_bytes(fusing),
        step_flops=2 * fusing,
        basis=layer.basis,
    )


def _layer_of(graph: Graph, config: Mapping[str, Any]) -> DecoderLayer | None:
    """The layers of a dense model: drafters for it are made in the same shape."""
    text = language(config)
    heads, width = text.get("num_attention_heads"), text.get("intermediate_size")
    if graph.totals.mixtures or not heads or not isinstance(width, int):
        return None
    return DecoderLayer(
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or graph.hidden // heads,
        intermediate=width,
        basis="arithmetic",
        source="the model's config.json",
    )


def medusa(graph: Graph, heads: int, loaded: int) -> Drafter:
    """``heads`` of the ``loaded`` heads at work: for each a square matrix, then logits; all in one pass."""
    one = graph.hidden * (graph.hidden + graph.vocabulary)
    return Drafter(
        pass_bytes=_bytes(heads * one),
        pass_flops=2 * heads * one,
        layers=1,
        resident_bytes=_bytes(loaded * one),
        cache_elements_per_token=0,
    )


def mtp(facts: Mtp, graph: Graph, scheme: WeightScheme = DRAFTER_SCHEME) -> Drafter:
    """A matrix that joins hidden state and embedding, one layer of the model, the model's head."""
    known = facts.of(graph.architecture)
    layer = _dense_layer(graph) if known is not None and known.dense else _last_layer(graph)
    hidden, totals = graph.hidden, total(operation.cost for operation in layer)
    joining = facts.inputs.value * hidden * hidden
    head = _without_layers(graph.totals)
    own = _bytes(joining) + shared_bytes(totals, scheme)
    expert_bytes = tuple(one_expert_bytes(group, scheme) for group in totals.mixtures)
    every = sum(
        group.layers * group.experts * one for group, one in zip(totals.mixtures, expert_bytes, strict=True)
    )
    return Drafter(
        pass_bytes=own + shared_bytes(head, scheme),
        pass_flops=2 * joining + totals.flops_per_token + graph.totals.flops_per_output,
        layers=1,
        resident_bytes=own + every,
        cache_elements_per_token=totals.cache_elements_per_token,
        mixtures=totals.mixtures,
        expert_bytes=expert_bytes,
    )


def mtp_layers(facts: Mtp, graph: Graph, config: Mapping[str, Any]) -> int:
    """Layers of the checkpoint that predict further tokens; 0 where their weights are not published."""
    if any(graph.architecture == absent.architecture for absent in facts.absent):
        return 0
    told = (source.get(name) for source in (language(config), config) for name in facts.fields)
    counts = [count for count in told if isinstance(count, int) and not isinstance(count, bool)]
    known = facts.of(graph.architecture)
    return max([*counts, known.layers if known is not None else 0])


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _dense_layer(graph: Graph) -> tuple[Operation, ...]:
    return next(layer for layer in graph.by_layer() if not any(isinstance(one, Experts) for one in layer))


def _last_layer(graph: Graph) -> tuple[Operation, ...]:
    """The last layer that has attention; where layers are either attention or experts, the last of each."""
    layers = tuple(graph.by_layer())
    seeing = next(
        (layer for layer in reversed(layers) if any(isinstance(one, Attend | LatentAttend) for one in layer)),
        layers[-1],
    )
    if any(isinstance(one, Experts) for one in seeing):
        return seeing
    alone = not any(
        isinstance(one, Attend | LatentAttend)
        for layer in layers
        if any(isinstance(one, Experts) for one in layer)
        for one in layer
    )
    mixed = next((layer for layer in reversed(layers) if any(isinstance(one, Experts) for one in layer)), ())
    return (*seeing, *mixed) if alone else seeing


def _without_layers(totals: Totals) -> Totals:
    """The head alone."""
    return Totals(0, 0, totals.head_elements, 0, 0, totals.flops_per_output, ())


def _bytes(elements: float) -> float:
    return elements * BF16.bits / 8
